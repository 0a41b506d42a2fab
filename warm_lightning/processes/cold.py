"""Processes with much blur and little or no noise: inverse heat dissipation, Soft Diffusion, Cold Diffusion.

Blurred images follow no known law, so these processes learn their prior from the training images: the low frequencies
that remain at the first level, little more than a colour for the usual levels of blur. It is kept in the checkpoint.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from warm_lightning.errors import UserError, check
from warm_lightning.processes.base import Process
from warm_lightning.rng import Draws
from warm_lightning.spectral import dct
from warm_lightning.types import Gains, Level

ERASED_GAIN = 1e-6
"""The gain below which a frequency counts as erased."""


def geometric(fraction: Tensor, low: float, high: float) -> Tensor:
    """The value low·(high/low)^fraction, evenly spaced in the logarithm from low at 0 to high at 1."""
    return low * (high / low) ** fraction


class Blur(Process):
    """A process whose blur level rises geometrically over K steps; the clock is the step k.

    α_k = blur_min·(blur_max/blur_min)^((k-1)/(K-1)) for k ≥ 1, and α_0 = 0.

    Args:
        steps: K.
        blur_min: α_1 in pixels.
        blur_max: α_K in pixels.
    """

    learned = None

    def __init__(self, steps: int, blur_min: float, blur_max: float) -> None:
        check(steps >= 2, f"steps is {steps}: a process of blur needs at least 2")
        check(0 < blur_min < blur_max, f"blur from {blur_min} to {blur_max} pixels: need 0 < blur_min < blur_max")
        self.max_clock = self.steps = steps
        self.blur_min = blur_min
        self.blur_max = blur_max

    def blur(self, clock: Tensor) -> Tensor:
        """The blur level α in pixels, linear in the clock below k = 1."""
        fraction = (clock - 1).clamp(min=0) / (self.steps - 1)
        return geometric(fraction, self.blur_min, self.blur_max) * clock.clamp(max=1)


class BlurredImages(Blur):
    """A process that starts sampling from random training images, blurred to the first level."""

    needs = ("low_frequencies",)

    def learn(self, images: Iterable[Tensor]) -> dict[str, Tensor]:
        """The low frequencies of the images, beyond which the first level's gain is below `ERASED_GAIN`."""
        kept = []
        for batch in images:
            u0 = dct(batch.float())
            height, width = (self._visible(size) for size in u0.shape[-2:])
            kept.append(u0[..., :height, :width].clone())  # a view would keep all of u0 in memory
        return {"low_frequencies": torch.cat(kept)}

    def _visible(self, size: int) -> int:
        """The number of frequencies i along an axis that the largest blur leaves with a gain above `ERASED_GAIN`."""
        return min(size, 1 + math.floor(math.sqrt(-2 * math.log(ERASED_GAIN)) * size / (math.pi * self.blur_max)))

    def prior(self, normal: Tensor, level: Level, draws: Draws) -> Tensor:
        if (level.clock != self.max_clock).any():
            raise UserError(
                f"sampling starts at step {level.clock.max():g}, but the images that it starts from are known at step "
                f"{self.max_clock} alone: set model.sampler.grid.first to {self.max_clock}"
            )
        low = self.checked_learned()["low_frequencies"]
        check(
            all(have >= self._visible(size) for have, size in zip(low.shape[-2:], normal.shape[-2:], strict=True)),
            f"what was learned of the training images is for more blur than blur_max {self.blur_max:g}: set it to what "
            "it was in training",
        )
        index = (draws.uniform(dtype=torch.float64).cpu() * len(low)).long()
        u0 = torch.zeros_like(normal)
        u0[..., : low.shape[-2], : low.shape[-1]] = low[index].to(normal)
        return self.gains(level, normal).signal * u0


class IHDM(BlurredImages):
    """Inverse heat dissipation (Rissanen et al. 2023): A = M_{α_k} with constant noise B, from blurred images.

    `noise_level` is for images in [-1, 1]: the paper's 0.01 is for [0, 1], so it is 0.02 here.

    Args:
        steps: K, 200 for CIFAR-10.
        blur_min: α_1 in pixels.
        blur_max: α_K in pixels: 24 for 32×32, half to three quarters of the width for other sizes.
        noise_level: B.
    """

    def __init__(
        self, steps: int = 200, blur_min: float = 0.5, blur_max: float = 24.0, noise_level: float = 0.02
    ) -> None:
        super().__init__(steps, blur_min, blur_max)
        check(noise_level > 0, f"noise_level is {noise_level}: heat dissipation is undone with some noise only")
        self.noise_level = noise_level

    def level(self, clock: Tensor) -> Level:
        return Level(self.blur(clock), torch.full_like(clock, self.noise_level), clock)

    def gains(self, level: Level, like: Tensor) -> Gains:
        here = super().gains(level, like)
        next_gains = super().gains(self.level((level.clock - 1).clamp(min=0)), like)
        return Gains(here.log_signal, here.noise, next_gains)


