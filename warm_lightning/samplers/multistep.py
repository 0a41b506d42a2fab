"""A multistep exponential solver of the probability-flow ODE, frequency by frequency."""

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.samplers.rules import Step, StepRule, clean_view, move
from warm_lightning.types import Estimator, Gains


def half_log_snr(gains: Gains) -> Tensor:
    """ℓ = ln(A/B), half the logarithm of the signal-to-noise ratio, of each frequency."""
    return gains.log_signal - gains.noise.log()


class Multistep(StepRule):
    """DPM-Solver++ (Lu et al. 2022) in which each DCT coefficient has its own half-logarithmic SNR ℓ = ln(A/B).

    Along the ODE, d(u/B) = x̂0·e^ℓ dℓ holds for every frequency by itself. So, with h = ℓ_s - ℓ_t,

        u_s = B_s/B_t·u_t + B_s ∫ x̂0(ℓ) e^ℓ dℓ   from ℓ_t to ℓ_s,

    in which x̂0 is continued as a polynomial through its values at the last `order` levels, and the integral is then
    exact. One network call a step: NFE N, where Heun's rule takes 2N - 1.

    The constant term of the polynomial is Euler's step, formula S with the beliefs as they are. What is continued is
    x̂0 = D + R (`clean_view`): it is finite and smooth where blur has left nothing, which (1-M)⁻¹R is not. The last
    step, to B = 0 and ℓ = ∞, is Euler's, and so is the first, there being no history.

    Args:
        order: 1 (Euler), 2 (2M) or 3 (3M).
    """

    def __init__(self, order: int = 2) -> None:
        check(order in (1, 2, 3), f"order is {order}: it must be 1, 2 or 3")
        self.order = order

    def __call__(self, ask: Estimator, u: Tensor, step: Step) -> Tensor:
        estimate = ask(u, step.t)
        step.history.append((step.source, clean_view(u, estimate, step.source)))
        del step.history[: -self.order]
        moved = move(u, estimate, step.source, step.target, kept=step.target.noise)
        return moved if step.last or len(step.history) == 1 else moved + continuation(step.history, step.target)


def continuation(history: list[tuple[Gains, Tensor]], target: Gains) -> Tensor:
    """B_s ∫ (x̂0(ℓ) - x̂0(ℓ_t)) e^ℓ dℓ for the polynomial through the values of a history.

    In Newton's form, with τ = ℓ - ℓ_t and divided differences d1 and d2, x̂0(ℓ) - x̂0(ℓ_t) is d1·τ + d2·τ(τ + h1), and
    B_s ∫ τ e^ℓ dℓ = A_s (h - 1 + e^-h),  B_s ∫ τ² e^ℓ dℓ = A_s (h² - 2h + 2 - 2e^-h).

    Args:
        history: gains and x̂0 at two or three levels, the present one last.
        target: gains at level s.
    """
    (*_, (before, earlier), (here, now)) = history
    position = half_log_snr(here)
    h, h1 = half_log_snr(target) - position, position - half_log_snr(before)
    first = h + torch.expm1(-h)
    d1 = (now - earlier) / h1
    if len(history) == 2:
        return target.signal * first * d1
    long_before, earliest = history[0]
    h2 = half_log_snr(before) - half_log_snr(long_before)
    d2 = (d1 - (earlier - earliest) / h2) / (h1 + h2)
    second = h * h - 2 * first
    return target.signal * (first * d1 + (second + h1 * first) * d2)
