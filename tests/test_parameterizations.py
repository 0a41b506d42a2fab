"""Table 5's four parameterizations, and the two of other papers: what branches say, and what is made of it."""

import pytest
import torch
from small import DIGITS
from torch import Tensor
from truths import Prescribed, clocks, gains_at, noise, step_of

from warm_lightning import load_config
from warm_lightning.errors import UserError
from warm_lightning.losses import SquaredError, StepWeighted
from warm_lightning.parameterizations import (
    DenoiseDeblur,
    Denoiser,
    DenoiseRestore,
    Epsilon,
    InvertedBlur,
    LeastSquares,
    LessBlurred,
    MeasuredLeastSquares,
    Parameterization,
    Residual,
    Sum,
)
from warm_lightning.processes import BlurringDiffusion, BlurringSchedule, ConstantBNR, Hot, Process, Warm
from warm_lightning.samplers import Euler, Heun
from warm_lightning.spectral import dct, frequencies, idct
from warm_lightning.types import Estimate, Gains

BETAS = [0.01, 0.3, 2.0, 9.0, 80.0]
MEASURED = MeasuredLeastSquares([0.1, 1, 10], [0.25, 0.75], [[1e-3, 0.5], [4.0, 1.0], [1.0, 1e3]])
COMBINED = [
    DenoiseDeblur(Sum()),
    DenoiseDeblur(LeastSquares(0.3)),
    DenoiseDeblur(MEASURED),
    DenoiseDeblur(LeastSquares(), combine_noise=True),
]
EXACT = [Denoiser(), InvertedBlur(d_min=0), DenoiseRestore(), DenoiseDeblur(), *COMBINED]
X0, Z = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
TRUTH = Estimate(dct(X0), dct(Z))
WARM = [Hot(), Warm(ConstantBNR(0.5)), Warm(BlurringSchedule())]


def mask(process: Warm, beta: float) -> Tensor:
    return torch.exp(-frequencies(X0) * process.level(clocks(beta)).alpha ** 2 / 2)


@pytest.mark.parametrize("process", WARM)
@pytest.mark.parametrize("beta", BETAS)
def test_targets_are_table_5s(process: Warm, beta: float) -> None:
    gains, blurred = gains_at(process, beta, X0), idct(mask(process, beta) * dct(X0))
    expected = {
        Denoiser: [X0],
        InvertedBlur: [blurred],
        DenoiseRestore: [blurred, X0],
        DenoiseDeblur: [blurred, X0 - blurred],
    }
    for parameterization in EXACT:
        targets = parameterization.targets(TRUTH, gains)
        torch.testing.assert_close(targets, torch.stack(expected[type(parameterization)], 1), rtol=0, atol=1e-13)
        # c_skip adds the input to branches whose target has its signal, which R's residual has not.
        residual = isinstance(parameterization, DenoiseDeblur)
        assert parameterization.skips == ((1.0, 0.0) if residual else (1.0,) * targets.shape[1])
        assert len(parameterization.names) == len(parameterization.skips) == targets.shape[1]


@pytest.mark.parametrize("process", WARM)
@pytest.mark.parametrize("beta", BETAS)
def test_given_the_true_targets_all_agree(process: Warm, beta: float) -> None:
    """(b) cannot know what is gone: where M < 1e-154 it has 0, which moves nothing there."""
    gains = gains_at(process, beta, X0)
    u = process.degrade(TRUTH, gains)
    for parameterization in EXACT:
        estimate = parameterization.estimate(parameterization.targets(TRUTH, gains), u, gains)
        known = (mask(process, beta) > 1e-140).expand_as(u) | (type(parameterization) is not InvertedBlur)
        # 1e-16 divided by 1 - M ≥ 1e-6 or by M, which a difference of gains takes back.
        weight = torch.where(known, gains.signal if isinstance(parameterization, InvertedBlur) else 1.0, 0.0)
        torch.testing.assert_close(weight * estimate.clean, weight * TRUTH.clean, rtol=0, atol=1e-9)
        torch.testing.assert_close(estimate.noise, TRUTH.noise, rtol=0, atol=1e-12)


