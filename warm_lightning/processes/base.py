"""What every forward process declares."""

from abc import ABC, abstractmethod

from torch import Tensor

from warm_lightning.rng import Draws
from warm_lightning.spectral import dct
from warm_lightning.types import Gains, Level


class Process(ABC):
    """A forward process that is diagonal in frequency (formula F of `types`).

    A process has a clock t, by which noise laws and sampling grids speak of its levels; what t counts is its
    own affair (the warm family's clock is the noise level β itself). To add one, say where on the plane a
    clock reading lies, what the gains are there and what sampling starts from.
    """

    @abstractmethod
    def level(self, clock: Tensor) -> Level:
        """The level at which sampling is when the clock reads `clock`, [B] → [B]."""

    def draw_level(self, clock: Tensor, draws: Draws) -> Level:
        """The level at which training trains when the clock reads `clock`; random where a process is."""
        return self.level(clock)

    @abstractmethod
    def gains(self, level: Level, like: Tensor) -> Gains:
        """A and B at a level, in the dtype and on the device of `like` [B, C, H, W]."""

    @abstractmethod
    def prior(self, noise: Tensor, level: Level) -> Tensor:
        """What sampling starts from at the first level: standard normal pixels [B, C, H, W] → u [B, C, H, W]."""

    def ends(self, level: Level) -> bool:
        """Whether this is the last level, where sampling returns what it has and no network is asked."""
        return bool((level.beta == 0).all())

    def degrade(self, u0: Tensor, noise: Tensor, gains: Gains) -> Tensor:
        """Formula F: clean coefficients and standard normal *pixels* → u_t, all [B, C, H, W]."""
        return gains.signal * u0 + gains.noise * dct(noise)