class SoftDiffusion(BlurredImages):
    """Soft Diffusion with blur (Daras et al. 2022): A = M_{α_k}, B = σ_k, both growing geometrically.

    The authors fit their schedule to a data set and do not print it; this one is our choice, with their range of noise.
    Sampling starts from blurred images with noise.

    Args:
        steps: K.
        blur_min: α_1 in pixels.
        blur_max: α_K in pixels.
        noise_min: σ_1, images being in [-1, 1].
        noise_max: σ_K.
    """

    def __init__(
        self,
        steps: int = 1000,
        blur_min: float = 0.05,
        blur_max: float = 24.0,
        noise_min: float = 0.01,
        noise_max: float = 0.2,
    ) -> None:
        super().__init__(steps, blur_min, blur_max)
        check(0 < noise_min < noise_max, f"noise from {noise_min} to {noise_max}: need 0 < noise_min < noise_max")
        self.noise_min = noise_min
        self.noise_max = noise_max

    def level(self, clock: Tensor) -> Level:
        fraction = (clock - 1).clamp(min=0) / (self.steps - 1)
        noise = geometric(fraction, self.noise_min, self.noise_max) * clock.clamp(max=1)
        return Level(self.blur(clock), noise, clock)

    def prior(self, normal: Tensor, level: Level, draws: Draws) -> Tensor:
        return super().prior(normal, level, draws) + self.gains(level, normal).noise * dct(normal)


class ColdDiffusion(Blur):
    """Cold Diffusion with blur (Bansal et al. 2022): A = M_{α_k} and no noise, from constant colours.

    The colours come from a Gaussian mixture over the training images' channel means, with a little noise that breaks
    the symmetry.

    Args:
        steps: K.
        blur_min: α_1 in pixels.
        blur_max: α_K in pixels, so large that only the mean of each channel survives: the width of the image or more.
        components: number of normal laws in the mixture.
        prior_noise: standard deviation of the noise at the start.
    """

    needs = ("weights", "means", "factors")

    def __init__(
        self,
        steps: int = 50,
        blur_min: float = 0.5,
        blur_max: float = 32.0,
        components: int = 10,
        prior_noise: float = 0.002,
    ) -> None:
        super().__init__(steps, blur_min, blur_max)
        check(components >= 1, f"components is {components}: a mixture has at least 1")
        check(prior_noise >= 0, f"prior_noise is {prior_noise}: it must be 0 or more")
        self.components = components
        self.prior_noise = prior_noise

    def level(self, clock: Tensor) -> Level:
        return Level(self.blur(clock), torch.zeros_like(clock), clock)

    def learn(self, images: Iterable[Tensor]) -> dict[str, Tensor]:
        """The weights [K], means [K, C] and Cholesky factors [K, C, C] of a Gaussian mixture over channel means.

        Raises:
            UserError: if the blur is too small for images of this size.
        """
        means = []
        for batch in images:
            size = max(batch.shape[-2:])
            left = math.exp(-((math.pi * self.blur_max / size) ** 2) / 2)
            check(
                left < 0.01,
                f"blur_max of {self.blur_max:g} pixels leaves {left:.0%} of the lowest frequency of {size}×{size} "
                f"images, but sampling starts from plain colours: set model.process.init_args.blur_max to {size}",
            )
            means.append(batch.double().mean((2, 3)))
        from sklearn.mixture import GaussianMixture  # takes seconds to import, which other commands need not wait for

        points = torch.cat(means).numpy()
        mixture = GaussianMixture(min(self.components, len(points)), random_state=0).fit(points)
        factors = torch.linalg.cholesky(torch.from_numpy(mixture.covariances_))
        return {
            "weights": torch.from_numpy(mixture.weights_),
            "means": torch.from_numpy(mixture.means_),
            "factors": factors,
        }

    def prior(self, normal: Tensor, level: Level, draws: Draws) -> Tensor:
        mixture = self.checked_learned()
        chosen = torch.searchsorted(mixture["weights"].cumsum(0), draws.uniform(dtype=torch.float64).cpu())
        chosen = chosen.clamp(max=len(mixture["weights"]) - 1)
        spread = draws.normal(normal.shape[1], 1, dtype=torch.float64).cpu()
        colour = mixture["means"][chosen] + (mixture["factors"][chosen] @ spread).squeeze(2)
        return dct(colour.to(normal)[:, :, None, None] + self.prior_noise * normal)
