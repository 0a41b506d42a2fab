"""Oracles: exact estimates for data of a known law, in place of a trained network.

Each is an `Estimator` for one process, which every sampler takes like a model's.
"""

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.parameterizations import consistent
from warm_lightning.processes import Process
from warm_lightning.spectral import full_precision
from warm_lightning.types import Estimate, Gains, Level


class DatasetOracle:
    """The posterior mean E[x0 | x] for a finite set of images, all equally likely: their softmax-weighted mean.

    Args:
        u0: DCT coefficients of the images, [N, C, H, W].
        process: any process with noise whose density it knows.
    """

    def __init__(self, u0: Tensor, process: Process) -> None:
        self.u0 = u0
        self.process = process

    def __call__(self, u: Tensor, level: Level) -> Estimate:
        gains = self.process.gains(level, u)
        return consistent(posterior_mean(u, self.u0, self.process, gains), u, gains)


class GaussianOracle:
    """The posterior mean E[u0 | u] = A S/(A² S + B²) u for data N(0, diag S) over frequencies.

    Args:
        spectrum: S, the variance of each coefficient, broadcastable to [C, H, W].
        process: any process with normal noise.
    """

    def __init__(self, spectrum: Tensor, process: Process) -> None:
        self.spectrum = spectrum
        self.process = process

    def __call__(self, u: Tensor, level: Level) -> Estimate:
        gains = self.process.gains(level, u)
        clean = gains.signal * self.spectrum / self.marginal_variance(gains) * u
        return consistent(clean, u, gains)

    def marginal_variance(self, gains: Gains) -> Tensor:
        """The variance A² S + B² of u at a level."""
        return gains.signal.square() * self.spectrum + gains.noise.square()

    def exact_flow(self, u: Tensor, t: Level, s: Level) -> Tensor:
        """The exact solution of the probability-flow ODE from level t to level s, which keeps u's standard scores."""
        old, new = (self.marginal_variance(self.process.gains(level, u)) for level in (t, s))
        return u * (new / old).sqrt()


def posterior_mean(
    u: Tensor, candidates: Tensor, process: Process, gains: Gains, allowed: Tensor | None = None
) -> Tensor:
    """The posterior mean E[u0 | u] for a finite set of images, weighted by the density of the noise.

    Args:
        u: coefficients [B, C, H, W].
        candidates: u0 of the images, [N, C, H, W].
        process: the law of the noise.
        gains: at the level of each u.
        allowed: whether each image is a candidate for each u, bool [B, N]; None for all.

    Returns:
        [B, C, H, W].

    Raises:
        UserError: where there is no noise.
    """
    check(
        bool((gains.noise > 0).all()),
        "a process without noise has no posterior: choose one with noise, or another model.target",
    )
    whitened = (u / gains.noise).flatten(1)
    slope = (gains.signal / gains.noise).expand_as(u).flatten(1)
    flat = candidates.flatten(1)
    with full_precision(u.device):
        # ‖(u - A u0)/B‖² multiplied out: two matrix products instead of an image for each pair.
        squares = slope.square() @ flat.square().T - 2 * (slope * whitened) @ flat.T + whitened.square().sum(1, True)
        logits = process.log_density(squares.clamp(min=0), flat.shape[1])
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        return (torch.softmax(logits, dim=1) @ flat).view_as(u)
