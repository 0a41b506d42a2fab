"""Restoration: sampling that starts from a blurred and noisy image instead of the prior."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from warm_lightning.errors import UserError, check
from warm_lightning.parameterizations import denoised_image
from warm_lightning.processes.base import LARGE, Process, per_image
from warm_lightning.rng import Draws
from warm_lightning.samplers import Grid, Sampler
from warm_lightning.samplers.rules import fresh_noise
from warm_lightning.spectral import dct, idct, log_blur_mask
from warm_lightning.types import Estimator, Level

TOLERANCE = 0.01
"""The relative distance from a path within which a blur or noise level counts as on it."""
HALVINGS = 120
"""Number of times that a search halves the clock's range: enough for any float64."""

Coordinate = Literal["alpha", "beta"]


def close(a: float, b: float) -> bool:
    """Whether two levels of blur or noise are the same within `TOLERANCE`."""
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def find_clock(process: Process, first: Tensor, coordinate: Coordinate, value: float) -> Tensor | None:
    """The clock reading, between 0 and `first`, at which the blur level α or the noise level β has a value.

    It is found by bisection: both coordinates of every path grow with the clock, or are constant.

    Args:
        process: any process.
        first: clock reading at which sampling starts, float64 [1].
        coordinate: α or β.
        value: its value; up to `TOLERANCE` beyond an end of the path it counts as that end.

    Returns:
        The reading, float64 [1]; None where the path does not have the value, or has it everywhere.
    """

    def at(clock: Tensor) -> float:
        return getattr(process.level(clock), coordinate).item()

    low, high = torch.zeros_like(first), first
    smallest, largest = at(low), at(high)
    inside = smallest <= value <= largest or close(value, smallest) or close(value, largest)
    if smallest == largest or not inside:
        return None
    if value <= smallest:
        return low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) < value else (low, middle)
    return high


def find_level(process: Process, first: Tensor, alpha: float, beta: float) -> Level | None:
    """The level of a process with a blur of α pixels and noise β, within `TOLERANCE`; None if that is off its path.

    It is found by its noise, or else by its blur.

    Args:
        process: any process.
        first: clock reading at which sampling starts, float64 [1].
        alpha: α ≥ 0.
        beta: β ≥ 0.
    """
    clocks = find_clock(process, first, "beta", beta), find_clock(process, first, "alpha", alpha)
    for level in (process.level(clock) for clock in clocks if clock is not None):
        if close(level.alpha.item(), alpha) and close(level.beta.item(), beta):
            return level
    return None


def known_nearby(process: Process, first: Tensor, alpha: float, beta: float) -> str:
    """A text that names the model's levels nearest to one that is off its path."""
    words = []
    least, most = (_partner(process.nearest_path(a, beta), first, "beta", beta) for a in (0.0, LARGE))
    if least is not None and most is not None:
        words.append(f"at noise {beta:g} the model has a blur of {_span(least, most)} pixels")
    least, most = (_partner(process.nearest_path(alpha, b), first, "alpha", alpha) for b in (0.0, LARGE))
    if least is not None and alpha > 0:
        words.append(
            f"at a blur of {alpha:g} pixels, noise "
            + (_span(least, most) if most is not None else f"{least:.4g} or more")
        )
    if words:
        return "; ".join(words)
    ends = [process.level(clock) for clock in (torch.zeros_like(first), first)]
    blur, noise = (_span(*(getattr(end, name).item() for end in ends)) for name in ("alpha", "beta"))
    return f"its blur is {blur} pixels and its noise {noise}"


def _partner(process: Process, first: Tensor, coordinate: Coordinate, value: float) -> float | None:
    """The value of one coordinate of the plane where the other has a given value."""
    clock = find_clock(process, first, coordinate, value)
    return None if clock is None else getattr(process.level(clock), "alpha" if coordinate == "beta" else "beta").item()


def _span(low: float, high: float) -> str:
    ends = dict.fromkeys(f"{end + 0:.4g}" for end in (low, high))
    return " to ".join(ends)


SHORT = 0.1
"""If the first step would be shorter than this share of the grid's next step, the grid's level is left out."""


def observe(x: Tensor, alpha: float, beta: float, draws: Draws) -> Tensor:
    """Degrade images by a blur with reflected borders and white normal noise: y = V M_α Vᵀx + βz.

    Args:
        x: clean pixels in [-1, 1], [B, C, H, W].
        alpha: standard deviation of the Gaussian blur in pixels.
        beta: standard deviation of the noise.
        draws: the source of the noise.
    """
    mask = log_blur_mask(torch.tensor([alpha]), x).exp()
    return idct(mask * dct(x)) + beta * draws.normal(*x.shape[1:], dtype=x.dtype).to(x)


