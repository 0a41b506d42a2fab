"""Step rules: how a sampler gets from level t to the next level s.

Most rules move u_t by formula S, with the estimates x̂0 and ε̂, and fresh noise z of standard deviation σ per frequency:

    u_s = u_t + (A_s - A_t)∘x̂0 + (√(B_s² - σ²) - B_t)∘ε̂ + σ∘z.      (S)

For the warm family A = M_α, B = β and ε̂ = (u_t - D)/β, and with σ = 0 this is line 7 of Algorithm 2. Eq. 7 of the paper
writes the last difference with the opposite sign, since its fraction is (D - u_t)/β = -ε̂.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.processes import Process
from warm_lightning.rng import Draws
from warm_lightning.spectral import dct
from warm_lightning.types import Estimate, Estimator, Gains, Level


@dataclass(frozen=True)
class Step:
    """A step from level t to level s, as rules need it.

    Attributes:
        t: the level of u.
        source: gains at t.
        s: the next level.
        target: gains at s.
        last: whether sampling ends at s.
        draws: the source of fresh noise.
        history: gains and images of earlier steps of this run, which a multistep rule stores here itself.
    """

    t: Level
    source: Gains
    s: Level
    target: Gains
    last: bool
    draws: Draws
    history: list[tuple[Gains, Tensor]] = field(default_factory=list)

    @property
    def kept_noise(self) -> Tensor:
        """The noise gain B_s, but 0 at the last level, where deterministic rules return the mean even if B_0 > 0."""
        return torch.zeros_like(self.target.noise) if self.last else self.target.noise

    @classmethod
    def between(
        cls, process: Process, u: Tensor, t: Level, s: Level, draws: Draws, history: list | None = None
    ) -> "Step":
        """The step between two levels of a process for u [B, C, H, W]."""
        history = [] if history is None else history
        return cls(t, process.gains(t, u), s, process.gains(s, u), process.ends(s), draws, history)


def fresh_noise(draws: Draws, like: Tensor) -> Tensor:
    """Standard normal noise as DCT coefficients, drawn as pixels, in the shape of `like` [B, C, H, W]."""
    return dct(draws.normal(*like.shape[1:], dtype=like.dtype))


def gain_difference(target: Gains, source: Gains) -> Tensor:
    """The difference A_s - A_t, without cancellation for small blurs or overflow for large ones."""
    log_ratio = target.log_signal - source.log_signal
    larger = torch.maximum(target.log_signal, source.log_signal).exp()
    return torch.sign(log_ratio) * larger * -torch.expm1(-log_ratio.abs())


def step_ratio(source: Gains, target: Gains) -> Tensor:
    """The ratio A_t/A_s of a step from t to s, as the exponential of a difference, since both may underflow."""
    return (source.log_signal - target.log_signal).exp()


def split_noise(source: Gains, target: Gains, eta: float) -> tuple[Tensor, Tensor]:
    """The noise gain of level s, split into the part kept from u_t and the part drawn afresh.

    σ is η times that of the Markov posterior, per frequency: σ² = η² B_s²/B_t² (B_t² - (A_t/A_s)² B_s²). It is the σ_t
    of Eq. 5; for η = 1 see Song et al. 2021, Eq. 16.

    Returns:
        √(B_s² - σ²) and σ.
    """
    ratio = step_ratio(source, target)
    shrink = source.over_noise(target.noise)
    fresh = shrink * (source.noise.square() - (ratio * target.noise).square()).clamp(min=0).sqrt()
    # B_s² - η²σ² would cancel where the posterior keeps little noise; its closed form for η = 1 does not.
    kept = (1 - eta**2) * target.noise.square() + (eta * shrink * ratio * target.noise).square()
    return kept.clamp(min=0).sqrt(), torch.minimum(eta * fresh, target.noise)


def move(u: Tensor, estimate: Estimate, source: Gains, target: Gains, kept: Tensor) -> Tensor:
    """Formula S without its last term, the fresh noise, which the caller adds: u_t moved to level s.

    It moves u_t rather than rebuilding A_s∘clean + B_s∘noise, because the two estimates of a network need not
    agree with the u_t that they were made from (Eq. 7). `kept` is √(B_s² - σ²), which is B_s for σ = 0.
    """
    return u + gain_difference(target, source) * estimate.clean + (kept - source.noise) * estimate.noise


class StepRule(ABC):
    """A rule for one step of a sampler, from level t to level s."""

    @abstractmethod
    def __call__(self, estimator: Estimator, u: Tensor, step: Step) -> Tensor:
        """Take one step u_t → u_s, both [B, C, H, W].

        Args:
            estimator: the network or oracle.
            u: u_t.
            step: the two levels and what belongs to them.
        """

    def evaluations(self, steps: int) -> int:
        """The NFE: network calls for a run of `steps` steps."""
        return steps


class Interpolating(StepRule):
    """Formula S, with a share η of the Markov posterior's fresh noise; a subclass chooses the estimate.

    Args:
        eta: η, the factor on σ, the fresh noise of a step: 0 is deterministic (Algorithm 2), 1 the Markov posterior
            (ancestral sampling; Song et al. 2021, Eq. 16).
    """

    def __init__(self, eta: float = 0.0) -> None:
        check(eta >= 0, f"eta is {eta}: it must be 0 (deterministic) or more")
        self.eta = eta

    @abstractmethod
    def estimate(self, estimator: Estimator, u: Tensor, step: Step) -> Estimate:
        """The estimate to move by."""

    def __call__(self, estimator: Estimator, u: Tensor, step: Step) -> Tensor:
        estimate = self.estimate(estimator, u, step)
        if self.eta == 0:
            return move(u, estimate, step.source, step.target, kept=step.kept_noise)
        kept, fresh = split_noise(step.source, step.target, self.eta)
        moved = move(u, estimate, step.source, step.target, kept)
        return moved if step.last else moved + fresh * fresh_noise(step.draws, u)


class Euler(Interpolating):
    """Euler's rule, of first order, with the estimate at t: DDIM for η = 0, ancestral sampling for η = 1."""

    def estimate(self, estimator: Estimator, u: Tensor, step: Step) -> Estimate:
        return estimator(u, step.t)


