"""A multistep exponential solver of the probability-flow ODE, frequency by frequency."""

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.parameterizations import denoised_image
from warm_lightning.samplers.rules import Step, StepRule, move
from warm_lightning.types import Estimator, Gains


class Multistep(StepRule):
    """DPM-Solver++ (Lu et al. 2022) frequency by frequency: each DCT coefficient has its own ℓ = ln(A/B).

    Along the ODE, d(u/B) = x̂0·e^ℓ dℓ for each frequency. So, with h = ℓ_s - ℓ_t,

        u_s = B_s/B_t·u_t + B_s ∫ x̂0 e^ℓ dℓ   from ℓ_t to ℓ_s,

    where x̂0 is extrapolated by a polynomial through its values at the last `order` levels. One network call per step:
    NFE N, where Heun's rule takes 2N - 1.

    The published 2M and 3M use polynomials in ℓ. Here the variable is the number of the step, the same for all
    frequencies: with blur, one step can change ℓ of a high frequency by thousands, and a polynomial in ℓ would be of no
    use.
    Nothing is divided by the length of a step, so churn, or a frequency at which nothing changes, is harmless; a step
    that is shorter than the grid's counts as a whole one, which only costs accuracy.

    The constant term of the polynomial is Euler's step, formula S. The extrapolated quantity is x̂0 = D + R
    (`denoised_image`), which is bounded where blur has erased the image; (1-M)⁻¹R amplifies a network's errors there
    and diverges. The last step, to ℓ = ∞, is Euler's, and so is the first, for lack of history; order 3 corrects the
    second-order error of the first step in the second one.

    Args:
        order: 1 (Euler), 2 or 3.

    Raises:
        UserError: when called, if there is no noise at a level above the last.
    """

    def __init__(self, order: int = 2) -> None:
        check(order in (1, 2, 3), f"order is {order}: it must be 1, 2 or 3")
        self.order = order

    def __call__(self, estimator: Estimator, u: Tensor, step: Step) -> Tensor:
        check(
            bool((step.gains_t.noise > 0).all()),
            "model.sampler.rule Multistep needs noise at every level but the last and in every frequency, and this "
            "process has one without: choose Euler, Heun or Direct",
        )
        estimate = estimator(u, step.t)
        step.history.append((step.gains_t, denoised_image(u, estimate, step.gains_t)))
        del step.history[: -self.order]
        moved = move(u, estimate, step.gains_t, step.gains_s, kept=step.kept_noise)
        return moved if step.last or len(step.history) == 1 else moved + self.continuation(step.history, step.gains_s)

    def continuation(self, history: list[tuple[Gains, Tensor]], gains_s: Gains) -> Tensor:
        """The correction of Euler's step: B_s ∫ (x̂0 - x̂0_t) e^ℓ dℓ for the polynomial through a history, [B, C, H, W].

        With q from 0 at t to 1 at s, and backward differences ∇ and ∇², x̂0 - x̂0_t is q∇x̂0 + q(q+1)/2·∇²x̂0. Over a step
        the weight B_s e^ℓ dℓ integrates to A_s (1 - e^-h), and its mean of q is 1/2 if it is even. Order 2 uses 1/2, as
        Lu et al. do. Order 3 uses 1/2 + κ/12, where κ is the slope of the logarithm of the weight over the step, and
        5/12 for the mean of q(q+1)/2.

        Args:
            history: gains and x̂0 at two or three levels, the present one last.
            gains_s: gains at level s.
        """
        (gains_before, image_before), (gains_t, image_t) = history[-2:]
        difference = image_t - image_before
        weight = mass(gains_t, gains_s)
        if len(history) == 3:
            second = difference - (image_before - history[0][1])
            return weight * ((0.5 + slope(gains_before, gains_t, gains_s) / 12) * difference + 5 / 12 * second)
        if self.order == 3:  # second step of the run: add the error of the first, Euler's, carried on to s
            weight = weight + gains_s.noise / gains_t.noise * mass(gains_before, gains_t)
        return weight / 2 * difference


def half_log_snr(gains: Gains) -> Tensor:
    """Half the logarithm of the signal-to-noise ratio of each frequency, ℓ = ln(A/B)."""
    return gains.log_signal - gains.noise.log()


def mass(gains_t: Gains, gains_s: Gains) -> Tensor:
    """The integral B_s ∫ e^ℓ dℓ = A_s (1 - e^-h) over a step from t to s."""
    return gains_s.signal * -torch.expm1(half_log_snr(gains_t) - half_log_snr(gains_s))


def slope(gains_before: Gains, gains_t: Gains, gains_s: Gains) -> Tensor:
    """The slope κ of ln(e^ℓ ℓ') over a step, ℓ' + ℓ''/ℓ', by differences h + (h - h1)/h, with h1 the previous step.

    Both terms are limited, since differences mean little for long steps: h/(1 + h) stands for h, with which it agrees
    for short steps and stays below 1 for long ones, and the second term is clamped to [-1, 1].
    """
    h, h1 = half_log_snr(gains_s) - half_log_snr(gains_t), half_log_snr(gains_t) - half_log_snr(gains_before)
    tiny = torch.finfo(h.dtype).tiny  # for frequencies at which nothing changes
    return h / (1 + h) + (1 - h1 / h.clamp(min=tiny)).clamp(-1, 1)
