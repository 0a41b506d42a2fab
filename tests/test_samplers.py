"""Samplers against the oracles: the whole loop without a network."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from disagreeing_oracle import DisagreeingOracle
from torch import Tensor
from truths import final_variance

from warm_lightning.data import CIFAR10
from warm_lightning.errors import UserError
from warm_lightning.images import dequantise
from warm_lightning.oracles import DatasetOracle, GaussianOracle
from warm_lightning.parameterizations import DenoiseDeblur
from warm_lightning.preconditioning import EDMPreconditioning
from warm_lightning.processes import ConstantBNR, Hot, PowerLaw, Warm
from warm_lightning.rng import SeedStreams
from warm_lightning.samplers import (
    ColouredFreshNoise,
    Euler,
    Heun,
    PowerGrid,
    Sampler,
    Step,
    StepRule,
    gain_difference,
    split_noise,
)
from warm_lightning.spectral import dct, frequencies, idct, power_spectrum
from warm_lightning.types import Gains, Level

BNRS = [0, 0.1, 0.5, 2, 10]


@pytest.fixture(scope="module")
def photographs(cifar10_zip: Path) -> Tensor:
    images = CIFAR10(path=str(cifar10_zip)).load("held_out")
    assert images is not None
    return dequantise(images.images[::10], torch.float64)  # 1,000 images of all classes


@pytest.fixture(scope="module")
def spectrum(photographs: Tensor) -> Tensor:
    return power_spectrum(photographs)


def draws(batch: int, seed: int) -> SeedStreams:
    return SeedStreams(range(1000 * seed, 1000 * seed + batch))


def start(batch: int, seed: int) -> Tensor:
    return draws(batch, seed).normal(3, 32, 32, dtype=torch.float64)


def test_grid_is_equation_21() -> None:
    n, rho = 5, 3.0
    expected = [
        (80 ** (1 / rho) + (n - i) / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho for i in range(n, 0, -1)
    ]
    torch.testing.assert_close(PowerGrid(n, rho=rho).clocks(), torch.tensor([*expected, 0], dtype=torch.float64))
    assert [len(PowerGrid(n).clocks()) - 1 for n in (1, 18)] == [1, 18]


@pytest.mark.parametrize(("steps", "nfe"), [(18, 35), (40, 79), (256, 511)])
def test_nfe_is_the_counted_number_of_calls(steps: int, nfe: int) -> None:
    asked = []
    oracle = GaussianOracle(torch.ones(4, 4, dtype=torch.float64), Warm())

    def ask(u: Tensor, level: Level):
        asked.append(level)
        return oracle(u, level)

    sampler = Sampler(PowerGrid(steps), Heun())
    sampler(ask, Warm(), torch.ones(1, 1, 4, 4, dtype=torch.float64), draws(1, 0))
    assert len(asked) == nfe == sampler.nfe
    assert Sampler(PowerGrid(steps), Euler()).nfe == steps


@pytest.mark.parametrize(
    "make",
    [lambda: PowerGrid(0), lambda: PowerGrid(rho=-1), lambda: PowerGrid(beta_min=90), lambda: Heun(eta=-0.1)],
)
def test_impossible_settings_are_refused(make) -> None:
    with pytest.raises(UserError):
        make()


def test_gain_difference_keeps_its_digits() -> None:
    # A_s - A_t for blurs so small that both gains round to 1, and so large that their ratio overflows.
    tiny, huge = -torch.tensor([1e-20, 5000.0], dtype=torch.float64).view(2, 1, 1, 1)
    none = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    forward = gain_difference(Gains(none, none), Gains(tiny, none))
    assert forward.item() == pytest.approx(1e-20, rel=1e-12)
    assert gain_difference(Gains(tiny, none), Gains(none, none)).item() == -forward.item()
    assert gain_difference(Gains(none, none), Gains(huge, none)).item() == 1
    assert gain_difference(Gains(huge, none), Gains(huge, none)).item() == 0


def test_euler_is_equation_7_term_by_term() -> None:
    process, u = Warm(ConstantBNR(0.5)), torch.randn(1, 1, 8, 8, dtype=torch.float64)
    t, s = (process.level(torch.tensor([b], dtype=torch.float64)) for b in (1.0, 0.6))
    blurred, residual = torch.randn(2, 1, 1, 8, 8, dtype=torch.float64)
    residual[..., 0, 0] = 0

    def ask(u: Tensor, level: Level):
        outputs = idct(torch.stack([blurred, residual], dim=1))
        return DenoiseDeblur().estimate(outputs, u, process.gains(level, u))

    def mask(level: Level) -> Tensor:
        return torch.exp(-frequencies(u) * level.alpha**2 / 2)

    lost = 1 - mask(t)
    deblur = (mask(s) - mask(t)) * residual / torch.where(lost > 0, lost, 1)
    expected = u + deblur + (1.0 - 0.6) * (blurred - u) / 1.0
    moved = Euler()(ask, u, Step.between(process, u, t, s, draws(1, 0)))
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", [Hot(), Warm(ConstantBNR(0.1)), Warm(ConstantBNR(2))])
def test_ancestral_noise_is_the_markov_posteriors(process: Warm) -> None:
    # A second route: u_t = (A_t/A_s) u_s + N(0, B_t² - (A_t/A_s)² B_s²), so by Bayes the posterior of u_s given
    # u_t and u_0 has this variance and mean.
    like = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    t, s = (process.gains(process.level(torch.tensor([b], dtype=torch.float64)), like) for b in (0.9, 0.7))
    ratio = t.signal / s.signal
    added = t.noise**2 - ratio**2 * s.noise**2
    variance = 1 / (1 / s.noise**2 + ratio**2 / added)
    kept, fresh = split_noise(t, s, eta=1)
    torch.testing.assert_close(fresh.square().expand(variance.shape), variance, rtol=1e-12, atol=0)
    u0, z = 1.3, -0.4
    u_t = t.signal * u0 + t.noise * z
    mean = variance * (s.signal * u0 / s.noise**2 + ratio * u_t / added)
    torch.testing.assert_close(s.signal * u0 + kept * z, mean, rtol=1e-12, atol=0)
    # Any η keeps the marginal: kept² + σ² = B_s².
    for eta in (0.0, 0.3, 0.9):
        kept, fresh = split_noise(t, s, eta)
        torch.testing.assert_close(kept**2 + fresh**2, s.noise.square().expand(kept.shape), rtol=1e-12, atol=0)


def test_the_posterior_is_finite_where_the_blur_underflows() -> None:
    process = Warm(ConstantBNR(0.5))
    levels = PowerGrid(18).levels(process)
    like = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    for t, s in itertools.pairwise(levels):
        for part in split_noise(process.gains(t, like), process.gains(s, like), eta=1):
            assert part.isfinite().all()


@pytest.mark.parametrize("bnr", BNRS)
def test_samples_land_on_training_images(photographs: Tensor, bnr: float) -> None:
    u0 = dct(photographs)
    process = Warm(ConstantBNR(bnr))
    u = Sampler(PowerGrid(18))(DatasetOracle(u0, process), process, start(64, 0), draws(64, 0))
    nearest = torch.cdist(u.flatten(1), u0.flatten(1)).min(1).values.square() / u0[0].numel()
    assert (nearest < 1e-12).all()


@pytest.mark.parametrize("bnr", BNRS)
@pytest.mark.parametrize(("rule", "order"), [(Euler(), 1), (Heun(), 2)])
def test_order_of_convergence(spectrum: Tensor, rule: StepRule, order: int, bnr: float) -> None:
    process = Warm(ConstantBNR(bnr))
    oracle = GaussianOracle(spectrum, process)
    errors = []
    for steps in (128, 256, 512):
        sampler, path = Sampler(PowerGrid(steps), rule), []
        # All is linear in u, so a field of ones is as good as any noise.
        ones = idct(torch.ones(1, 3, 32, 32, dtype=torch.float64))
        sampler(oracle, process, ones, draws(1, 0), watch=lambda u, level, path=path: path.append(u))
        levels = sampler.grid.levels(process)
        exact = oracle.exact_flow(path[0], levels[0], levels[-2])
        errors.append((path[-2] - exact).norm().item())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(measured - order) < 0.2 for measured in orders), orders


@pytest.mark.parametrize("bnr", BNRS)
@pytest.mark.parametrize("rule", [Euler(0), Heun(0), Euler(1), Heun(1)])
def test_no_rule_needs_the_branches_to_agree(spectrum: Tensor, rule: StepRule, bnr: float) -> None:
    process = Warm(ConstantBNR(bnr))
    oracle = GaussianOracle(spectrum, process)
    disagreeing = DisagreeingOracle(oracle, process, DenoiseDeblur(), EDMPreconditioning(), errors=(0, 0.01))
    # The same noise for both: what differs is what the errors in R do. Measured: 3.5 % at most.
    variances = [
        Sampler(PowerGrid(18), rule)(ask, process, start(32, 1), draws(32, 2)).square().mean(0)
        for ask in (oracle, disagreeing)
    ]
    assert (variances[1] / variances[0] - 1).abs().max() < 0.1


def test_rebuilding_fails_with_the_disagreeing_oracle(spectrum: Tensor) -> None:
    # The test above can fail: the sampler that rebuilds A_s∘clean + B_s∘noise fails it by a wide margin.
    class Rebuild(Euler):
        def __call__(self, ask, u, step):
            estimate = ask(u, step.t)
            return step.gains_s.signal * estimate.clean + step.gains_s.noise * estimate.noise

    process = Warm(ConstantBNR(0.5))
    oracle = GaussianOracle(spectrum, process)
    disagreeing = DisagreeingOracle(oracle, process, DenoiseDeblur(), EDMPreconditioning(), errors=(0, 0.01))
    good, bad = (
        Sampler(PowerGrid(18), Rebuild())(ask, process, start(8, 1), draws(8, 2)).square().mean(0)
        for ask in (oracle, disagreeing)
    )
    assert (bad / good).max() > 100


@pytest.mark.parametrize("path", [ConstantBNR(0.5), PowerLaw(0.5, 0.8)])
def test_ancestral_samples_have_the_datas_variance(spectrum: Tensor, path: ConstantBNR | PowerLaw) -> None:
    # Euler with η = 1 and many steps: the final variance is exact up to first order in the step.
    process, grid = Warm(path), PowerGrid(400)
    oracle = GaussianOracle(spectrum, process)
    # Few coefficients carry the variance, so its sum would need many samples; it is computed without any.
    exact = final_variance(Euler(1), oracle, process, spectrum[None], grid.clocks())
    assert (exact.sum() / spectrum.sum()).item() == pytest.approx(1, abs=0.05)
    # The whole sampler, whose noise has to be white and of the right size: 576 coefficients a channel of 20 samples
    # have a standard error of 0.8 %. Measured bias of 400 steps: 2 %.
    u = Sampler(grid, Euler(1))(oracle, process, start(20, 3), draws(20, 4))
    band = slice(8, 32)
    ratio = (u[..., band, band].square().mean(0) / spectrum[:, band, band]).mean()
    assert ratio.item() == pytest.approx(1, abs=0.05)


def test_heun_second_guess_does_not_see_the_noise_to_come(spectrum: Tensor) -> None:
    # Heun with η = 1 is unbiased to first order too; a trial step with fresh noise in it would count it twice.
    process = Warm(ConstantBNR(0.5))
    sampler = Sampler(PowerGrid(200), Heun(1))
    u = sampler(GaussianOracle(spectrum, process), process, start(100, 3), draws(100, 4))
    band = slice(8, 32)
    ratio = (u[..., band, band].square().mean(0) / spectrum[:, band, band]).mean()
    assert ratio.item() == pytest.approx(1, abs=0.1)


# ---------------------------------------------------------------------- coloured fresh noise


def coloured_step(rule: StepRule, process: Warm, like: Tensor) -> Tensor:
    """A step between two levels in the middle, with the same draws every time."""
    levels = [process.level(clock) for clock in PowerGrid(18).clocks().split(1)]
    step = Step.between(process, like, levels[9], levels[10], draws(len(like), 3))
    return rule(GaussianOracle(torch.ones_like(like[0]), process), like, step)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_coloured_fresh_noise_without_a_spectrum_is_euler_to_the_bit(eta: float) -> None:
    like = dct(start(4, 1))
    assert torch.equal(
        coloured_step(ColouredFreshNoise(eta, c=0.0), Warm(), like), coloured_step(Euler(eta), Warm(), like)
    )


def test_fresh_noise_is_where_the_image_is_not_known() -> None:
    like, rule = torch.zeros(1, 3, 32, 32, dtype=torch.float64), ColouredFreshNoise(0.8, c=0.4, s=1.0)
    gains = Warm().gains(Warm().level(torch.tensor([0.7], dtype=torch.float64)), like)
    share = rule.share(like, gains)
    rates = frequencies(like).clamp(min=frequencies(like)[0, 1].item())
    unknown = 0.7**2 / (gains.signal.square() * 0.4 / rates + 0.7**2)  # of normal data with that law
    torch.testing.assert_close(share, 0.8 * (unknown / unknown.mean()).sqrt())
    assert share.square().mean().item() == pytest.approx(0.8**2)  # their Eq. 11: as much noise as before
    assert (share[0, 0, 0].diff() >= 0).all()


def test_coloured_fresh_noise_keeps_the_datas_variance() -> None:
    """However much of the noise is drawn afresh, a fine grid ends at the spectrum of normal data."""
    like = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    spectrum = 0.4 / frequencies(like).clamp(min=frequencies(like)[0, 1].item())
    for process in (Hot(), Warm(ConstantBNR(0.5))):
        rule, oracle = ColouredFreshNoise(), GaussianOracle(spectrum, process)
        got = final_variance(rule, oracle, process, like, PowerGrid(250).clocks(), None)
        assert (got / spectrum - 1).abs().max() < 0.12  # Euler with η = 1 has 0.08
