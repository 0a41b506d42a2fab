"""Bits per dimension by the probability-flow ODE (Song et al. 2021b, Section 4.3), for any process of formula F.

With u_t = A_t∘u_0 + B_t∘z, the flow du = E[u_0 | u]∘dA + E[z | u]∘dB transforms the law of u at one level into that at
any other, and d ln p(u_t) = -div du along it. The two expectations are the model's estimates, which define the flow
whether or not they are consistent with each other. The DCT is orthonormal, so that densities of coefficients and of
pixels are equal.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from warm_lightning.analysis.impulses import constant
from warm_lightning.errors import UserError, check
from warm_lightning.images import dequantise
from warm_lightning.processes import Process
from warm_lightning.restoration import find_clock
from warm_lightning.rng import Draws
from warm_lightning.samplers import Grid, PowerGrid
from warm_lightning.samplers.rules import fresh_noise, move
from warm_lightning.spectral import dct
from warm_lightning.types import Estimate, Estimator, Gains, Level

# ---- divergence

Probes = Callable[[Tensor], Iterable[Tensor]]
"""u [B, C, H, W] → vectors e such that the sum of eᵀJe is the trace of a Jacobian J, or an unbiased estimate of it."""


def basis(u: Tensor) -> Iterator[Tensor]:
    """All unit vectors, [1, C, H, W] each, which give the exact trace; one backward pass for each dimension."""
    for k in range(u[0].numel()):
        vector = torch.zeros_like(u[:1])
        vector.view(-1)[k] = 1
        yield vector


def rademacher(draws: Draws, count: int) -> Probes:
    """Vectors of random signs over frequencies (Hutchinson 1990), drawn anew for each call.

    The signs are over frequencies, not pixels: the Jacobian of a denoiser is nearly diagonal in frequency, and for a
    diagonal one the estimate is exact.
    """

    def probes(u: Tensor) -> Iterator[Tensor]:
        for _ in range(count):
            yield torch.where(draws.uniform(*u.shape[1:]) < 0.5, -1.0, 1.0).to(u) / math.sqrt(count)

    return probes


def with_divergence(function: Callable[[Tensor], Tensor], u: Tensor, probes: Probes) -> tuple[Tensor, Tensor]:
    """The value of a function that maps each image of u [B, C, H, W] by itself, and its divergence [B]."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = function(u)
        divergence = torch.zeros_like(value[:, 0, 0, 0])
        for vector in probes(u):
            (gradient,) = torch.autograd.grad((value * vector).sum(), u, retain_graph=True)
            divergence = divergence + (gradient * vector).sum((1, 2, 3))
    return value.detach(), divergence.detach()


# ---- density


def rising_levels(process: Process, grid: Grid, steps: int, last_noise: float | None = None) -> list[Level]:
    """Levels from a sampler's last one above 0 up to its first, with t^(1/7) evenly spaced in the clock t; [1] each.

    Args:
        process: of the model.
        grid: of its sampler.
        steps: number of levels but one.
        last_noise: noise level β of the last level above 0, in place of the sampler's own.

    Raises:
        UserError: the sampler has no two levels above 0, or the process has no such noise below the first.
    """
    clocks = grid.clocks()
    if last_noise is None:
        check(
            len(clocks) > 2,
            "model.sampler.grid has only one level above the last, but the flow needs two: raise its steps",
        )
        last = clocks[-2:-1]
    else:
        found = find_clock(process, clocks[:1], "beta", last_noise) if last_noise > 0 else None
        if found is None or not 0 < found < clocks[0]:
            first = process.level(clocks[:1]).beta.item()
            raise UserError(f"--last_noise is {last_noise:g}: give a level above 0 and below the first, {first:.4g}")
        last = found
    ends = torch.cat([clocks[:1], last])
    between = PowerGrid(steps + 1, *ends.flip(0).tolist()).clocks()[1:-2]  # without its ends, which are rounded
    return [process.level(clock) for clock in torch.cat([ends[:1], between, ends[1:]]).flip(0).split(1)]


def prior_deviation(process: Process, level: Level, like: Tensor) -> Tensor:
    """Standard deviation of each coefficient at the start of sampling, [1, C, H, W].

    Raises:
        UserError: sampling does not start from normal noise alone.
    """
    draws = constant(1, torch.ones_like(like[0]))
    start = process.prior(draws.normal(*like.shape[1:], dtype=like.dtype), level, draws)
    check(
        draws.drawn == 1,
        f"{type(process).__name__} does not start sampling from normal noise alone, so that its prior has no density "
        "in closed form: choose a process that ends in normal noise",
    )
    return start.abs()


