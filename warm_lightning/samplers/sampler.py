"""Samplers: grids of levels, changes of the estimates, churn, and the loop that every sampler shares."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from warm_lightning.defaults import default
from warm_lightning.errors import check
from warm_lightning.parameterizations import consistent
from warm_lightning.processes import Process
from warm_lightning.rng import Draws
from warm_lightning.samplers.rules import Heun, Step, StepRule, fresh_noise, step_ratio
from warm_lightning.spectral import dct, idct
from warm_lightning.types import Estimate, Estimator, Gains, Level


class Grid(ABC):
    """The clock readings of a sampler's levels.

    Attributes:
        steps: N, the number of levels above the last.
    """

    steps: int

    @abstractmethod
    def clocks(self) -> Tensor:
        """The clock readings from the noisiest level to the last, float64 [N + 1]."""

    def outline(self) -> Tensor:
        """Clock readings with the first one, the last one and the number of `clocks`, at no cost."""
        return self.clocks()

    def within(self, low: float, high: float) -> "Grid":
        """This grid with all clock readings above 0 between `low` and `high`, the limits of what a network knows.

        Raises:
            UserError: readings are outside, and this class of grids cannot be narrowed.
        """
        first, last = self.clocks()[0].item(), self.clocks()[-2].item()
        check(
            low <= last and first <= high,
            f"{type(self).__name__} goes from {first:g} to {last:g} of the clock, but the network knows {low:g} to "
            f"{high:g} only: change the grid, or use PowerGrid, which is narrowed to that",
        )
        return self

    def for_model(self, process: Process, rule: StepRule, image_shape: tuple[int, int, int]) -> "Grid":
        """This grid for a model, which some grids depend on; image_shape is C, H, W."""
        return self

    def levels(self, process: Process) -> list[Level]:
        """The levels of a process at these clock readings, each with entries [1]."""
        return [process.level(clock) for clock in self.clocks().split(1)]


class PowerGrid(Grid):
    """The grid of Eq. 21: N levels evenly spaced in β^(1/ρ) from beta_max to beta_min, then β_0 = 0.

    Args:
        steps: N; NFE is 2N - 1 with Heun's rule (18 → 35, 40 → 79, 256 → 511) and N with Euler's.
        beta_min: smallest noise level before 0.
        beta_max: noise level to start from.
        rho: ρ, the concentration of levels at low noise; warm models prefer more than EDM's 7 (Fig. 8).
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

    def within(self, low: float, high: float) -> "PowerGrid":
        """The grid between beta_min and beta_max or the limits, whichever are narrower, as EDM's sampler makes it."""
        narrowed = copy(self)
        narrowed.beta_min, narrowed.beta_max = max(self.beta_min, low), min(self.beta_max, high)
        check(
            narrowed.beta_min < narrowed.beta_max,
            f"the sampler's grid goes from {self.beta_max:g} to {self.beta_min:g}, but the network knows {low:g} to "
            f"{high:g} only: change beta_min or beta_max",
        )
        return narrowed


class EvenGrid(Grid):
    """A grid of clock readings that are evenly spaced from `first` to 0.

    With whole numbers it holds every step of a discrete process, or every second, every third and so on.

    Args:
        steps: N; less than `first` leaves out levels of a discrete process.
        first: clock reading to start from.
        whole: whether readings are rounded to whole numbers, for discrete processes.
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


Watch = Callable[[Tensor, Level], None]
"""A function that a sampler calls at every level with the state u [B, C, H, W] and the level."""


class Churn:
    """EDM's stochastic sampling (Karras et al. 2022, Algorithm 2): the image is degraded a little before each step.

    The clock goes back from t to t̂ = t + γt, γ = min(churn/N, √2 - 1), and u is degraded to that level:
    u ← (A_t̂/A_t)∘u + √(B_t̂² - (A_t̂/A_t)²B_t²) z with normal z. On the hot axis this is EDM's added noise. Where the
    clock is not the noise level, as in DDPM, the same γ may add much more noise: use less churn.

    Args:
        churn: S_churn ≥ 0.
        beta_min: S_min, the noise level below which there is no churn.
        beta_max: S_max, above which there is none.
        noise: S_noise, the factor on the added noise, slightly above 1 against loss of detail.
    """

    def __init__(
        self, churn: float = 40.0, beta_min: float = 0.05, beta_max: float = 50.0, noise: float = 1.003
    ) -> None:
        check(churn >= 0, f"churn is {churn}: it must be 0 (none) or more")
        check(0 <= beta_min <= beta_max, f"churn from {beta_min} to {beta_max}: need 0 <= beta_min <= beta_max")
        check(noise > 0, f"noise is {noise}: it must be positive, about 1")
        self.churn = churn
        self.beta_min = beta_min
        self.beta_max = beta_max
        self.noise = noise

    def __call__(self, process: Process, u: Tensor, t: Level, steps: int, draws: Draws) -> tuple[Tensor, Level]:
        """Degrade u a little more, and return it with its new level; `steps` is N, of the whole grid."""
        gamma = min(self.churn / steps, math.sqrt(2) - 1)
        if gamma == 0 or not self.beta_min <= t.beta.item() <= self.beta_max:
            return u, t
        back = process.level((t.clock * (1 + gamma)).clamp(max=process.max_clock))
        near, far = process.gains(t, u), process.gains(back, u)
        ratio = step_ratio(far, near)
        added = (far.noise.square() - (ratio * near.noise).square()).clamp(min=0).sqrt()
        return ratio * u + self.noise * added * fresh_noise(draws, u), back


class EstimateTransform(ABC):
    """A change of the network's estimates before a rule uses them."""

    @abstractmethod
    def __call__(self, estimator: Estimator, process: Process) -> Estimator:
        """The estimator with the change applied."""


