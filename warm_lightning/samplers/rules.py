"""Rules for a step from one level to the next."""

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
    """What a rule needs to know of a step from level t to level s.

    Attributes:
        t: the level of u.
        source: gains there.
        s: the next level.
        target: gains there.
        last: whether sampling ends at s.
        draws: where fresh noise comes from.
        history: what the rule remembers of earlier steps of the run: empty at first, and its own to fill.
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
        """B_s, but none at the last level: it may have noise in its law, and the mean is returned there."""
        return torch.zeros_like(self.target.noise) if self.last else self.target.noise

    @classmethod
    def between(
        cls, process: Process, u: Tensor, t: Level, s: Level, draws: Draws, history: list | None = None
    ) -> "Step":
        """The step of a process for u [B, C, H, W]."""
        history = [] if history is None else history
        return cls(t, process.gains(t, u), s, process.gains(s, u), process.ends(s), draws, history)


def fresh_noise(draws: Draws, like: Tensor) -> Tensor:
    """Standard normal noise as DCT coefficients, drawn as pixels, in the shape of `like` [B, C, H, W]."""
    return dct(draws.normal(*like.shape[1:], dtype=like.dtype))


def gain_difference(target: Gains, source: Gains) -> Tensor:
    """A_s - A_t without cancellation for small blurs and without overflow for large ones."""
    log_ratio = target.log_signal - source.log_signal
    larger = torch.maximum(target.log_signal, source.log_signal).exp()
    return torch.sign(log_ratio) * larger * -torch.expm1(-log_ratio.abs())


def step_ratio(source: Gains, target: Gains) -> Tensor:
    """A_t/A_s, of a step from t to s, as the exponential of a difference: both may underflow."""
    return (source.log_signal - target.log_signal).exp()


def over_noise(numerator: Tensor, gains: Gains) -> Tensor:
    """numerator/B; 0 where there is no noise, about which nobody has a belief that could count."""
    silent = gains.noise == 0
    return torch.where(silent, 0.0, numerator / torch.where(silent, 1.0, gains.noise))


def split_noise(source: Gains, target: Gains, eta: float) -> tuple[Tensor, Tensor]:
    """How the noise of level s divides into what is kept of the present noise and what is drawn afresh.

    σ is η times that of the Markov posterior, per frequency: σ² = η² B_s²/B_t² (B_t² - (A_t/A_s)² B_s²).

    Returns:
        √(B_s² - σ²) and σ.
    """
    ratio = step_ratio(source, target)
    shrink = over_noise(target.noise, source)
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
    """How to get from level t to level s. All share one call shape."""

    @abstractmethod
    def __call__(self, ask: Estimator, u: Tensor, step: Step) -> Tensor:
        """One step u_t → u_s, [B, C, H, W].

        Args:
            ask: the network or oracle.
            u: u_t.
            step: from where to where.
        """

    def evaluations(self, steps: int) -> int:
        """NFE: network calls for a whole run of `steps` steps."""
        return steps


class Interpolating(StepRule):
    """Formula S, with fresh noise between none and that of the Markov posterior; a subclass says whose belief it is.

    Args:
        eta: η, how much fresh noise a step draws: 0 is deterministic (Algorithm 2), 1 the Markov posterior
            (ancestral sampling), and what lies between or beyond scales its σ (Song et al. 2021, Eq. 16).
    """

    def __init__(self, eta: float = 0.0) -> None:
        check(eta >= 0, f"eta is {eta}: it must be 0 (deterministic) or more")
        self.eta = eta

    @abstractmethod
    def estimate(self, ask: Estimator, u: Tensor, step: Step) -> Estimate:
        """The belief to move by."""

    def __call__(self, ask: Estimator, u: Tensor, step: Step) -> Tensor:
        estimate = self.estimate(ask, u, step)
        if self.eta == 0:
            return move(u, estimate, step.source, step.target, kept=step.kept_noise)
        kept, fresh = split_noise(step.source, step.target, self.eta)
        moved = move(u, estimate, step.source, step.target, kept)
        return moved if step.last else moved + fresh * fresh_noise(step.draws, u)


class Euler(Interpolating):
    """First order: the belief at t. With η = 0 this is DDIM, with η = 1 ancestral sampling."""

    def estimate(self, ask: Estimator, u: Tensor, step: Step) -> Estimate:
        return ask(u, step.t)


class Heun(Interpolating):
    """Second order: the mean of the beliefs at t and at where Euler would land at s (Algorithm 2).

    The step into the last level is Euler's, at which there is nothing to ask. The trial step is
    deterministic whatever η, so that the second belief knows nothing of the noise still to be drawn.
    """

    def estimate(self, ask: Estimator, u: Tensor, step: Step) -> Estimate:
        first = ask(u, step.t)
        if step.last:
            return first
        trial = move(u, first, step.source, step.target, kept=step.target.noise)
        return first.mean(ask(trial, step.s))

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


class Direct(StepRule):
    """u_s = A_s∘clean + δz: the image it believes in, degraded anew, instead of a move.

    Cold Diffusion's Algorithm 1 with δ = 0 (Bansal et al. 2022); with LessBlurred beliefs and δ > 0, inverse heat
    dissipation (Rissanen et al. 2023, Eq. 8), whose chain must then be taken whole.

    Args:
        delta: δ, standard deviation of the fresh noise, none on the last step.
    """

    def __init__(self, delta: float = 0.0) -> None:
        check(delta >= 0, f"delta is {delta}: it must be 0 (no noise) or more")
        self.delta = delta

    def __call__(self, ask: Estimator, u: Tensor, step: Step) -> Tensor:
        image = step.target.signal * ask(u, step.t).clean
        return image if self.delta == 0 or step.last else image + self.delta * fresh_noise(step.draws, u)


class Momentum(StepRule):
    """Soft Diffusion's momentum sampler (Daras et al. 2022): the blur is transported, the noise walks back at random.

    u_s = u_t + (A_s - A_t)∘clean - (B_t² - B_s²)/B_t∘noise + √(B_t² - B_s²) z, without z on the last step.
    """

    def __call__(self, ask: Estimator, u: Tensor, step: Step) -> Tensor:
        variance = step.source.noise.square() - step.target.noise.square()
        kept = step.source.noise - over_noise(variance, step.source)
        moved = move(u, ask(u, step.t), step.source, step.target, kept)
        return moved if step.last else moved + variance.sqrt() * fresh_noise(step.draws, u)


class ReverseDiffusion(StepRule):
    """A step of the reverse-time SDE (Song et al. 2021b, Algorithm 2; Lee et al. 2022, Eq. 12, with its missing root).

    u_s = (2 - √a)∘u_t - b/B_t∘noise + √b z per frequency, where √a = A_t/A_s and b = B_t² - a B_s² are those of the
    forward step; without z on the last step. It differs from ancestral sampling at second order in b.
    """

    def __call__(self, ask: Estimator, u: Tensor, step: Step) -> Tensor:
        ratio = step_ratio(step.source, step.target)
        added = (step.source.noise.square() - (ratio * step.target.noise).square()).clamp(min=0)
        moved = (2 - ratio) * u - over_noise(added, step.source) * ask(u, step.t).noise
        return moved if step.last else moved + added.sqrt() * fresh_noise(step.draws, u)


def denoised_image(u: Tensor, estimate: Estimate, gains: Gains) -> Tensor:
    """x̂0 = u - B∘noise + (1-A)∘clean: the picture to show on the way, D + R for Table 5d."""
    return u - gains.noise * estimate.noise + gains.lost * estimate.clean
