"""The warm family: variance-exploding noise on a blurred image (Section 4.1)."""

import math
from abc import ABC, abstractmethod
from copy import copy

import torch
from torch import Tensor

from warm_lightning.defaults import default
from warm_lightning.errors import check
from warm_lightning.processes.base import Process, per_image
from warm_lightning.rng import Draws
from warm_lightning.types import Level


class BlurPath(ABC):
    """A curve β ↦ α through the blur-noise plane, along which a model is sampled and, by default, trained."""

    @abstractmethod
    def __call__(self, beta: Tensor) -> Tensor:
        """The blur level α ≥ 0 in pixels at noise level β ≥ 0, [B] → [B].

        It must not fall with β, since `restoration` searches it by bisection.
        """

    def draw(self, beta: Tensor, draws: Draws) -> Tensor:
        """The blur level of training at a noise level; it may be random."""
        return self(beta)

    def nearest_path(self, alpha: float, beta: float) -> "BlurPath":
        """The path nearest to (α, β), among the paths that a model of this one was trained on."""
        return self


class ConstantBNR(BlurPath):
    """A constant blur-to-noise ratio: the ray α = BNR·β (Eq. 10).

    Args:
        bnr: blur-to-noise ratio in pixels per unit of noise, ≥ 0; the paper's choice is 0.5, and 0 is EDM.
    """

    def __init__(self, bnr: float = 0.5) -> None:
        check(bnr >= 0, f"bnr is {bnr}: a blur-to-noise ratio is 0 (noise only) or more")
        self.bnr = bnr

    def __call__(self, beta: Tensor) -> Tensor:
        return self.bnr * beta


class PowerLaw(BlurPath):
    """A power law α = bnr·β^exponent: the BNR depends on the noise level, and is `bnr` at β = 1.

    For a spectrum S = c/λˢ and an exponent of 1/s, the blur attenuates the signal equally at every level where the
    signal meets the noise (an extension of Section 4.4, whose power law 1/f² is s = 1, since λ is a squared frequency).
    """

    def __init__(self, bnr: float = 0.5, exponent: float = 1.0) -> None:
        check(bnr >= 0, f"bnr is {bnr}: a blur-to-noise ratio is 0 (noise only) or more")
        check(
            exponent > 0,
            f"exponent is {exponent}: it must be positive, so that no blur is left where no noise is",
        )
        self.bnr = bnr
        self.exponent = exponent

    def __call__(self, beta: Tensor) -> Tensor:
        return self.bnr * beta**self.exponent


class BlurringSchedule(BlurPath):
    """Blurring Diffusion's schedules as a path: β = tan(πt/2) and α = blur_max·sin²(πt/2) (Eqs. 18 and 19).

    Without t, α = blur_max·β²/(1 + β²), and BNR(t) = blur_max/2 · sin(πt) (Eq. 20).

    Args:
        blur_max: the largest blur in pixels, ≥ 0; 20 in the paper.
    """

    def __init__(self, blur_max: float = 20.0) -> None:
        check(blur_max >= 0, f"blur_max is {blur_max}: a blur is 0 pixels or more")
        self.blur_max = blur_max

    def __call__(self, beta: Tensor) -> Tensor:
        return self.blur_max * beta**2 / (1 + beta**2)