class EpsilonScaling(EstimateTransform):
    """Epsilon scaling (Ning et al. 2024): ε̂ is divided by κ(t) = b + k·t, against the exposure bias of sampling.

    With b = 1 and k = 0 nothing changes.

    Args:
        b: κ at the last level; the best value is less than a per cent above 1, and smaller for more steps.
        k: slope in the clock; 0 as the paper recommends.
    """

    def __init__(self, b: float = 1.0006, k: float = 0.0) -> None:
        check(b > 0, f"b is {b}: it must be positive, slightly more than 1")
        self.b = b
        self.k = k

    def __call__(self, estimator: Estimator, process: Process) -> Estimator:
        def scaled(u: Tensor, level: Level) -> Estimate:
            estimate = estimator(u, level)
            return replace(estimate, noise=estimate.noise / (self.b + self.k * level.clock.to(u).view(-1, 1, 1, 1)))

        return scaled


class ClippedImage(EstimateTransform):
    """Clipping of x̂0 to the range of an image, [-1, 1], with ε̂ recomputed from u, as implementations of DDPM do.

    It is for ε-prediction without blur, where x̂0 at the first levels is the network's error, much amplified. With blur,
    clipping would add false high frequencies (Hoogeboom & Salimans 2022, Appendix A.1).
    """

    def __call__(self, estimator: Estimator, process: Process) -> Estimator:
        def clipped(u: Tensor, level: Level) -> Estimate:
            clean = dct(idct(estimator(u, level).clean).clamp(-1, 1))
            return consistent(clean, u, process.gains(level, u))

        return clipped


@dataclass(frozen=True)
class Sampler:
    """A grid of levels and a step rule, which turn noise into images.

    Attributes:
        grid: the levels.
        rule: how to step between them.
        churn: noise added before steps, if any.
        estimate_transform: a change of the network's estimates, if any.
    """

    grid: Grid = default(PowerGrid)
    rule: StepRule = default(Heun)
    churn: Churn | None = None
    estimate_transform: EstimateTransform | None = None

    def within(self, low: float, high: float) -> "Sampler":
        """This sampler with its grid narrowed to what a network knows; see `Grid.within`."""
        return replace(self, grid=self.grid.within(low, high))

    @property
    def nfe(self) -> int:
        """Network calls per image, without guidance."""
        return self.rule.evaluations(len(self.grid.clocks()) - 1)

    def __call__(
        self, estimator: Estimator, process: Process, start: Tensor, draws: Draws, watch: Watch | None = None
    ) -> Tensor:
        """Sample from the process's prior.

        Args:
            estimator: the network or oracle.
            process: the process of the network or oracle.
            start: standard normal pixels [B, C, H, W]; their dtype (float64 by choice) is the state's.
            draws: random numbers for the prior and stochastic rules.
            watch: called with u and its level at every level.

        Returns:
            DCT coefficients [B, C, H, W] at the last level.
        """
        levels = self.grid.levels(process)
        return self.descend(estimator, process, process.prior(start, levels[0], draws), levels, draws, watch)

    @torch.no_grad()
    def descend(
        self,
        estimator: Estimator,
        process: Process,
        u: Tensor,
        levels: Sequence[Level],
        draws: Draws,
        watch: Watch | None = None,
    ) -> Tensor:
        """Run the step rule over the given levels, from u at the first one, in sampling and in restoration."""
        if self.estimate_transform:
            estimator = self.estimate_transform(estimator, process)
        history: list[tuple[Gains, Tensor]] = []
        for t, s in pairwise(levels):
            if watch:
                watch(u, t)
            here = t
            if self.churn:
                u, here = self.churn(process, u, t, len(self.grid.clocks()) - 1, draws)
            u = self.rule(estimator, u, Step.between(process, u, here, s, draws, history))
        if watch:
            watch(u, levels[-1])
        return u