# Not where a step undoes so much blur that (b) without d_min amplifies the rounding of a transform.
@pytest.mark.parametrize("process", WARM[:2])
@pytest.mark.parametrize(("t", "s"), [(2.0, 1.0), (0.3, 0.1), (0.01, 0.002), (0.01, 0.0)])
@pytest.mark.parametrize("rule", [Euler(), Heun(), Euler(1.0)])
def test_all_take_the_same_step(process: Warm, t: float, s: float, rule: Euler | Heun) -> None:
    u = process.degrade(TRUTH, gains_at(process, t, X0))
    moved = []
    for parameterization in EXACT:

        def ask(u: Tensor, level, parameterization: Parameterization = parameterization) -> Estimate:
            gains = process.gains(level, u)
            return parameterization.estimate(parameterization.targets(TRUTH, gains), u, gains)

        moved.append(rule(ask, u, step_of(process, u, t, s, Prescribed(Z))))
    for other in moved[1:]:
        torch.testing.assert_close(other, moved[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", WARM)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("ratio", [0.1, 1.0, 30.0])
def test_least_squares_has_the_least_error(process: Warm, beta: float, ratio: float) -> None:
    """For errors of D and R of variances κ and 1, x̂0 = w D/M + (1-w) R/(1-M) has w² κ/M² + (1-w)²/(1-M)²."""
    gains = gains_at(process, beta, X0)
    zero, one = torch.zeros_like(X0), torch.ones_like(X0)
    combinations = [LeastSquares(ratio), Residual(), Sum()]
    # A combination is linear, so that its answers to D alone and R alone are its factors.
    factors = [(c(one, zero, gains), c(zero, one, gains)) for c in combinations]
    errors = [a.square() * ratio + b.square() for a, b in factors]
    assert all(bool((errors[0] <= (1 + 1e-9) * other).all()) for other in errors[1:])
    kept, lost = gains.signal.expand_as(X0), gains.lost.expand_as(X0)
    both = (kept > 1e-6) & (lost > 1e-6)
    shares = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
    scan = shares.square() * ratio / kept[both].square() + (1 - shares).square() / lost[both].square()
    least = scan.amin(0)
    assert bool((errors[0][both] <= least).all())
    # Off the minimum by at most half a step of the scan, where the curvature is 2κ/M² + 2/(1-M)².
    curvature = 2 * ratio / kept[both].square() + 2 / lost[both].square()
    assert bool((errors[0][both] >= least - curvature * 0.0005**2).all())


def test_measured_ratios_are_interpolated() -> None:
    def ratio(noise: float, share: float) -> float:
        gains = Gains(torch.tensor([[[[share]]]]).double().log(), torch.tensor([[[[noise]]]]).double())
        return MEASURED.ratio(gains).item()

    table = [[ratio(noise, share) for share in (0.25, 0.75)] for noise in (0.1, 1, 10)]
    torch.testing.assert_close(torch.tensor(table).double(), MEASURED.ratios)
    assert ratio(1, 0.5) == pytest.approx(2)  # the geometric mean of 4 and 1
    assert ratio(10**0.5, 0.75) == pytest.approx(1000**0.5)
    assert ratio(1e-4, 1e-9) == pytest.approx(1e-3)  # beyond the table as at its border
    assert ratio(1e4, 1.0) == pytest.approx(1e3)


def test_combined_noise_agrees_with_the_image() -> None:
    """A∘x̂0 + B∘ε̂ = u for D and R that disagree; without `combine_noise`, ε̂ is the paper's (u - D)/B."""
    gains = gains_at(WARM[1], 2.0, X0)
    u, outputs = WARM[1].degrade(TRUTH, gains), torch.stack([X0, Z], dim=1)
    estimate = DenoiseDeblur(LeastSquares(), combine_noise=True).estimate(outputs, u, gains)
    torch.testing.assert_close(gains.signal * estimate.clean + gains.noise * estimate.noise, u)
    papers = DenoiseDeblur(LeastSquares()).estimate(outputs, u, gains)
    assert torch.equal(papers.clean, estimate.clean)
    torch.testing.assert_close(papers.noise, (u - dct(X0)) / gains.noise)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1, 0.1], [0.5], [[1.0], [1.0]]), "noise is"),
        (([0.1], [], [[]]), "share is"),
        (([0.0], [0.5], [[1.0]]), "above 0"),
        (([0.1], [0.5], [[0.0]]), "positive numbers"),
        (([0.1, 1.0], [0.5], [[1.0]]), "2 rows of 1"),
    ],
)
def test_wrong_ratios_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MeasuredLeastSquares(*arguments)
    with pytest.raises(UserError, match="ratio is 0"):
        LeastSquares(0)


