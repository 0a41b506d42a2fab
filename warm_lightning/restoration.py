"""From a blurred and noisy image, instead of from the prior, to a clean one: inference at a level of the process."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from warm_lightning.errors import UserError, check
from warm_lightning.processes.base import Process, per_image
from warm_lightning.rng import Draws
from warm_lightning.samplers import Grid, Sampler, denoised_image
from warm_lightning.samplers.rules import fresh_noise
from warm_lightning.spectral import dct, idct, log_blur_mask
from warm_lightning.types import Estimator, Level

TOLERANCE = 0.01
"""By how much, relative to the larger, a blur or noise level may be beside a path and still count as on it."""
HALVINGS = 120
"""Of the clock's range in a search: enough for any float64, however small."""

Coordinate = Literal["alpha", "beta"]


def close(a: float, b: float) -> bool:
    """Whether two levels of blur or noise are the same within `TOLERANCE`."""
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def find_clock(process: Process, first: Tensor, coordinate: Coordinate, value: float) -> Tensor | None:
    """Where the blur level α or the noise level β has a value, between clock readings 0 and `first`.

    It asks no process what it is: both coordinates of every path grow with the clock, or are constant.

    Args:
        process: any.
        first: clock reading at which sampling starts, float64 [1].
        coordinate: which of the two.
        value: of it; up to `TOLERANCE` beyond the ends of the path it is at that end.

    Returns:
        The reading, float64 [1]; None where the path has no such value, or none but that.
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

    Found by its noise, or else by its blur.

    Args:
        process: any.
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
    """Which levels a model knows around one that is off its path, in words."""
    words = []
    least, most = (_partner(process.through(a, beta), first, "beta", beta) for a in (0.0, 1e9))
    if least is not None and most is not None:
        words.append(f"at noise {beta:g} it knows a blur of {_span(least, most)} pixels")
    least, most = (_partner(process.through(alpha, b), first, "alpha", alpha) for b in (0.0, 1e9))
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
    """The other coordinate where one has a value."""
    clock = find_clock(process, first, coordinate, value)
    return None if clock is None else getattr(process.level(clock), "alpha" if coordinate == "beta" else "beta").item()


def _span(low: float, high: float) -> str:
    ends = dict.fromkeys(f"{end + 0:.4g}" for end in (low, high))
    return " to ".join(ends)


SHORT = 0.1
"""Of the grid's next step: a first step that is shorter is left out."""


def observe(x: Tensor, alpha: float, beta: float, draws: Draws) -> Tensor:
    """y = V M_α Vᵀx + βz: images blurred with reflected borders, and then given white normal noise.

    Args:
        x: clean pixels in [-1, 1], [B, C, H, W].
        alpha: standard deviation of the Gaussian blur in pixels.
        beta: of the noise.
        draws: where the noise comes from.
    """
    mask = log_blur_mask(torch.tensor([alpha]), x).exp()
    return idct(mask * dct(x)) + beta * draws.normal(*x.shape[1:], dtype=x.dtype).to(x)


@dataclass(frozen=True)
class Start:
    """Where on a model's path restoration starts; `find_start` makes it.

    Attributes:
        process: the process along that path.
        level: the level, [1].
        beta: noise of the observed images.
        fill: whether noise is added to them, so that they have all that the level has.
    """

    process: Process
    level: Level
    beta: float
    fill: bool

    def enter(self, y: Tensor, draws: Draws) -> Tensor:
        """Observed pixels [B, C, H, W] → u at the level, scaled and with the noise that was missing."""
        scale = per_image(self.process.scale(self.level), y)
        u = scale * dct(y)
        if not self.fill:
            return u
        missing = self.process.gains(self.level, y).noise.square() - (scale * self.beta).square()
        return u + missing.clamp(min=0).sqrt() * fresh_noise(draws, y)

    def levels(self, grid: Grid) -> list[Level]:
        """The start, and what of a grid is beyond it."""
        clocks = grid.clocks()
        beyond = clocks[clocks < self.level.clock]
        # It would cost a call for next to nothing; and the start may be a level of the grid but for rounding.
        if len(beyond) > 1 and self.level.clock - beyond[0] < SHORT * (beyond[0] - beyond[1]):
            beyond = beyond[1:]
        return [self.level, *(self.process.level(clock) for clock in beyond.split(1))]


def find_start(process: Process, grid: Grid, like: Tensor, alpha: float, beta: float, add_noise: bool = False) -> Start:
    """Where a model can take up images with a blur of α pixels and white noise β.

    The level is the one of the path that has both, within `TOLERANCE`; or, where noise may be added, the one that has
    the blur, if it has no less noise. A model that knows many paths takes the one nearest to (α, β).

    Args:
        process: the model's.
        grid: of its sampler; its first level is the noisiest that the model is taken to know.
        like: images [B, C, H, W], of which only the size counts.
        alpha: α ≥ 0.
        beta: β ≥ 0, in units of images in [-1, 1].
        add_noise: whether noise may be added.

    Raises:
        UserError: the model knows no such level.
    """
    check(0 <= alpha < math.inf, f"--blur is {alpha:g}: a blur is 0 pixels or more")
    check(0 <= beta < math.inf, f"--noise is {beta:g}: a noise level is 0 or more, images being in [-1, 1]")
    check(alpha > 0 or beta > 0, "--blur 0 and --noise 0: there is nothing to restore; say how degraded the images are")
    process, first = process.through(alpha, beta), grid.clocks()[:1]
    what = f"a blur of {alpha:.4g} pixels and noise {beta:.4g}"
    level = find_level(process, first, alpha, beta)
    on_path = level is not None
    if level is None:
        nearby = f"the model knows no level with {what}: {known_nearby(process, first, alpha, beta)}"
        clock = find_clock(process, first, "alpha", alpha)
        if clock is None or (level := process.level(clock)).beta.item() < beta:
            raise UserError(f"{nearby}; restore from one of these")
        check(add_noise, f"{nearby}; with --add_noise the images get what they lack")
        assert level is not None
    gains, scale = process.gains(level, like), per_image(process.scale(level), like)
    off = (gains.signal - scale * log_blur_mask(level.alpha, like).exp()).abs().max() / scale.max()
    check(
        off.item() <= TOLERANCE,
        f"the model's images are blurred otherwise than by a Gaussian, by {off.item():.1%} of the image at {what}: it "
        "cannot restore from there",
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
        "high frequencies; with --add_noise the images get what they lack",
    )
    return Start(process, level, beta, lacking)


@torch.no_grad()
def restore(ask: Estimator, sampler: Sampler, start: Start, y: Tensor, draws: Draws, mean: bool = False) -> Tensor:
    """Clean images for degraded ones: a sample from what they may have been, or an estimate of its mean.

    Args:
        ask: the network or oracle.
        sampler: its grid's levels below the start are those that sampling stops at.
        start: where the images are.
        y: degraded pixels, [B, C, H, W]; their dtype (float64 by choice) is the state's.
        draws: where added noise and a stochastic rule get theirs, in this order.
        mean: whether to return x̂0 of a single call (D + R for Table 5d).

    Returns:
        Pixels [B, C, H, W], about [-1, 1].
    """
    u = start.enter(y, draws)
    if mean:
        return idct(denoised_image(u, ask(u, start.level), start.process.gains(start.level, u)))
    return idct(sampler.descend(ask, start.process, u, start.levels(sampler.grid), draws))
