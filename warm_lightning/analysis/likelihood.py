"""Bits per dimension by the probability-flow ODE (Song et al. 2021b, Section 4.3), for any process of formula F.

With u_t = A_t∘u_0 + B_t∘z, the flow du = E[u_0 | u]∘dA + E[z | u]∘dB takes the law of u at one level to that at any
other, and d ln p(u_t) = -div du along it. The two expectations are the model's beliefs, which define the flow whether
or not they agree with each other. The DCT being orthonormal, densities over coefficients are those over pixels.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from warm_lightning.analysis.impulses import check_noise, constant
from warm_lightning.errors import check
from warm_lightning.images import dequantise
from warm_lightning.processes import Process
from warm_lightning.rng import Draws
from warm_lightning.samplers import Grid, PowerGrid
from warm_lightning.samplers.rules import fresh_noise, move
from warm_lightning.spectral import dct
from warm_lightning.types import Estimate, Estimator, Gains, Level

GREY_LEVELS = 127.5
"""In a unit of [-1, 1]."""

Probes = Callable[[Tensor], Iterable[Tensor]]
"""u [B, C, H, W] → vectors e of which the sum of eᵀJe is the trace of a Jacobian J, or has it as its mean."""


def basis(u: Tensor) -> Iterator[Tensor]:
    """Unit vectors, [1, C, H, W] each: the exact trace, at the price of a backward pass for each dimension."""
    for k in range(u[0].numel()):
        vector = torch.zeros_like(u[:1])
        vector.view(-1)[k] = 1
        yield vector


def rademacher(draws: Draws, count: int) -> Probes:
    """Random signs over frequencies (Hutchinson 1990), fresh ones whenever they are asked for.

    Over frequencies, not pixels: the Jacobian of a denoiser is nearly diagonal there, and then the trace nearly exact.
    """

    def probes(u: Tensor) -> Iterator[Tensor]:
        for _ in range(count):
            yield torch.where(draws.uniform(*u.shape[1:]) < 0.5, -1.0, 1.0).to(u) / math.sqrt(count)

    return probes


def with_divergence(function: Callable[[Tensor], Tensor], u: Tensor, probes: Probes) -> tuple[Tensor, Tensor]:
    """A function of u [B, C, H, W], image by image, and its divergence [B]."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = function(u)
        divergence = torch.zeros_like(value[:, 0, 0, 0])
        for vector in probes(u):
            (gradient,) = torch.autograd.grad((value * vector).sum(), u, retain_graph=True)
            divergence = divergence + (gradient * vector).sum((1, 2, 3))
    return value.detach(), divergence.detach()


def rising_levels(process: Process, grid: Grid, steps: int) -> list[Level]:
    """From a sampler's last level above 0 to its first: clock readings t with t^(1/7) evenly spaced, [1] each.

    Raises:
        UserError: the sampler has no two levels above 0.
    """
    clocks = grid.clocks()
    check(len(clocks) > 2, "model.sampler.grid has one level above the last, and no way between two: raise its steps")
    ends = clocks[[0, -2]]
    between = PowerGrid(steps + 1, *ends.flip(0).tolist()).clocks()[1:-2]  # whose own ends are rounded
    return [process.level(clock) for clock in torch.cat([ends[:1], between, ends[1:]]).flip(0).split(1)]


def prior_deviation(process: Process, level: Level, like: Tensor) -> Tensor:
    """Standard deviation of each coefficient of what sampling starts from, [1, C, H, W].

    Raises:
        UserError: it starts from more than normal noise.
    """
    draws = constant(1, torch.ones_like(like[0]))
    start = process.prior(draws.normal(*like.shape[1:], dtype=like.dtype), level, draws)
    check(
        draws.drawn == 1,
        f"{type(process).__name__} does not start sampling from normal noise alone, and what it starts from has no "
        "density in closed form: bits per dimension are known for processes that end in normal noise",
    )
    return start.abs()