@pytest.mark.parametrize("beta", BETAS)
def test_step_weighted_is_what_a_step_uses(beta: float) -> None:
    """The gradient of a short step by R, a difference quotient, over its largest value, 2; D has the weight 1."""
    process, small = WARM[1], 1e-6
    gains, nearer = (gains_at(process, b, X0) for b in (beta, beta * (1 - small)))
    u, outputs = process.degrade(TRUTH, gains), DenoiseDeblur().targets(TRUTH, gains)
    changed = torch.stack([outputs[:, 0], outputs[:, 1] + 0.5 * Z], dim=1)
    estimates = [DenoiseDeblur().estimate(o, u, gains).clean for o in (outputs, changed)]
    moved = (nearer.signal - gains.signal) * (estimates[1] - estimates[0]) / small / 2
    loss = StepWeighted()(changed - outputs, gains)
    # At DC the residual is 0, and no step uses it; the loss keeps its weight there, so that R learns to be 0.
    constant = (0.5 * dct(Z)[..., :1, :1]).square().sum((1, 2, 3))
    torch.testing.assert_close(loss[:, 1], moved.square().sum((1, 2, 3)) + constant, rtol=1e-4, atol=1e-9)
    assert torch.equal(loss[:, 0], torch.zeros(2))
    floored = StepWeighted(floor=1)(changed - outputs, gains)
    torch.testing.assert_close(floored, SquaredError()(changed - outputs, gains))


def test_step_weighted_refuses() -> None:
    with pytest.raises(UserError, match="StepWeighted is for the outputs denoise, deblur, and DenoiseRestore has"):
        load_config(DIGITS, {"model.loss": "StepWeighted", "model.parameterization": "DenoiseRestore"})
    with pytest.raises(UserError, match="floor is 2"):
        StepWeighted(2)


@pytest.mark.parametrize("d_min", [0.001, 0.1])
@pytest.mark.parametrize("beta", BETAS)
def test_inverted_blur_is_off_by_its_factor(d_min: float, beta: float) -> None:
    """x̂0 = M/((1-d_min)M + d_min) x0; and what it amplifies, by 1/d_min at most. ε̂ is none of its business."""
    process, parameterization = Warm(ConstantBNR(0.5)), InvertedBlur(d_min)
    gains, m = gains_at(process, beta, X0), mask(process, beta)
    u = process.degrade(TRUTH, gains)
    estimate = parameterization.estimate(parameterization.targets(TRUTH, gains), u, gains)
    factor = m / ((1 - d_min) * m + d_min)
    torch.testing.assert_close(estimate.clean, factor * TRUTH.clean, rtol=0, atol=1e-11)
    torch.testing.assert_close(estimate.noise, TRUTH.noise, rtol=0, atol=1e-12)
    error = parameterization.estimate(idct(torch.ones_like(u))[:, None], u, gains).clean
    assert error.max() <= 1 / d_min * (1 + 1e-9)
    # At BNR 0.5 and the last of 18 levels blur has taken nothing worth mention, and the factor is 1 to 1e-6.
    assert beta > 0.01 or (factor - 1).abs().max() < d_min * 1e-3


def test_single_precision_inverts_a_small_blur() -> None:
    """(1 - d_min)·M + d_min where M rounds to 1, and 1 - M where it would be 0."""
    process, x = Warm(ConstantBNR(0.5)), X0.float()
    gains, truth = gains_at(process, 0.002, x), Estimate(dct(x), dct(Z.float()))
    u = process.degrade(truth, gains)
    for parameterization in (InvertedBlur(), DenoiseRestore(), DenoiseDeblur()):
        estimate = parameterization.estimate(parameterization.targets(truth, gains), u, gains)
        torch.testing.assert_close(estimate.clean, truth.clean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_division_by_gains_that_underflow(dtype: torch.dtype) -> None:
    """Finite, whatever a network says of frequencies of which the blur has left nothing."""
    x, process = X0.to(dtype), Warm(ConstantBNR(10))
    for parameterization in [*EXACT, InvertedBlur(), Epsilon()]:
        for beta in (80.0, 2.0, 0.002):
            outputs = 1e3 * torch.ones(2, len(parameterization.names), 3, 8, 8, dtype=dtype)
            gains = gains_at(process, beta, x)
            estimate = parameterization.estimate(outputs, x, gains)
            assert estimate.clean.isfinite().all()
            assert (gains.signal * estimate.clean).abs().max() < 1e6
            assert estimate.noise.isfinite().all()


@pytest.mark.parametrize("process", [*WARM, BlurringDiffusion()])
def test_epsilon_is_the_noise_in_pixels(process: Process) -> None:
    gains = gains_at(process, 0.6, X0)
    u = process.degrade(TRUTH, gains)
    targets = Epsilon().targets(TRUTH, gains)
    torch.testing.assert_close(targets[:, 0], Z, rtol=0, atol=1e-13)
    estimate = Epsilon().estimate(targets, u, gains)
    torch.testing.assert_close(gains.signal * estimate.clean, gains.signal * TRUTH.clean, rtol=0, atol=1e-12)


def test_less_blurred_needs_a_process_in_steps() -> None:
    with pytest.raises(UserError, match="LessBlurred needs a process in discrete steps") as error:
        LessBlurred().targets(TRUTH, gains_at(Warm(), 1.0, X0))
    assert "\n" not in str(error.value)
