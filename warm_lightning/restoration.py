"""From a blurred and noisy image, instead of from the prior, to a clean one: inference at a level of the process."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from warm_lightning.errors import UserError, check
from warm_lightning.processes import Process
from warm_lightning.processes.base import per_image
from warm_lightning.processes.locate import TOLERANCE, find_clock, find_level, known_nearby
from warm_lightning.rng import Draws
from warm_lightning.samplers import Grid, Sampler, clean_view
from warm_lightning.samplers.rules import fresh_noise
from warm_lightning.spectral import dct, idct, log_blur_mask
from warm_lightning.types import Estimator, Level

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
        return idct(clean_view(u, ask(u, start.level), start.process.gains(start.level, u)))
    return idct(sampler.descend(ask, start.process, u, start.levels(sampler.grid), draws))
