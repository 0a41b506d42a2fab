"""The warm family: variance-exploding noise on a blurred image (Section 4.1)."""

import math
from copy import copy

import torch
from torch import Tensor

from warm_lightning.defaults import default
from warm_lightning.errors import check
from warm_lightning.processes.base import Process, per_image
from warm_lightning.processes.paths import ConstantBNR, Path
from warm_lightning.rng import Draws
from warm_lightning.types import Level


class Warm(Process):
    """Blur-noise mixture diffusion: A = M_α, B = β (Eq. 4). The clock is the noise level β.

    Args:
        path: which α goes with a β; the paper's is a constant BNR of 0.5.
    """

    def __init__(self, path: Path = default(ConstantBNR)) -> None:
        self.path = path

    def level(self, clock: Tensor) -> Level:
        return Level(self.path(clock), clock, clock)

    def through(self, alpha: float, beta: float) -> "Warm":
        nearest = copy(self)
        nearest.path = self.path.through(alpha, beta)
        return nearest

    def draw_level(self, clock: Tensor, draws: Draws) -> Level:
        return Level(self.path.draw(clock, draws), clock, clock)


class Hot(Warm):
    """EDM (Karras et al. 2022): the noise axis of the plane, BNR = 0."""

    def __init__(self) -> None:
        super().__init__(ConstantBNR(0.0))


class PFGMpp(Hot):
    """PFGM++ (Xu et al. 2023): EDM with heavier-tailed noise, β·z·√(D/χ²_D), one chi-square draw an image.

    It is the noise that an electric field in D extra dimensions gives at a distance r = β√D from the data; its
    norm follows the paper's Beta law. D → ∞ is EDM.

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
        """-(N+D)/2 · ln(1 + ‖z‖²/D), Student's law in N dimensions with D degrees of freedom."""
        return -(size + self.extra_dims) / 2 * torch.log1p(squares / self.extra_dims)