def log_density(ask: Estimator, process: Process, u: Tensor, levels: Sequence[Level], probes: Probes) -> Tensor:
    """ln p(u) at the first of some rising levels, if p is what the flow makes of the prior at the last; [B].

    Heun's rule for the flow together with its divergence, whose steps are formula S without fresh noise: there are no
    derivatives of A and B in it, which at high frequencies go through hundreds of orders of magnitude in a step. Error
    of second order in the length of the steps. Two calls a step.

    Args:
        ask: the network or oracle, which must be differentiable.
        process: any with noise at all these levels that ends in normal noise.
        u: coefficients at the first level, [B, C, H, W], float64 by choice.
        levels: rising, [1] each.
        probes: for the divergence.

    Raises:
        UserError: the process is none of these.
    """
    check_noise(process, levels, u)
    deviation = prior_deviation(process, levels[-1], u[:1])
    total = torch.zeros_like(u[:, 0, 0, 0])
    for t, s in pairwise(levels):
        source, target = process.gains(t, u), process.gains(s, u)

        def step(v: Tensor, level: Level, source: Gains = source, target: Gains = target) -> Tensor:
            return move(v, ask(v, level), source, target, kept=target.noise) - v

        first, change = with_divergence(partial(step, level=t), u, probes)
        second, other = with_divergence(partial(step, level=s), u + first, probes)
        u = u + (first + second) / 2
        total = total + (change + other) / 2
    log_prior = -(u / deviation).square() / 2 - (deviation * math.sqrt(2 * math.pi)).log()
    return total + log_prior.sum((1, 2, 3))


def lowest_state(process: Process, images: Tensor, level: Level, draws: Draws) -> Tensor:
    """uint8 images [B, C, H, W] → u at the lowest level: uniform over their grey levels, blurred and noisy."""
    pixels = dequantise(images, torch.float64)
    pixels = pixels + (draws.uniform(*pixels.shape[1:], dtype=pixels.dtype) - 0.5) / GREY_LEVELS
    u0 = dct(pixels)
    return process.degrade(Estimate(u0, fresh_noise(draws, u0)), process.gains(level, u0))


def bits_per_dimension(log_p: Tensor, gains: Gains, u: Tensor) -> Tensor:
    """-log₂ of a density in grey levels, per dimension, [B].

    Args:
        log_p: ln p(u) at the lowest level, [B].
        gains: there; the density is that of u/A, the images with blur undone, in the scale of clean ones.
        u: of the size of the images, [B, C, H, W].
    """
    sharp = log_p + gains.log_signal.expand_as(u).sum((1, 2, 3))
    return -sharp / (u[0].numel() * math.log(2)) + math.log2(GREY_LEVELS)


def bits_of_images(
    ask: Estimator, process: Process, images: Tensor, levels: Sequence[Level], draws: Draws, probes: int
) -> Tensor:
    """Bits per dimension of uint8 images [B, C, H, W], as they are at the first of some rising levels; [B].

    Args:
        ask: see `log_density`, as process and levels.
        process: of the model.
        images: of which `lowest_state` makes what is scored.
        levels: rising.
        draws: for that and for the probes.
        probes: how many for each call; 0 for the exact divergence.
    """
    u = lowest_state(process, images, levels[0], draws)
    log_p = log_density(ask, process, u, levels, rademacher(draws, probes) if probes else basis)
    return bits_per_dimension(log_p, process.gains(levels[0], u), u)


def excess_at_most(gains: Gains) -> float:
    """By how many bits a dimension a perfect model's result can exceed the entropy of the images, at most.

    The model knows images X plus the normal noise G of the lowest level, of standard deviation σ = B/A grey levels, and
    is asked about X + V, V = G + a uniform share of a grey level. As p(x + V) ≥ P(x) p_G(V), the excess is at most the
    cross-entropy E[-log₂ p_G(V)] = ½ log₂ 2πσ² + (σ² + 1/12)/(2σ²) log₂ e, the mean over frequencies. It is as much
    where the grey levels of images lie far apart. Smallest at σ = √(1/12), it grows without limit as σ falls.
    """
    log_sigma = gains.noise.double().log() - gains.log_signal.double() + math.log(GREY_LEVELS)
    nats = log_sigma + 0.5 * math.log(2 * math.pi) + 0.5 + torch.exp(-2 * log_sigma) / 24
    return nats.mean().item() / math.log(2)


def prior_gap(second_moment: Tensor, process: Process, level: Level) -> float:
    """What sampling from the prior costs, because the image is not quite gone at the first level, in bits a dimension.

    The Kullback-Leibler divergence of N(0, A²E[u_0²] + B²) from the prior. It is part of a model's bits.

    Args:
        second_moment: E[u_0²] of each coefficient, [C, H, W].
        process: which ends in normal noise.
        level: the first.
    """
    like = second_moment[None]
    gains, deviation = process.gains(level, like), prior_deviation(process, level, like)
    ratio = (gains.signal.square() * like + gains.noise.square()) / deviation.square()
    return (ratio - 1 - ratio.log()).mean().item() / 2 / math.log(2)