@dataclass(frozen=True)
class Start:
    """The level of a model's path at which restoration starts; `find_start` makes it.

    Attributes:
        process: the process along that path.
        level: the level, with entries [1].
        beta: noise level of the observed images.
        fill: whether noise is added to them, up to the noise of the level.
    """

    process: Process
    level: Level
    beta: float
    fill: bool

    def enter(self, y: Tensor, draws: Draws) -> Tensor:
        """The state u at the level for observed pixels [B, C, H, W], scaled and with the missing noise added."""
        scale = per_image(self.process.scale(self.level), y)
        u = scale * dct(y)
        if not self.fill:
            return u
        missing = self.process.gains(self.level, y).noise.square() - (scale * self.beta).square()
        return u + missing.clamp(min=0).sqrt() * fresh_noise(draws, y)

    def levels(self, grid: Grid) -> list[Level]:
        """The start, and the levels of a grid that come after it."""
        clocks = grid.clocks()
        beyond = clocks[clocks < self.level.clock]
        # A very short step costs a call and gains nothing; the start may be a level of the grid, up to rounding.
        if len(beyond) > 1 and self.level.clock - beyond[0] < SHORT * (beyond[0] - beyond[1]):
            beyond = beyond[1:]
        return [self.level, *(self.process.level(clock) for clock in beyond.split(1))]


def find_start(process: Process, grid: Grid, like: Tensor, alpha: float, beta: float, add_noise: bool = False) -> Start:
    """The level at which a model can restore images with a blur of α pixels and white noise β.

    It is the level of the path with this blur and noise, within `TOLERANCE`; or, where noise may be added, the level
    with this blur, if its noise is not less. Noise of a colour is not less where it is β at its weakest frequency. A
    model that was trained on many paths takes the one nearest to (α, β).

    Args:
        process: the process of the model.
        grid: the grid of its sampler, whose first level is the noisiest of the model.
        like: any tensor [B, C, H, W] of the images' size.
        alpha: α ≥ 0.
        beta: β ≥ 0, in units of images in [-1, 1].
        add_noise: whether noise may be added.

    Raises:
        UserError: the model has no such level.
    """
    check(0 <= alpha < math.inf, f"blur is {alpha:g}: a blur is 0 pixels or more")
    check(0 <= beta < math.inf, f"noise is {beta:g}: a noise level is 0 or more, images being in [-1, 1]")
    check(alpha > 0 or beta > 0, "blur 0 and noise 0: there is nothing to restore; say how degraded the images are")
    process, first = process.nearest_path(alpha, beta), grid.clocks()[:1]
    what = f"a blur of {alpha:.4g} pixels and noise {beta:.4g}"
    level = find_level(process, first, alpha, beta)
    on_path = level is not None
    if level is None:
        nearby = f"the model knows no level with {what}: {known_nearby(process, first, alpha, beta)}"
        clock = find_clock(process, first, "alpha", alpha)
        if clock is not None:
            level = process.level(clock)
        if level is None or level.beta.item() < beta:
            raise UserError(f"{nearby}; restore from one of these")
        check(add_noise, f"{nearby}; with add_noise the missing noise is added")
    check(
        not process.ends(level),
        f"{what} is the last level of the model, at which sampling ends: there is nothing that it could restore",
    )
    gains, scale = process.gains(level, like), per_image(process.scale(level), like)
    weakest = (gains.noise.min() / (scale * level.beta)).item() if beta else 1.0
    noisier = find_level(process, first, alpha, beta / weakest) if 0 < weakest < 1 - TOLERANCE else None
    if noisier is not None:
        check(
            add_noise,
            f"the model's noise at {what} is not white, and at some frequencies {weakest:.3g} times that; with "
            f"add_noise the images get the model's noise at level {beta / weakest:.4g}, which is enough at all of them",
        )
        level, on_path = noisier, False
        gains, scale = process.gains(level, like), per_image(process.scale(level), like)
    off = (gains.signal - scale * log_blur_mask(level.alpha, like).exp()).abs().max() / scale.max()
    check(
        off.item() <= TOLERANCE,
        f"the model's blur at {what} is not Gaussian, it differs by {off.item():.1%} of the image: it cannot restore "
        "from there",
    )
    white = scale * beta
    check(
        bool((gains.noise >= (1 - TOLERANCE) * white).all()),
        f"the model's noise at {what} is not white, and too little at some frequencies: it cannot restore from there",
    )
    lacking = not on_path or bool((gains.noise > (1 + TOLERANCE) * white).any())
    check(
        add_noise or not lacking,
        f"the model's noise at {what} is not white, but up to {(gains.noise / white).max().item():.3g} times that at "
        "high frequencies; with add_noise the missing noise is added",
    )
    return Start(process, level, beta, lacking)


@torch.no_grad()
def restore(
    estimator: Estimator, sampler: Sampler, start: Start, y: Tensor, draws: Draws, mean: bool = False
) -> Tensor:
    """Clean images for degraded ones: samples from the posterior, or an estimate of its mean.

    Args:
        estimator: the network or oracle.
        sampler: how to sample, on the levels of its grid below the start.
        start: the level of the images.
        y: degraded pixels, [B, C, H, W]; their dtype (float64 by choice) is the state's.
        draws: random numbers for added noise and a stochastic rule, in this order.
        mean: whether to return x̂0 of a single call (D + R for Table 5d).

    Returns:
        Pixels [B, C, H, W], about [-1, 1].
    """
    u = start.enter(y, draws)
    if mean:
        return idct(denoised_image(u, estimator(u, start.level), start.process.gains(start.level, u)))
    return idct(sampler.descend(estimator, start.process, u, start.levels(sampler.grid), draws))
