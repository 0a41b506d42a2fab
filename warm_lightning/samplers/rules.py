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
from warm_lightning.spectral import dct, frequencies, log_blur, positive_frequencies
from warm_lightning.types import Estimate, Estimator, Gains, Level


@dataclass(frozen=True)
class Step:
    """A step from level t to level s, as rules need it.

    Attributes:
        t: the level of u.
        gains_t: gains at t.
        s: the next level.
        gains_s: gains at s.
        last: whether sampling ends at s.
        draws: the source of fresh noise.
        history: gains and images of earlier steps of this run, which a multistep rule stores here itself.
    """

    t: Level
    gains_t: Gains
    s: Level
    gains_s: Gains
    last: bool
    draws: Draws
    history: list[tuple[Gains, Tensor]] = field(default_factory=list)

    @property
    def kept_noise(self) -> Tensor:
        """The noise gain B_s, but 0 at the last level, where deterministic rules return the mean even if B_0 > 0."""
        return torch.zeros_like(self.gains_s.noise) if self.last else self.gains_s.noise

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


def gain_difference(gains_s: Gains, gains_t: Gains) -> Tensor:
    """The difference A_s - A_t, without cancellation for small blurs or overflow for large ones."""
    log_ratio = gains_s.log_signal - gains_t.log_signal
    larger = torch.maximum(gains_s.log_signal, gains_t.log_signal).exp()
    return torch.sign(log_ratio) * larger * -torch.expm1(-log_ratio.abs())


def step_ratio(gains_t: Gains, gains_s: Gains) -> Tensor:
    """The ratio A_t/A_s of a step from t to s, as the exponential of a difference, since both may underflow."""
    return (gains_t.log_signal - gains_s.log_signal).exp()


def split_noise(gains_t: Gains, gains_s: Gains, eta: Tensor | float) -> tuple[Tensor, Tensor]:
    """The noise gain of level s, split into the part kept from u_t and the part drawn afresh.

    σ is η times that of the Markov posterior, per frequency: σ² = η² B_s²/B_t² (B_t² - (A_t/A_s)² B_s²). It is the σ_t
    of Eq. 5; for η = 1 see Song et al. 2021, Eq. 16.

    Returns:
        √(B_s² - σ²) and σ.
    """
    ratio = step_ratio(gains_t, gains_s)
    shrink = gains_t.over_noise(gains_s.noise)
    fresh = shrink * (gains_t.noise.square() - (ratio * gains_s.noise).square()).clamp(min=0).sqrt()
    # B_s² - η²σ² would cancel where the posterior keeps little noise; its closed form for η = 1 does not.
    kept = (1 - eta**2) * gains_s.noise.square() + (eta * shrink * ratio * gains_s.noise).square()
    return kept.clamp(min=0).sqrt(), torch.minimum(eta * fresh, gains_s.noise)


def move(u: Tensor, estimate: Estimate, gains_t: Gains, gains_s: Gains, kept: Tensor) -> Tensor:
    """Formula S without its last term, the fresh noise, which the caller adds: u_t moved to level s.

    It moves u_t rather than rebuilding A_s∘clean + B_s∘noise, because the two estimates of a network need not
    agree with the u_t that they were made from (Eq. 7). `kept` is √(B_s² - σ²), which is B_s for σ = 0.
    """
    return u + gain_difference(gains_s, gains_t) * estimate.clean + (kept - gains_t.noise) * estimate.noise


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

    def share(self, u: Tensor, gains: Gains) -> Tensor | float:
        """The share η of fresh noise in a step from a level; it may depend on the frequency."""
        return self.eta

    def __call__(self, estimator: Estimator, u: Tensor, step: Step) -> Tensor:
        estimate = self.estimate(estimator, u, step)
        if self.eta == 0:
            return move(u, estimate, step.gains_t, step.gains_s, kept=step.kept_noise)
        kept, fresh = split_noise(step.gains_t, step.gains_s, self.share(u, step.gains_t))
        moved = move(u, estimate, step.gains_t, step.gains_s, kept)
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
        trial = move(u, first, step.gains_t, step.gains_s, kept=step.gains_s.noise)
        return first.mean(estimator(trial, step.s))

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


