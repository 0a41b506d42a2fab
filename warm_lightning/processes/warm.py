"""The warm family: variance-exploding noise on a blurred image (Section 4.1)."""

from jsonargparse import lazy_instance
from torch import Tensor

from warm_lightning.processes.base import Process
from warm_lightning.processes.paths import ConstantBNR, Path
from warm_lightning.rng import Draws
from warm_lightning.spectral import dct, log_blur_mask
from warm_lightning.types import Gains, Level


class Warm(Process):
    """Blur-noise mixture diffusion: A = M_α, B = β (Eq. 4). The clock is the noise level β.

    Args:
        path: which α goes with a β; the paper's is a constant BNR of 0.5.
    """

    def __init__(self, path: Path = lazy_instance(ConstantBNR)) -> None:
        self.path = path

    def level(self, clock: Tensor) -> Level:
        return Level(alpha=self.path(clock), beta=clock)

    def draw_level(self, clock: Tensor, draws: Draws) -> Level:
        return Level(alpha=self.path.draw(clock, draws), beta=clock)

    def gains(self, level: Level, like: Tensor) -> Gains:
        noise = level.beta.to(device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)
        return Gains(log_signal=log_blur_mask(level.alpha, like), noise=noise)

    def prior(self, noise: Tensor, level: Level) -> Tensor:
        """N(0, β_N² I): at the first level next to nothing of the image is left (Algorithm 2, line 2)."""
        return level.beta.to(device=noise.device, dtype=noise.dtype).view(-1, 1, 1, 1) * dct(noise)


class Hot(Warm):
    """EDM (Karras et al. 2022): the noise axis of the plane, BNR = 0."""

    def __init__(self) -> None:
        super().__init__(ConstantBNR(0.0))