class RandomBNR(BlurPath):
    """Rays with a BNR drawn at random for each training image, so that one network serves a range of BNRs.

    Args:
        low: smallest BNR trained on, ≥ 0.
        high: largest.
        bnr: BNR of the ray for sampling; any in the range, without training again.
        power: p > 0 of the law low + (high-low)·uᵖ with uniform u: 1 is uniform, and a larger one favours small BNRs.
    """

    def __init__(self, low: float = 0.0, high: float = 2.0, bnr: float = 0.5, power: float = 1.0) -> None:
        check(
            0 <= low <= bnr <= high,
            f"bnr is {bnr}, its range {low} to {high}: need 0 <= low <= bnr <= high, the range of training",
        )
        check(power > 0, f"power is {power}: it must be positive")
        self.low = low
        self.high = high
        self.bnr = bnr
        self.power = power

    def __call__(self, beta: Tensor) -> Tensor:
        return self.bnr * beta

    def nearest_path(self, alpha: float, beta: float) -> BlurPath:
        bnr = alpha / beta if beta > 0 else self.high if alpha > 0 else self.bnr
        return RandomBNR(self.low, self.high, min(max(bnr, self.low), self.high), self.power)

    def draw(self, beta: Tensor, draws: Draws) -> Tensor:
        bnr = self.low + (self.high - self.low) * draws.uniform(dtype=beta.dtype) ** self.power
        return bnr * beta


class Warm(Process):
    """Warm Diffusion, blur-noise mixture diffusion: A = M_α, B = β (Eq. 4). The clock is the noise level β.

    Args:
        path: the blur level α at a noise level β; in the paper a constant BNR of 0.5.
    """

    def __init__(self, path: BlurPath = default(ConstantBNR)) -> None:
        self.path = path

    def noise_level(self, clock: Tensor) -> Tensor:
        """The noise level β at a clock reading, [B] → [B]."""
        return clock

    def level(self, clock: Tensor) -> Level:
        beta = self.noise_level(clock)
        return Level(self.path(beta), beta, clock)

    def nearest_path(self, alpha: float, beta: float) -> "Warm":
        nearest = copy(self)
        nearest.path = self.path.nearest_path(alpha, beta)
        return nearest

    def draw_level(self, clock: Tensor, draws: Draws) -> Level:
        beta = self.noise_level(clock)
        return Level(self.path.draw(beta, draws), beta, clock)


class Hot(Warm):
    """EDM (Karras et al. 2022): the noise axis of the plane, BNR = 0.

    Args:
        beta_min: the lowest noise level above 0 that the network knows; None for no limit. A sampler's grid is narrowed
            to the limits, as EDM's sampler does with a network's sigma_min and sigma_max.
        beta_max: the highest noise level that the network knows; None for no limit.
    """

    def __init__(self, beta_min: float | None = None, beta_max: float | None = None) -> None:
        super().__init__(ConstantBNR(0.0))
        low, high = beta_min or 0.0, math.inf if beta_max is None else beta_max
        check(0 <= low < high, f"the network knows noise from {low:g} to {high:g}: need 0 <= beta_min < beta_max")
        self.known_clocks = low, high


class PFGMpp(Hot):
    """PFGM++ (Xu et al. 2023): EDM with heavier-tailed noise, β·z·√(D/χ²_D), one chi-square draw per image.

    It is Student's t noise with D degrees of freedom: PFGM++'s perturbation kernel in D extra dimensions at r = β√D,
    whose norm the paper draws by a Beta distribution. The limit D → ∞ is EDM.

    Args:
        extra_dims: D ≥ 1; the paper uses 128 and 2048 for CIFAR-10, and 128 for FFHQ.
    """

    def __init__(self, extra_dims: float = 2048) -> None:
        super().__init__()
        check(extra_dims >= 1, f"extra_dims is {extra_dims}: PFGM++'s D is 1 or more")
        self.extra_dims = extra_dims
        self.noise_variance = extra_dims / (extra_dims - 2) if extra_dims > 2 else math.inf  # E 1/χ²_D = 1/(D-2)

    def noise(self, normal: Tensor, draws: Draws) -> Tensor:
        return normal * (self.extra_dims / per_image(draws.chi_square(self.extra_dims), normal)).sqrt()

    def log_density(self, squares: Tensor, size: int) -> Tensor:
        """The log density of Student's law in N dimensions with D degrees of freedom, -(N+D)/2 · ln(1 + ‖z‖²/D)."""
        return -(size + self.extra_dims) / 2 * torch.log1p(squares / self.extra_dims)
