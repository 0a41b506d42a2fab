"""The base class of forward processes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.learning import Learner
from warm_lightning.rng import Draws
from warm_lightning.spectral import dct, log_blur_mask
from warm_lightning.types import Estimate, Gains, Level

LARGE = 1e9
"""A blur in pixels, or a noise level, above all that models are trained on."""


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Values [B], one for each image, as [B, 1, 1, 1] in the dtype and on the device of `like`."""
    return values.to(like).view(-1, 1, 1, 1)


class Process(Learner, ABC):
    """A forward process that is diagonal in frequency (formula F of `types`).

    The levels of a process are numbered by a clock t, which training laws and sampling grids use. The clock is 0 at
    the last level, where sampling ends; its unit is up to the process (the warm family's clock is the noise level β).
    A subclass defines `level`, the point of the blur-noise plane at a clock reading. The other methods have defaults
    that suit most processes.

    Attributes:
        max_clock: the largest reading of the clock, where sampling starts; infinite for a process without one.
        known_clocks: the lowest and the highest clock reading that the network is to be asked about, but for the last
            level's 0; grids are narrowed to them.
        noise_variance: the variance of each coefficient of z in formula F; 1 for normal noise.
    """

    max_clock: float = math.inf
    known_clocks: tuple[float, float] = (0.0, math.inf)
    noise_variance: float = 1.0

    @abstractmethod
    def level(self, clock: Tensor) -> Level:
        """The level of sampling at a clock reading, [B] → [B]."""

    def nearest_path(self, alpha: float, beta: float) -> "Process":
        """This process on the path nearest to (α, β), among the paths that its model was trained on."""
        return self

    def draw_level(self, clock: Tensor, draws: Draws) -> Level:
        """The level of training at a clock reading, [B] → [B]; it may be random."""
        return self.level(clock)

    def scale(self, level: Level) -> Tensor:
        """The factor c(t) on both the blurred image and the noise at a level, [B]; 1 for no scaling.

        By default A = c·M_α and B = c·β.
        """
        return torch.ones_like(level.clock)

    def gains(self, level: Level, like: Tensor) -> Gains:
        """The gains A and B at a level, scaled blur and noise; dtype, device and size as of `like` [B, C, H, W]."""
        scale = per_image(self.scale(level), like)
        return Gains(scale.log() + log_blur_mask(level.alpha, like), scale * per_image(level.beta, like))

    def noise(self, normal: Tensor, draws: Draws) -> Tensor:
        """The noise z of formula F in pixels, made of standard normal pixels [B, C, H, W] and maybe further draws."""
        return normal

    def log_density(self, squares: Tensor, size: int) -> Tensor:
        """The log density ln p(z) up to a constant, of noise z with `size` numbers and ‖z‖² = squares."""
        return -squares / 2

    def prior(self, normal: Tensor, level: Level, draws: Draws) -> Tensor:
        """The start of sampling at the first level: coefficients u made of standard normal pixels, both [B, C, H, W].

        The default is B∘z, since next to nothing is left of the image (Algorithm 2, line 2).
        """
        return self.gains(level, normal).noise * dct(self.noise(normal, draws))

    def ends(self, level: Level) -> bool:
        """Whether this is the last level, at which sampling ends and no network is called."""
        return bool((level.clock == 0).all())

    def check_noise(self, levels: Sequence[Level], like: Tensor) -> None:
        """Check that there is noise at every one of some levels but the last level.

        Args:
            levels: [1] each.
            like: any tensor [B, C, H, W] of the images' size.

        Raises:
            UserError: there is a level without noise.
        """
        for level in levels:
            check(
                self.ends(level) or bool((self.gains(level, like).noise > 0).all()),
                f"{type(self).__name__} has no noise at {level.clock.item():g} of its clock, and no density there: "
                "choose a process with noise at every level but the last",
            )

    def degrade(self, truth: Estimate, gains: Gains) -> Tensor:
        """Formula F: the degraded u_t of clean coefficients and noise, all [B, C, H, W]."""
        return gains.signal * truth.clean + gains.noise * truth.noise
