"""Coloured noise: any process, with noise whose power depends on the frequency."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from warm_lightning.defaults import default
from warm_lightning.errors import check
from warm_lightning.learning import Learner
from warm_lightning.processes.base import Process
from warm_lightning.processes.warm import Hot
from warm_lightning.rng import Draws
from warm_lightning.spectral import dct, idct, log_blur_mask, positive_frequencies, second_moment
from warm_lightning.types import Gains, Level


class Colour(Learner, ABC):
    """The colour of noise: its standard deviation at each frequency, relative to white noise of the same power."""

    _made: tuple[Any, Tensor] = (None, torch.zeros(()))

    @abstractmethod
    def amplitudes(self, like: Tensor) -> Tensor:
        """The standard deviations up to a factor, ≥ 0, broadcastable to [C, H, W], for float64 images [B, C, H, W]."""

    def __call__(self, like: Tensor) -> Tensor:
        """The factors b with a mean square of 1, [1, 1 or C, H, W], in the dtype and on the device of `like`.

        The last ones are kept, so that a GPU does not wait for them at each call.
        """
        key = like.shape[1:], like.dtype, like.device, id(self.learned)
        if self._made[0] != key:
            with torch.inference_mode(False):  # or training after a validation could not use them
                found = self.amplitudes(torch.zeros(1, *like.shape[1:], dtype=torch.float64))
                scale = found.square().mean().sqrt()
                # A number over itself is 1, but for rounding: white noise is to be white to the bit.
                b = torch.where(found == scale, 1.0, found / scale)
                self._made = key, b.expand(found.shape[-3] if found.ndim > 2 else 1, *like.shape[-2:])[None].to(like)
        return self._made[1]


class PowerBand(Colour):
    """Noise whose amplitude is a power of the frequency, in a band of frequencies or in all.

    b is proportional to √λ^exponent for low ≤ √λ ≤ high, and to outside·√λ^exponent elsewhere. Where b is 0 images stay
    as they are, and sampling makes nothing there. It is the noise of SAGD (Scimeca et al. 2025), whose power law has an
    exponent from -0.06 to 0.08, and whose two bands are `high` with `outside` = γ_h/γ_l; and with an exponent of -1
    that of a Gaussian free field (Voleti et al. 2022).

    Args:
        exponent: 0 for white noise, less for more noise at low frequencies.
        low: lowest angular frequency √λ of the band, in radians per pixel.
        high: highest one; that of an image is below π√2.
        outside: factor on the amplitude outside of the band, ≥ 0.
    """

    def __init__(self, exponent: float = 0.0, low: float = 0.0, high: float = math.inf, outside: float = 0.0) -> None:
        check(0 <= low < high, f"a band from {low} to {high}: need 0 <= low < high")
        check(outside >= 0, f"outside is {outside}: a factor on the noise is 0 or more")
        self.exponent = exponent
        self.low = low
        self.high = high
        self.outside = outside

    def amplitudes(self, like: Tensor) -> Tensor:
        rates = positive_frequencies(like).sqrt()
        inside = (rates >= self.low) & (rates <= self.high)
        check(
            bool(inside.any()) or self.outside > 0,
            f"no frequency of the images is in the band from {self.low} to {self.high}, and there is no noise outside",
        )
        return rates**self.exponent * torch.where(inside, 1.0, self.outside)


class BlurredNoise(Colour):
    """White noise after a Gaussian blur (Alido et al. 2025, Appendix D): b is proportional to M_std.

    Args:
        std: standard deviation of the blur in pixels, ≥ 0.
    """

    def __init__(self, std: float = 0.5) -> None:
        check(std >= 0, f"std is {std}: a blur is 0 pixels or more")
        self.std = std

    def amplitudes(self, like: Tensor) -> Tensor:
        return log_blur_mask(torch.tensor([self.std], dtype=like.dtype), like)[0].exp()


class CorrelatedNoise(Colour):
    """Noise whose pixels at a distance d have the correlation (1 + d)^-eta (Flicker-DDPM; Mao 2026).

    The distance is along rows plus along columns. b² is the variance of each DCT coefficient of such noise, which are
    correlated a little there, and independent here.

    Args:
        eta: ≥ 0; 0.2 for CIFAR-10.
    """

    def __init__(self, eta: float = 0.2) -> None:
        check(eta >= 0, f"eta is {eta}: a correlation that grows with the distance is none")
        self.eta = eta

    def amplitudes(self, like: Tensor) -> Tensor:
        height, width = like.shape[-2:]
        rows, columns = (torch.arange(1 - size, size, dtype=torch.float64).abs() for size in (height, width))
        correlation = (1 + rows[:, None] + columns) ** -self.eta
        variance = autocorrelations(height) @ correlation @ autocorrelations(width).T
        return variance.clamp(min=0).sqrt()


def autocorrelations(size: int) -> Tensor:
    """The autocorrelation of each DCT basis vector at lags from 1 - size to size - 1, float64 [size, 2·size - 1]."""
    basis = idct(torch.eye(size, dtype=torch.float64)[:, None])[:, 0]
    padded = torch.nn.functional.pad(basis, (size - 1, size - 1))
    return torch.einsum("in,iln->il", basis, padded.unfold(1, size, 1))


class DataColour(Colour):
    """Noise with the spectrum of the training images: b is proportional to √S, so that all frequencies have one SNR.

    S is the second moment of their DCT coefficients, measured before training and kept in checkpoints.
    """

    needs = ("second_moment",)
    learned = None

    def learn(self, images: Iterable[Tensor]) -> dict[str, Tensor]:
        return {"second_moment": second_moment(images)}

    def amplitudes(self, like: Tensor) -> Tensor:
        return self.checked_learned()["second_moment"].sqrt()


class ColouredNoise(Process):
    """A process with coloured noise: its own A, and its B times the factors b of a colour.

    Args:
        process: the process with white noise.
        colour: b over frequencies.
    """

    def __init__(self, process: Process = default(Hot), colour: Colour = default(PowerBand)) -> None:
        self.process = process
        self.colour = colour
        self.max_clock = process.max_clock
        self.known_clocks = process.known_clocks
        self.noise_variance = process.noise_variance

    @property
    def learners(self) -> tuple[Learner, ...]:
        return *self.process.learners, *self.colour.learners

    def level(self, clock: Tensor) -> Level:
        return self.process.level(clock)

    def nearest_path(self, alpha: float, beta: float) -> "ColouredNoise":
        nearest = copy(self)
        nearest.process = self.process.nearest_path(alpha, beta)
        return nearest

    def draw_level(self, clock: Tensor, draws: Draws) -> Level:
        return self.process.draw_level(clock, draws)

    def scale(self, level: Level) -> Tensor:
        return self.process.scale(level)

    def gains(self, level: Level, like: Tensor) -> Gains:
        return self._coloured(self.process.gains(level, like), self.colour(like))

    def _coloured(self, gains: Gains, b: Tensor) -> Gains:
        following = gains.next_gains and self._coloured(gains.next_gains, b)
        return replace(gains, noise=gains.noise * b, next_gains=following)

    def noise(self, normal: Tensor, draws: Draws) -> Tensor:
        return self.process.noise(normal, draws)

    def log_density(self, squares: Tensor, size: int) -> Tensor:
        return self.process.log_density(squares, size)

    def prior(self, normal: Tensor, level: Level, draws: Draws) -> Tensor:
        b = self.colour(normal)
        coloured = normal if (b == 1).all() else idct(b * dct(normal))  # the former to the bit
        return self.process.prior(coloured, level, draws)

    def ends(self, level: Level) -> bool:
        return self.process.ends(level)
