"""Diffusion in discrete steps that preserves the variance: DDPM, and the blur diffusion of Lee et al. (2022).

β_i and ᾱ_i are DDPM's here: the variance that step i adds, and the remaining signal power. The noise level β of a
`Level` is √((1-ᾱ)/ᾱ).
"""

import math
from abc import ABC, abstractmethod
from functools import lru_cache

import torch
from torch import Tensor

from warm_lightning.defaults import default
from warm_lightning.errors import check
from warm_lightning.processes.base import Process, per_image
from warm_lightning.rng import Draws
from warm_lightning.spectral import dct, log_blur_mask
from warm_lightning.types import Gains, Level


class Schedule(ABC):
    """The variances β_1 … β_T of the noise that the steps of a Markov chain add (Ho et al. 2020, Eq. 2).

    Args:
        steps: T.
    """

    def __init__(self, steps: int = 1000) -> None:
        check(steps >= 1, f"steps is {steps}: a chain has at least 1")
        self.steps = steps

    @abstractmethod
    def variances(self) -> Tensor:
        """The variances β_1 … β_T in (0, 1), float64 [T]."""


class LinearSchedule(Schedule):
    """Variances evenly spaced from `first` to `last` (Ho et al. 2020, Section 4)."""

    def __init__(self, steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> None:
        super().__init__(steps)
        check(0 < first <= last < 1, f"variances from {first} to {last}: need 0 < first <= last < 1")
        self.first = first
        self.last = last

    def variances(self) -> Tensor:
        return torch.linspace(self.first, self.last, self.steps, dtype=torch.float64)


class CosineSchedule(Schedule):
    """The cosine schedule ᾱ_i = f(i)/f(0), f(i) = cos²((i/T + s)/(1 + s)·π/2) (Nichol & Dhariwal 2021, Eq. 17).

    No variance exceeds 0.999.

    Args:
        steps: T.
        offset: s, which keeps the first variances above 0.
    """

    def __init__(self, steps: int = 1000, offset: float = 0.008) -> None:
        super().__init__(steps)
        check(offset >= 0, f"offset is {offset}: it must be 0 or more")
        self.offset = offset

    def variances(self) -> Tensor:
        time = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        f = torch.cos((time + self.offset) / (1 + self.offset) * math.pi / 2).square()
        return (1 - f[1:] / f[:-1]).clamp(max=0.999)


class Table:
    """A function of the clock that is given at whole numbers and linear between them."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __call__(self, clock: Tensor) -> Tensor:
        """The values at clock readings ≥ 0, in float64 where the device has it."""
        if self.values.device != clock.device:
            # Apple's devices have no float64. The table stays on the device, since copies would make a GPU wait.
            with torch.inference_mode(False):  # or training after a validation could not use it
                self.values = self.values.to(clock.device, torch.float32 if clock.device.type == "mps" else None)
        position = clock.to(self.values).clamp(0, len(self.values) - 1)
        low = position.floor().long().clamp(max=len(self.values) - 2)
        return torch.lerp(self.values[low], self.values[low + 1], position - low)


class VariancePreserving(Process):
    """DDPM (Ho et al. 2020, Eq. 4): A = √ᾱ_i, B = √(1 - ᾱ_i), ᾱ_i = Π_{j≤i} (1 - β_j), from pure noise.

    The clock is the number i of the step; between whole numbers ln ᾱ is linear.

    Args:
        schedule: the variances β_i.
    """

    def __init__(self, schedule: Schedule = default(LinearSchedule)) -> None:
        variances = schedule.variances()
        self.max_clock = len(variances)
        none = torch.zeros(1, dtype=torch.float64)
        log_alpha_bar = torch.cat([none, torch.log1p(-variances).cumsum(0)])
        left = log_alpha_bar[-1].exp().item()
        check(
            left < 0.01,
            f"the schedule's {self.max_clock} steps leave {left:.0%} of an image's power, but sampling starts from "
            f"pure noise: raise its variances, those of LinearSchedule to {20 / self.max_clock:.2g} at the last step",
        )
        self.log_alpha_bar = Table(log_alpha_bar)

    def level(self, clock: Tensor) -> Level:
        beta = torch.expm1(-self.log_alpha_bar(clock)).sqrt()  # √((1-ᾱ)/ᾱ)
        return Level(self.blur(clock), beta.to(clock), clock)

    def blur(self, clock: Tensor) -> Tensor:
        """The blur level α in pixels: none here."""
        return torch.zeros_like(clock)

    def scale(self, level: Level) -> Tensor:
        return (self.log_alpha_bar(level.clock) / 2).exp()

    def gains(self, level: Level, like: Tensor) -> Gains:
        """The gains A, with blur if any, and B = √(1 - A²), which preserves the variance of each frequency."""
        log_signal = per_image(self.log_alpha_bar(level.clock) / 2, like) + self.log_blur(level, like)
        return Gains(log_signal, (-torch.expm1(2 * log_signal)).sqrt())

    def log_blur(self, level: Level, like: Tensor) -> Tensor:
        """The logarithm of the blur's gain at a level, [B, 1, H, W]."""
        return log_blur_mask(level.alpha, like)

    def prior(self, normal: Tensor, level: Level, draws: Draws) -> Tensor:
        """Standard normal noise, N(0, I)."""
        return dct(normal)


class BlurRate(ABC):
    """The blur rate f: the blur of each step in units of the blur kernel (Lee et al. 2022, Appendix B); f(0) is 0.

    `QuarticRate.last` and `LogRate.final` are both f(T). The names differ so that --model.process.rate=LogRate does not
    take over a value that was meant for the other class.
    """

    @abstractmethod
    def __call__(self, steps: int) -> Tensor:
        """The rates f(1) … f(T), float64 [T]."""


class QuarticRate(BlurRate):
    """The quartic rate f(i) = f(T)·(i/T)⁴, the paper's choice.

    Args:
        last: f(T) ≥ 0; 0 blurs nowhere, which is DDPM.
    """

    def __init__(self, last: float = 0.14) -> None:
        check(last >= 0, f"last is {last}: a chain blurs 0 or more")
        self.last = last

    def __call__(self, steps: int) -> Tensor:
        return self.last * (torch.arange(1, steps + 1, dtype=torch.float64) / steps) ** 4


class LogRate(BlurRate):
    """The logarithmic rate f(i) = f(T)·ln i/ln T, which blurs early (Lee et al. 2022, Table 1).

    Args:
        final: f(T) ≥ 0.
    """

    def __init__(self, final: float = 0.6) -> None:
        check(final >= 0, f"final is {final}: a chain blurs 0 or more")
        self.final = final

    def __call__(self, steps: int) -> Tensor:
        return self.final * torch.arange(1, steps + 1, dtype=torch.float64).log() / max(math.log(steps), 1e-9)


class BlurKernel(ABC):
    """The blur that a unit of the blur rate stands for, along rows and along columns: a Gaussian, or nearly one."""

    @abstractmethod
    def deviation(self, sigma: float) -> float:
        """The standard deviation in pixels, along rows or columns."""

    @abstractmethod
    def log_gain(self, sigma: float, omega: Tensor) -> Tensor:
        """The logarithm of the gain along rows or columns, at frequencies ω in radians per pixel, float64 [N]."""


class GaussianKernel(BlurKernel):
    """The Gaussian blur itself, as in all other processes here: D = exp(-λσ²/2)."""

    def deviation(self, sigma: float) -> float:
        return sigma

    def log_gain(self, sigma: float, omega: Tensor) -> Tensor:
        return -(omega * sigma).square() / 2


class SampledKernel(BlurKernel):
    """A Gaussian sampled at whole pixels: the blur of Lee et al.'s published code.

    For σ = 0.4 it is [0.040, 0.919, 0.040], whose gain 0.919 + 0.081 cos ω is far nearer to 1 than exp(-ω²σ²/2): ln D
    is half of that at low frequencies, and 4.5 times smaller at ω = π. Their code continues an image by zeros beyond
    its edges; here it is mirrored, as by all blurs of this package, so that its mean is kept.
    """

    def deviation(self, sigma: float) -> float:
        positions, weights = self.taps(sigma)
        return (weights * positions.square()).sum().sqrt().item()

    def log_gain(self, sigma: float, omega: Tensor) -> Tensor:
        positions, weights = self.taps(sigma)
        return ((omega[:, None] * positions).cos() @ weights).log()

    def taps(self, sigma: float) -> tuple[Tensor, Tensor]:
        """Positions in pixels and weights of the kernel, float64 [K] each."""
        check(sigma <= 2, f"sigma is {sigma}: a sampled kernel is for up to 2 pixels, and GaussianKernel for more")
        positions = torch.arange(-20, 21, dtype=torch.float64)
        return positions, torch.softmax(-(positions / max(sigma, 0.01)).square() / 2, dim=0)


@lru_cache(maxsize=16)
def _log_gains(
    kernel: BlurKernel, sigma: float, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """ln D of a kernel at each frequency of an image, [H, W]."""
    with torch.inference_mode(False):  # or training after a validation could not use it
        rows, columns = (
            kernel.log_gain(sigma, math.pi / size * torch.arange(size, dtype=torch.float64)) for size in (height, width)
        )
        return (rows[:, None] + columns).to(device, dtype)


class ProgressiveDeblurring(VariancePreserving):
    """Blur diffusion (Lee et al. 2022, Eqs. 3 and 5): A = √ᾱ_i·D^{Σ_{j≤i} f(j)}, B = √(1 - A²), a vector.

    D is the gain of a blur of about σ pixels: a Gaussian blur by the paper, and by its published code that of
    `SampledKernel`, which is the default. The blur level is α = s√Σf with the standard deviation s of the kernel. With
    f = 0 it is DDPM.

    Args:
        schedule: the variances β_i.
        rate: f.
        sigma: σ in pixels.
        kernel: the blur. Checkpoints from before it could be chosen go on with `GaussianKernel`, with which they were
            trained. Images with a Gaussian blur are restored by models with that kernel alone.
    """

    def __init__(
        self,
        schedule: Schedule = default(LinearSchedule),
        rate: BlurRate = default(QuarticRate),
        sigma: float = 0.4,
        kernel: BlurKernel = default(SampledKernel),
    ) -> None:
        super().__init__(schedule)
        check(sigma >= 0, f"sigma is {sigma}: a blur is 0 pixels or more")
        none = torch.zeros(1, dtype=torch.float64)
        self.sigma = sigma
        self.kernel = kernel
        self.deviation = kernel.deviation(sigma)
        self.powers = Table(torch.cat([none, rate(schedule.steps).cumsum(0)]))

    def blur(self, clock: Tensor) -> Tensor:
        return (self.deviation * self.powers(clock).sqrt()).to(clock)

    def log_blur(self, level: Level, like: Tensor) -> Tensor:
        log_gains = _log_gains(self.kernel, self.sigma, *like.shape[-2:], like.dtype, like.device)
        return per_image(self.powers(level.clock), like) * log_gains