class ColouredFreshNoise(Euler):
    """Euler's rule with fresh noise where the image is not yet known: colored noise sampling (Davidson et al. 2026).

    The share of fresh noise η depends on frequency and level: η² = η₀² (1 - γ)/mean(1 - γ), with γ the share of a
    frequency's power that is known, so that η² has the mean η₀² over frequencies (their Eq. 11). They measure γ on
    samples of each network; here it is that of normal data with a power law, γ = A²S/(A²S + B²) and S = c/λ^s. They
    colour the noise alone; here less of the old noise is kept where more is drawn afresh, so that each level has the
    variance that the process gives it.

    Args:
        mean_eta: η₀ of all frequencies together. Its name is not Euler's, whose 0 it would take over.
        c: c of the law, in units of images in [-1, 1]; 0 for γ = 0, which is Euler.
        s: s of the law, about 1 for photographs.
        power: of 1 - γ, ≥ 0; 1 in their text, 1.5 and 2 in their program.
    """

    def __init__(self, mean_eta: float = 1.0, c: float = 0.4, s: float = 1.0, power: float = 1.0) -> None:
        super().__init__(mean_eta)
        check(c >= 0, f"c is {c}: a power is 0 or more")
        check(power >= 0, f"power is {power}: it must be 0 (the same at all frequencies) or more")
        self.c = c
        self.s = s
        self.power = power

    def share(self, u: Tensor, gains: Gains) -> Tensor | float:
        known = gains.signal.square() * self.c * positive_frequencies(u) ** -self.s
        total = known + gains.noise.square()
        unknown = torch.where(total > 0, gains.noise.square() / torch.where(total > 0, total, 1.0), 1.0) ** self.power
        return self.eta * (unknown / unknown.mean(dim=(-2, -1), keepdim=True)).sqrt()


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
        image = step.gains_s.signal * estimator(u, step.t).clean
        return image if self.delta == 0 or step.last else image + self.delta * fresh_noise(step.draws, u)


class AdaptiveHeat(StepRule):
    """The step of heat dissipation flow matching as its authors' program takes it (Ma et al. 2026).

    It is for `FlowMatching` with `HeatDissipation` of strength 1.

    The velocity towards the image is that of flow matching, v = (M x̂0 - u)/t, less a share of the blur's own,
    w = -λM x̂0, which along their path is half of it. Here the share is |Δv|²/(|Δv|² + |Δ(v - w)|²) for each image, from
    0.05 to 0.95, with Δ the change over a trial step with the share 1/2. The step itself is Heun's, and the last one
    Euler's with the share 1/2. Where the share is not 1/2, the step leaves the path.

    Attributes:
        least: the least share.
        most: the largest one.
    """

    least = 0.05
    most = 0.95

    def __call__(self, estimator: Estimator, u: Tensor, step: Step) -> Tensor:
        clock, beta = step.t.clock, step.t.beta
        off = torch.where(clock < 1, beta * (1 - clock) - clock, 0.0).abs().max() + (clock > 1).any()
        check(
            off.item() < 1e-6,
            "model.sampler.rule AdaptiveHeat is for the process FlowMatching: choose Euler or Heun",
        )
        length = (step.t.clock - step.s.clock).to(u).view(-1, 1, 1, 1)
        first = self.velocities(estimator(u, step.t), u, step.t)
        if step.last:
            return u + length * (first[0] - first[1] / 2)
        trial = u + length * (first[0] - first[1] / 2)
        second = self.velocities(estimator(trial, step.s), trial, step.s)
        changes = second[0] - first[0], (second[0] - second[1]) - (first[0] - first[1])
        plain, full = (change.square().mean(dim=(1, 2, 3), keepdim=True) for change in changes)
        share = (plain / (plain + full)).nan_to_num(0.5).clamp(self.least, self.most)
        return u + length / 2 * (first[0] + second[0] - share * (first[1] + second[1]))

    def velocities(self, estimate: Estimate, u: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """v and w at a level above the last."""
        rates = frequencies(u)
        blurred = log_blur(rates, level.alpha.to(u).view(-1, 1, 1, 1)).exp() * estimate.clean
        return (blurred - u) / level.clock.to(u).view(-1, 1, 1, 1), -rates * blurred

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


class Momentum(StepRule):
    """Soft Diffusion's momentum sampler (Daras et al. 2022): deterministic in the blur, stochastic in the noise.

    u_s = u_t + (A_s - A_t)∘clean - (B_t² - B_s²)/B_t∘noise + √(B_t² - B_s²) z, without z on the last step.
    """

    def __call__(self, estimator: Estimator, u: Tensor, step: Step) -> Tensor:
        variance = step.gains_t.noise.square() - step.gains_s.noise.square()
        kept = step.gains_t.noise - step.gains_t.over_noise(variance)
        moved = move(u, estimator(u, step.t), step.gains_t, step.gains_s, kept)
        return moved if step.last else moved + variance.sqrt() * fresh_noise(step.draws, u)


class ReverseDiffusion(StepRule):
    """A step of the reverse-time SDE (Song et al. 2021b, Algorithm 2; Lee et al. 2022, Eq. 12, which prints b for √b).

    u_s = (2 - √a)∘u_t - b/B_t∘noise + √b z for each frequency, with √a = A_t/A_s and b = B_t² - a B_s² of the
    forward step; without z on the last step. It differs from ancestral sampling at second order in b.
    """

    def __call__(self, estimator: Estimator, u: Tensor, step: Step) -> Tensor:
        ratio = step_ratio(step.gains_t, step.gains_s)
        added = (step.gains_t.noise.square() - (ratio * step.gains_s.noise).square()).clamp(min=0)
        moved = (2 - ratio) * u - step.gains_t.over_noise(added) * estimator(u, step.t).noise
        return moved if step.last else moved + added.sqrt() * fresh_noise(step.draws, u)
