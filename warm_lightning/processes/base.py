"""What every forward process declares."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from warm_lightning.errors import UserError
from warm_lightning.rng import Draws
from warm_lightning.spectral import dct, log_blur_mask
from warm_lightning.types import Estimate, Gains, Level


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """[B] → [B, 1, 1, 1] in the dtype and on the device of `like`."""
    return values.to(like).view(-1, 1, 1, 1)


class Process(ABC):
    """A forward process that is diagonal in frequency (formula F of `types`).

    A process has a clock t, by which noise laws and sampling grids speak of its levels; what t counts is its
    own affair (the warm family's clock is the noise level β itself), but that it is 0 at the last level. To add
    a process, say where on the blur-noise plane a clock reading lies. The rest is what most processes do, and is
    there to be overridden by those that do not.

    Attributes:
        last: the largest clock reading that the process knows.
        noise_variance: E z² of each coefficient of the noise z of formula F.
        learned: what `learn` has made of the training images, kept in checkpoints; None where it has still to.
    """

    last: float = math.inf
    noise_variance: float = 1.0
    learned: dict[str, Tensor] | None = {}  # noqa: RUF012  (replaced, never written to)

    @abstractmethod
    def level(self, clock: Tensor) -> Level:
        """The level at which sampling is when the clock reads `clock`, [B] → [B]."""

    def through(self, alpha: float, beta: float) -> "Process":
        """The process along the path nearest to a point of the plane, of those that a model of this one knows."""
        return self

    def draw_level(self, clock: Tensor, draws: Draws) -> Level:
        """The level at which training trains when the clock reads `clock`; random where a process is."""
        return self.level(clock)

    def scale(self, level: Level) -> Tensor:
        """By how much image and noise alike are scaled down at a level, 1 for not at all; [B]."""
        return torch.ones_like(level.clock)

    def gains(self, level: Level, like: Tensor) -> Gains:
        """A and B at a level, in the dtype and on the device of `like` [B, C, H, W]: scaled blur, scaled noise."""
        scale = per_image(self.scale(level), like)
        return Gains(scale.log() + log_blur_mask(level.alpha, like), scale * per_image(level.beta, like))

    def noise(self, normal: Tensor, draws: Draws) -> Tensor:
        """The z of formula F as pixels, from standard normal pixels [B, C, H, W] and, if need be, further draws."""
        return normal

    def log_density(self, squares: Tensor, size: int) -> Tensor:
        """ln p(z) but for a constant, of noise z of `size` numbers with ‖z‖² = squares."""
        return -squares / 2

    def prior(self, normal: Tensor, level: Level, draws: Draws) -> Tensor:
        """What sampling starts from at the first level: standard normal pixels [B, C, H, W] → u [B, C, H, W].

        Here B∘z, next to nothing being left of the image (Algorithm 2, line 2).
        """
        return self.gains(level, normal).noise * dct(self.noise(normal, draws))

    def learn(self, images: Iterable[Tensor]) -> dict[str, Tensor]:
        """What the prior needs to know of the training images, given in batches [b, C, H, W] in [-1, 1]."""
        return {}

    def what_was_learned(self) -> dict[str, Tensor]:
        """`learned`, or a UserError where the process has not learned anything yet."""
        if self.learned is None:
            raise UserError(
                f"{type(self).__name__} starts sampling from what it has learned of the training images, and has seen "
                "none: train it, or give the checkpoint of a trained model"
            )
        return self.learned

    def ends(self, level: Level) -> bool:
        """Whether this is the last level, where sampling returns what it has and no network is asked."""
        return bool((level.clock == 0).all())

    def degrade(self, truth: Estimate, gains: Gains) -> Tensor:
        """Formula F: clean coefficients and those of the noise → u_t, all [B, C, H, W]."""
        return gains.signal * truth.clean + gains.noise * truth.noise
