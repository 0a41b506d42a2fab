"""Blurring Diffusion (Hoogeboom & Salimans 2022) with its authors' gains.

`BlurringSchedule` is the same path in the warm family.
"""

import math

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.processes.base import Process, per_image
from warm_lightning.rng import Draws
from warm_lightning.spectral import dct, log_blur_mask
from warm_lightning.types import Gains, Level


class BlurringDiffusion(Process):
    """Blurring Diffusion: A = a_t·d_t and B = σ_t with a cosine noise schedule (Eqs. 25-27, Appendix A.1 of its paper).

    Sampling starts from pure noise.

    The clock is t in [0, 1]. The logarithmic signal-to-noise ratio is -2 ln tan θ_t with θ_t linear in t, so that
    a_t = cos θ_t and σ_t = sin θ_t. At the last level, t = 0, some noise is left: σ_0 = 0.0067.

    Args:
        blur_max: σ_{B,max}, the largest blur in pixels, ≥ 0; 20 in their paper, and 0 is their denoising baseline.
        power: of the blur schedule blur_max·sin(πt/2)^power, 2 as recommended, or 1.
        d_min: the least gain of the blur, so that undoing it does not amplify errors without bound.
        log_snr_max: logarithmic signal-to-noise ratio at t = 0, and minus that at t = 1.
    """

    max_clock = 1.0

    def __init__(
        self, blur_max: float = 20.0, power: float = 2.0, d_min: float = 0.001, log_snr_max: float = 10.0
    ) -> None:
        check(blur_max >= 0, f"blur_max is {blur_max}: a blur is 0 pixels or more")
        check(power > 0, f"power is {power}: it must be positive, 2 for their sin² and 1 for their sin")
        check(0 <= d_min < 1, f"d_min is {d_min}: it must be 0 or more, and less than 1")
        check(log_snr_max > 0, f"log_snr_max is {log_snr_max}: it must be positive")
        self.blur_max = blur_max
        self.power = power
        self.d_min = d_min
        self.min_angle, self.max_angle = (math.atan(math.exp(sign * log_snr_max / 2)) for sign in (-1, 1))

    def angle(self, clock: Tensor) -> Tensor:
        """The angle θ_t in (0, π/2)."""
        return self.min_angle + (self.max_angle - self.min_angle) * clock

    def level(self, clock: Tensor) -> Level:
        blur = self.blur_max * torch.sin(math.pi / 2 * clock.clamp(0, 1)) ** self.power
        return Level(blur, self.angle(clock).tan(), clock)

    def scale(self, level: Level) -> Tensor:
        return self.angle(level.clock).cos()

    def gains(self, level: Level, like: Tensor) -> Gains:
        angle = per_image(self.angle(level.clock), like)
        return Gains(angle.cos().log() + self.log_damping(level, like), angle.sin())

    def log_damping(self, level: Level, like: Tensor) -> Tensor:
        """The log of the blur's gain, ln d_t = ln((1 - d_min)·M + d_min) (Eq. 26 of its paper), [B, 1, H, W]."""
        log_mask = log_blur_mask(level.alpha, like)
        if self.d_min == 0:
            return log_mask
        # For little blur this form keeps the digits of 1 - d_t, for much blur the other keeps those of d_t.
        little = torch.log1p((1 - self.d_min) * torch.expm1(log_mask))
        return torch.where(log_mask > -1, little, ((1 - self.d_min) * log_mask.exp() + self.d_min).log())

    def prior(self, normal: Tensor, level: Level, draws: Draws) -> Tensor:
        """Standard normal noise, N(0, I)."""
        return dct(normal)
