"""One loop for every sampler: grids of levels, rules for a step, and the loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jsonargparse import lazy_instance
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.processes import Process
from warm_lightning.types import Estimate, Estimator, Gains, Level

Noise = Callable[[], Tensor]
"""Fresh standard normal noise as DCT coefficients [B, C, H, W]."""


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


def gain_difference(target: Gains, source: Gains) -> Tensor:
    """A_s - A_t without cancellation for small blurs and without overflow for large ones."""
    log_ratio = target.log_signal - source.log_signal
    larger = torch.maximum(target.log_signal, source.log_signal).exp()
    return torch.sign(log_ratio) * larger * -torch.expm1(-log_ratio.abs())


def split_noise(source: Gains, target: Gains, eta: float) -> tuple[Tensor, Tensor]:
    """How the noise of level s divides into what is kept of the present noise and what is drawn afresh.

    σ is η times that of the Markov posterior, per frequency: σ² = η² B_s²/B_t² (B_t² - (A_t/A_s)² B_s²).

    Returns:
        √(B_s² - σ²) and σ.
    """
    ratio = (source.log_signal - target.log_signal).exp()
    silent = source.noise == 0
    shrink = torch.where(silent, 0.0, target.noise / torch.where(silent, 1.0, source.noise))
    fresh = shrink * (source.noise.square() - (ratio * target.noise).square()).clamp(min=0).sqrt()
    # B_s² - η²σ² would cancel where the posterior keeps little; its own closed form for η = 1 does not.
    kept = (1 - eta**2) * target.noise.square() + (eta * shrink * ratio * target.noise).square()
    return kept.clamp(min=0).sqrt(), torch.minimum(eta * fresh, target.noise)


def move(u: Tensor, estimate: Estimate, source: Gains, target: Gains, kept: Tensor) -> Tensor:
    """Formula S without its last term, which is the caller's fresh noise: u_t moved towards level s.

    It moves u_t rather than rebuilding A_s∘clean + B_s∘noise, because the two beliefs of a network need not
    agree with the u_t they were formed on (Eq. 7). `kept` is √(B_s² - σ²), with σ = 0 simply B_s.
    """
    return u + gain_difference(target, source) * estimate.clean + (kept - source.noise) * estimate.noise


class StepRule(ABC):
    """How to get from level t to level s. All share one call shape; a rule may remember earlier steps.

    Args:
        eta: η, how much fresh noise a step draws: 0 is deterministic (Algorithm 2), 1 the Markov posterior
            (ancestral sampling), and what lies between or beyond scales its σ.
    """

    def __init__(self, eta: float = 0.0) -> None:
        check(eta >= 0, f"eta is {eta}: it must be 0 (deterministic) or more")
        self.eta = eta

    @abstractmethod
    def estimate(self, ask: Estimator, process: Process, u: Tensor, t: Level, s: Level) -> Estimate:
        """The belief to move by."""

    @abstractmethod
    def evaluations(self, steps: int) -> int:
        """NFE: network calls for a whole run of `steps` steps."""

    def __call__(self, ask: Estimator, process: Process, u: Tensor, t: Level, s: Level, noise: Noise) -> Tensor:
        """One step of formula S, u_t → u_s, [B, C, H, W]."""
        estimate = self.estimate(ask, process, u, t, s)
        source, target = process.gains(t, u), process.gains(s, u)
        if self.eta == 0 or process.ends(s):
            return move(u, estimate, source, target, kept=target.noise)
        kept, fresh = split_noise(source, target, self.eta)
        return move(u, estimate, source, target, kept) + fresh * noise()


class Euler(StepRule):
    """First order: the belief at t. With η = 0 this is DDIM, with η = 1 ancestral sampling."""

    def estimate(self, ask: Estimator, process: Process, u: Tensor, t: Level, s: Level) -> Estimate:
        return ask(u, t)

    def evaluations(self, steps: int) -> int:
        return steps


class Heun(StepRule):
    """Second order: the mean of the beliefs at t and at where Euler would land at s (Algorithm 2).

    The step into the last level is Euler's, at which there is nothing to ask. The trial step is
    deterministic whatever η, so that the second belief knows nothing of the noise still to be drawn.
    """

    def estimate(self, ask: Estimator, process: Process, u: Tensor, t: Level, s: Level) -> Estimate:
        first = ask(u, t)
        if process.ends(s):
            return first
        target = process.gains(s, u)
        trial = move(u, first, process.gains(t, u), target, kept=target.noise)
        return first.mean(ask(trial, s))

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


def clean_view(u: Tensor, estimate: Estimate, gains: Gains) -> Tensor:
    """x̂0 = u - B∘noise + (1-A)∘clean: the picture to show on the way, D + R for Table 5d."""
    return u - gains.noise * estimate.noise + gains.lost * estimate.clean


@dataclass(frozen=True)
class Sampler:
    """A grid and a rule: what turns noise into images.

    Attributes:
        grid: the levels to stop at.
        rule: how to step between them.
    """

    grid: Grid = lazy_instance(PowerGrid)
    rule: StepRule = lazy_instance(Heun)

    @property
    def nfe(self) -> int:
        """Network calls an image."""
        return self.rule.evaluations(len(self.grid.clocks()) - 1)

    @torch.no_grad()
    def __call__(
        self,
        ask: Estimator,
        process: Process,
        start: Tensor,
        noise: Noise,
        watch: Callable[[Tensor, Level], None] | None = None,
    ) -> Tensor:
        """Run the loop.

        Args:
            ask: the network or oracle.
            process: the process that it knows.
            start: standard normal pixels [B, C, H, W]; their dtype (float64 by choice) is the state's.
            noise: where a stochastic rule gets its noise from.
            watch: called with u and its level at every level, for trajectories and progress.

        Returns:
            DCT coefficients [B, C, H, W] at the last level.
        """
        levels = self.grid.levels(process)
        u = process.prior(start, levels[0])
        for t, s in pairwise(levels):
            if watch:
                watch(u, t)
            u = self.rule(ask, process, u, t, s, noise)
        if watch:
            watch(u, levels[-1])
        return u
