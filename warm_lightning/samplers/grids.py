"""Where a sampler stops on its way."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.processes import Process
from warm_lightning.types import Level


class Grid(ABC):
    """The clock readings at which a sampler stops."""

    @abstractmethod
    def clocks(self) -> Tensor:
        """Readings from the noisiest to the last, float64 [N + 1]."""

    def levels(self, process: Process) -> list[Level]:
        """The same as levels of a process, [1] each."""
        return [process.level(clock) for clock in self.clocks().split(1)]


class PowerGrid(Grid):
    """Eq. 21: β_i evenly spaced in β^(1/ρ) from beta_max to beta_min in N levels, then β_0 = 0.

    Args:
        steps: N; NFE is 2N - 1 with Heun's rule (18 → 35, 40 → 79, 256 → 511) and N with Euler's.
        beta_min: smallest noise level before 0.
        beta_max: noise level to start from.
        rho: ρ, how much the steps crowd towards low noise; warm models like more than EDM's 7 (Fig. 8).
    """

    def __init__(self, steps: int = 18, beta_min: float = 0.002, beta_max: float = 80.0, rho: float = 7.0) -> None:
        check(steps >= 1, f"steps is {steps}: a sampler needs at least 1")
        check(
            0 < beta_min < beta_max,
            f"beta_min is {beta_min} and beta_max {beta_max}: need 0 < beta_min < beta_max",
        )
        check(rho >= 0.1, f"rho is {rho}: it must be 0.1 or more (1 is evenly spaced, 7 the default)")
        self.steps = steps
        self.beta_min = beta_min
        self.beta_max = beta_max
        self.rho = rho

    def clocks(self) -> Tensor:
        ramp = torch.linspace(0, 1, self.steps, dtype=torch.float64)
        low, high = self.beta_min ** (1 / self.rho), self.beta_max ** (1 / self.rho)
        return torch.cat([(high + ramp * (low - high)) ** self.rho, torch.zeros(1, dtype=torch.float64)])


class EvenGrid(Grid):
    """Clock readings evenly spaced from `first` to 0: the whole chain of a process in steps, or fewer of its levels.

    Args:
        steps: N; a process of `first` steps is respaced if it is less.
        first: clock reading to start from.
        whole: whether readings are rounded to whole numbers, for processes in steps.
    """

    def __init__(self, steps: int = 1000, first: float = 1000, whole: bool = True) -> None:
        check(steps >= 1, f"steps is {steps}: a sampler needs at least 1")
        check(first > 0, f"first is {first}: sampling must start above 0")
        check(not whole or steps <= first, f"steps is {steps}, but there are no more than {first:g}: lower it")
        self.steps = steps
        self.first = first
        self.whole = whole

    def clocks(self) -> Tensor:
        readings = torch.linspace(self.first, 0, self.steps + 1, dtype=torch.float64)
        return readings.round() if self.whole else readings
