"""Diffusion in discrete steps that preserves the variance: DDPM, and the blur diffusion of Lee et al. (2022).

β_i and ᾱ_i are DDPM's here: the variance that step i adds, and the remaining signal power. The noise level β of a
`Level` is √((1-ᾱ)/ᾱ).
"""

import math
from abc import ABC, abstractmethod

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
        log_signal = per_image(self.log_alpha_bar(level.clock) / 2, like) + log_blur_mask(level.alpha, like)
        return Gains(log_signal, (-torch.expm1(2 * log_signal)).sqrt())

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


class ProgressiveDeblurring(VariancePreserving):
    """Blur diffusion (Lee et al. 2022, Eqs. 3 and 5): A = √ᾱ_i·D^{Σ_{j≤i} f(j)}, B = √(1 - A²), a vector.

    D = exp(-λσ²/2) is the gain of a Gaussian blur of σ pixels, so the blur level is α = σ√Σf. With f = 0 it is DDPM.

    Args:
        schedule: the variances β_i.
        rate: f.
        sigma: σ in pixels.
    """

    def __init__(
        self,
        schedule: Schedule = default(LinearSchedule),
        rate: BlurRate = default(QuarticRate),
        sigma: float = 0.4,
    ) -> None:
        super().__init__(schedule)
        check(sigma >= 0, f"sigma is {sigma}: a blur is 0 pixels or more")
        none = torch.zeros(1, dtype=torch.float64)
        self.sigma = sigma
        self.powers = Table(torch.cat([none, rate(schedule.steps).cumsum(0)]))

    def blur(self, clock: Tensor) -> Tensor:
        return (self.sigma * self.powers(clock).sqrt()).to(clock)