def log_density(estimator: Estimator, process: Process, u: Tensor, levels: Sequence[Level], probes: Probes) -> Tensor:
    """The log density ln p(u) at the first of the levels given, for the law p that the flow makes of the prior; [B].

    The flow and its divergence are integrated by Heun's rule with steps of formula S without fresh noise. These use no
    derivatives of A and B, which at high frequencies change by hundreds of orders of magnitude in a step. The error
    is of second order in the length of the steps. There are two network calls per step.

    Args:
        estimator: the network or oracle, which must be differentiable.
        process: a process with noise at all these levels that ends in normal noise.
        u: coefficients at the first of the levels given, [B, C, H, W], preferably float64.
        levels: from the last level above 0 up to the first one of sampling, [1] each.
        probes: vectors for the divergence.

    Raises:
        UserError: the process has a level without noise, or does not end in normal noise.
    """
    process.check_noise(levels, u)
    deviation = prior_deviation(process, levels[-1], u[:1])
    total = torch.zeros_like(u[:, 0, 0, 0])
    for t, s in pairwise(levels):
        gains_t, gains_s = process.gains(t, u), process.gains(s, u)

        def step(v: Tensor, level: Level, gains_t: Gains = gains_t, gains_s: Gains = gains_s) -> Tensor:
            return move(v, estimator(v, level), gains_t, gains_s, kept=gains_s.noise) - v

        first, first_divergence = with_divergence(partial(step, level=t), u, probes)
        second, second_divergence = with_divergence(partial(step, level=s), u + first, probes)
        u = u + (first + second) / 2
        total = total + (first_divergence + second_divergence) / 2
    log_prior = -(u / deviation).square() / 2 - (deviation * math.sqrt(2 * math.pi)).log()
    return total + log_prior.sum((1, 2, 3))


# ---- bits per dimension

GREY_LEVELS = 127.5
"""Number of grey levels in one unit of the range [-1, 1]."""


def last_noisy_state(process: Process, images: Tensor, level: Level, draws: Draws) -> Tensor:
    """u [B, C, H, W] at the last level above 0, of uint8 images with uniform noise of one grey level added first."""
    pixels = dequantise(images, torch.float64)
    pixels = pixels + (draws.uniform(*pixels.shape[1:], dtype=pixels.dtype) - 0.5) / GREY_LEVELS
    u0 = dct(pixels)
    return process.degrade(Estimate(u0, fresh_noise(draws, u0)), process.gains(level, u0))


def bits_per_dimension(log_p: Tensor, gains: Gains, u: Tensor) -> Tensor:
    """Bits per dimension, -log₂ of a density over grey levels, [B].

    Args:
        log_p: ln p(u) at the last level above 0, [B].
        gains: A and B at the last level above 0; the result is for u/A, the images with the blur undone, in the
            scale of clean images.
        u: any tensor of the size of the images, [B, C, H, W].
    """
    sharp = log_p + gains.log_signal.expand_as(u).sum((1, 2, 3))
    return -sharp / (u[0].numel() * math.log(2)) + math.log2(GREY_LEVELS)


def bits_of_images(
    estimator: Estimator, process: Process, images: Tensor, levels: Sequence[Level], draws: Draws, probes: int
) -> Tensor:
    """Bits per dimension of uint8 images [B, C, H, W] that `last_noisy_state` takes to the first of the levels; [B].

    Args:
        estimator: see `log_density`.
        process: see `log_density`.
        images: the images.
        levels: rising; see `log_density`.
        draws: random numbers for `last_noisy_state` and for the probes.
        probes: number of random vectors for each call; 0 for the exact divergence.
    """
    u = last_noisy_state(process, images, levels[0], draws)
    log_p = log_density(estimator, process, u, levels, rademacher(draws, probes) if probes else basis)
    return bits_per_dimension(log_p, process.gains(levels[0], u), u)


def excess_at_most(gains: Gains) -> float:
    """The bits per dimension by which a perfect model's result can exceed the entropy of the images, at most.

    The model's law is that of images X plus the normal noise G of the last level above 0, of standard deviation σ = B/A
    grey levels. It is evaluated at X + V, where V is G plus uniform noise of one grey level. As p(x + V) ≥ P(x) p_G(V),
    the excess is at most the cross-entropy E[-log₂ p_G(V)] = ½ log₂ 2πσ² + (σ² + 1/12)/(2σ²) log₂ e, the mean over
    frequencies. It reaches this bound if different images are far apart compared to the noise. The bound is smallest
    at σ = √(1/12), and grows without limit as σ falls.

    Args:
        gains: A and B at the last level above 0.
    """
    log_sigma = gains.noise.double().log() - gains.log_signal.double() + math.log(GREY_LEVELS)
    nats = log_sigma + 0.5 * math.log(2 * math.pi) + 0.5 + torch.exp(-2 * log_sigma) / 24
    return nats.mean().item() / math.log(2)


def prior_gap(second_moment: Tensor, process: Process, level: Level) -> float:
    """The cost of sampling from the prior in bits per dimension, due to the rest of the image at the first level.

    It is the Kullback-Leibler divergence of N(0, A²E[u_0²] + B²) from the prior, and a part of a model's bits.

    Args:
        second_moment: E[u_0²] of each coefficient, [C, H, W].
        process: a process that ends in normal noise.
        level: the first level of sampling.
    """
    like = second_moment[None]
    gains, deviation = process.gains(level, like), prior_deviation(process, level, like)
    ratio = (gains.signal.square() * like + gains.noise.square()) / deviation.square()
    return (ratio - 1 - ratio.log()).mean().item() / 2 / math.log(2)
