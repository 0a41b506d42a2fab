"""Straight paths from image to noise: flow matching, with and without blur."""

from dataclasses import replace

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.processes.base import per_image
from warm_lightning.processes.warm import BlurPath, ConstantBNR, Warm
from warm_lightning.spectral import log_blur_mask
from warm_lightning.types import Gains, Level

MOST_NOISE = 1000.0
"""β at t = 1, where nothing is left of the image and t/(1 - t) would be infinite."""


class HeatDissipation(BlurPath):
    """The blur of heat dissipation flow matching: α = strength·√(-ln(1 - t)) = strength·√(ln(1 + β)) for β = t/(1 - t).

    Then the gain of a frequency λ is a power of the time, M = (1 - t)^(strength²·λ/2).

    Args:
        strength: in pixels, ≥ 0.
    """

    def __init__(self, strength: float = 1.0) -> None:
        check(strength >= 0, f"strength is {strength}: a blur is 0 pixels or more")
        self.strength = strength

    def __call__(self, beta: Tensor) -> Tensor:
        return self.strength * torch.log1p(beta).sqrt()


class FlowMatching(Warm):
    """Flow matching (Lipman et al. 2023; Liu et al. 2023): A = 1 - t and B = t, from pure noise at t = 1.

    The clock is t, from 0 at the image to 1; both papers count from the noise. Its images are those of EDM at the noise
    level β = t/(1 - t), multiplied by 1 - t. With blur, A = (1 - t)·M_α, and its images are those of the warm family.

    Args:
        blur: the blur level α at a noise level β; None for no blur, as in flow matching itself. Its name is not that of
            `Warm`, whose path it would take over where a configuration replaces that process by this one.
    """

    max_clock = 1.0

    def __init__(self, blur: BlurPath | None = None) -> None:
        super().__init__(blur or ConstantBNR(0.0))

    def noise_level(self, clock: Tensor) -> Tensor:
        return (clock / (1 - clock)).clamp(max=MOST_NOISE)

    def scale(self, level: Level) -> Tensor:
        return 1 - level.clock

    def gains(self, level: Level, like: Tensor) -> Gains:
        clock = per_image(level.clock, like)
        return Gains(torch.log1p(-clock) + log_blur_mask(level.alpha, like), clock)


class LowPassFlowMatching(FlowMatching):
    """Flow matching with noise that loses high frequencies near the image: B = t·M_std, std = strength·(1 - t).

    An operator on the noise, diagonal in frequency, is the idea of low-pass flow matching (Ruscio & Rusch 2026), whose
    noise is white where sampling starts and has ever less power at high frequencies as the path nears the image. Which
    operator they use is not known here: this one is the Gaussian blur. Without it, it is flow matching.

    Args:
        strength: standard deviation in pixels of the blur of the noise at t = 0, ≥ 0.
    """

    def __init__(self, strength: float = 0.5) -> None:
        super().__init__()
        check(strength >= 0, f"strength is {strength}: a blur is 0 pixels or more")
        self.strength = strength

    def gains(self, level: Level, like: Tensor) -> Gains:
        gains = super().gains(level, like)
        return replace(gains, noise=gains.noise * log_blur_mask(self.strength * (1 - level.clock), like).exp())