class Heun(Interpolating):
    """Heun's rule, of second order: the mean of the estimates at t and after a trial Euler step to s (Algorithm 2).

    The step to the last level is Euler's, since no network is called there. The trial step is deterministic for any η,
    so that the second estimate does not depend on the fresh noise.
    """

    def estimate(self, estimator: Estimator, u: Tensor, step: Step) -> Estimate:
        first = estimator(u, step.t)
        if step.last:
            return first
        trial = move(u, first, step.source, step.target, kept=step.target.noise)
        return first.mean(estimator(trial, step.s))

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


class Direct(StepRule):
    """Degrades the estimated image to the next level: u_s = A_s∘clean + δz.

    It rebuilds the state, as these authors do; for two branches that disagree use Euler.

    With δ = 0 this is Cold Diffusion's Algorithm 1 (Bansal et al. 2022); with δ > 0 and `LessBlurred` it is inverse
    heat dissipation (Rissanen et al. 2023, Eq. 8), which needs every step of the chain.

    Args:
        delta: δ, standard deviation of the fresh noise, none on the last step.
    """

    def __init__(self, delta: float = 0.0) -> None:
        check(delta >= 0, f"delta is {delta}: it must be 0 (no noise) or more")
        self.delta = delta

    def __call__(self, estimator: Estimator, u: Tensor, step: Step) -> Tensor:
        image = step.target.signal * estimator(u, step.t).clean
        return image if self.delta == 0 or step.last else image + self.delta * fresh_noise(step.draws, u)


class Momentum(StepRule):
    """Soft Diffusion's momentum sampler (Daras et al. 2022): deterministic in the blur, stochastic in the noise.

    u_s = u_t + (A_s - A_t)∘clean - (B_t² - B_s²)/B_t∘noise + √(B_t² - B_s²) z, without z on the last step.
    """

    def __call__(self, estimator: Estimator, u: Tensor, step: Step) -> Tensor:
        variance = step.source.noise.square() - step.target.noise.square()
        kept = step.source.noise - step.source.over_noise(variance)
        moved = move(u, estimator(u, step.t), step.source, step.target, kept)
        return moved if step.last else moved + variance.sqrt() * fresh_noise(step.draws, u)


class ReverseDiffusion(StepRule):
    """A step of the reverse-time SDE (Song et al. 2021b, Algorithm 2; Lee et al. 2022, Eq. 12, which prints b for √b).

    u_s = (2 - √a)∘u_t - b/B_t∘noise + √b z for each frequency, with √a = A_t/A_s and b = B_t² - a B_s² of the
    forward step; without z on the last step. It differs from ancestral sampling at second order in b.
    """

    def __call__(self, estimator: Estimator, u: Tensor, step: Step) -> Tensor:
        ratio = step_ratio(step.source, step.target)
        added = (step.source.noise.square() - (ratio * step.target.noise).square()).clamp(min=0)
        moved = (2 - ratio) * u - step.source.over_noise(added) * estimator(u, step.t).noise
        return moved if step.last else moved + added.sqrt() * fresh_noise(step.draws, u)


def denoised_image(u: Tensor, estimate: Estimate, gains: Gains) -> Tensor:
    """The estimated clean image x̂0 = u - B∘noise + (1-A)∘clean as DCT coefficients: D + R for Table 5d."""
    return u - gains.noise * estimate.noise + gains.lost * estimate.clean
