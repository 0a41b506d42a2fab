"""Paths, gains, parameterizations and training levels against their formulas."""

import math

import pytest
import torch

from warm_lightning.errors import UserError
from warm_lightning.losses import LogNormal, SquaredError
from warm_lightning.parameterizations import DenoiseDeblur, Denoiser, Parameterization
from warm_lightning.preconditioning import EDMPreconditioning
from warm_lightning.processes import ConstantBNR, Hot, PowerLaw, Process, RandomBNR, Warm
from warm_lightning.rng import BatchDraws, SeedStreams
from warm_lightning.spectral import dct, frequencies, idct
from warm_lightning.types import Estimate, Gains, Level

BETAS = torch.tensor([0.002, 0.05, 0.7, 9.0, 80.0], dtype=torch.float64)


def images(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(5, 3, 16, 16, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_paths() -> None:
    assert torch.equal(ConstantBNR(0.5)(BETAS), 0.5 * BETAS)
    assert torch.equal(PowerLaw(0.3, 2.0)(BETAS), 0.3 * BETAS**2)
    assert torch.equal(RandomBNR(0, 2, 0.7)(BETAS), 0.7 * BETAS)
    bnr = RandomBNR(0.5, 2, 0.7).draw(torch.ones(4000), SeedStreams(range(4000)))
    # Uniform in [0.5, 2): mean 1.25 with a standard error of 1.5/√12/√4000 = 0.007.
    assert 0.5 <= bnr.min() < 0.51
    assert 1.99 < bnr.max() < 2
    assert bnr.mean().item() == pytest.approx(1.25, abs=0.03)
    # E uᵖ = 1/(p + 1), and the quantiles of u² are squares.
    small = RandomBNR(0.5, 2, 0.7, power=2).draw(torch.ones(4000), SeedStreams(range(4000)))
    assert small.mean().item() == pytest.approx(1.0, abs=0.03)
    torch.testing.assert_close(small, 0.5 + (bnr - 0.5) ** 2 / 1.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConstantBNR(-0.1),
        lambda: PowerLaw(-1),
        lambda: PowerLaw(1, 0),
        lambda: RandomBNR(1, 0.5, 0.7),
        lambda: RandomBNR(0, 1, 2),
        lambda: RandomBNR(power=0),
        lambda: LogNormal(std=0),
    ],
)
def test_impossible_values_are_refused_in_one_line(make) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)


def test_warm_gains_are_equation_4() -> None:
    process = Warm(ConstantBNR(0.5))
    level = process.level(BETAS)
    gains = process.gains(level, images())
    mask = torch.exp(-frequencies(images()) * (0.5 * BETAS).view(-1, 1, 1, 1) ** 2 / 2)
    torch.testing.assert_close(gains.signal, mask, rtol=1e-12, atol=0)
    torch.testing.assert_close(gains.lost, 1 - mask, rtol=0, atol=1e-15)
    assert torch.equal(gains.noise.flatten(), BETAS)


def test_a_small_blur_still_takes_something_in_float32() -> None:
    process = Warm(ConstantBNR(0.5))
    level = Level(torch.tensor([0.001]), torch.tensor([0.002]), torch.tensor([0.002]))
    lost = process.gains(level, torch.zeros(1, 1, 32, 32)).lost
    assert lost[0, 0, 0, 0] == 0  # DC
    # 1 - M = λα²/2 to first order; on 32×32 at BNR 0.5 the smallest is 5e-9.
    assert lost[0, 0, 0, 1].item() == pytest.approx(math.pi**2 / 32**2 * 0.001**2 / 2, rel=1e-5)


@pytest.mark.parametrize("parameterization", [Denoiser(), DenoiseDeblur()])
@pytest.mark.parametrize("process", [Hot(), Warm(ConstantBNR(0.5)), Warm(ConstantBNR(10))])
def test_true_targets_give_the_true_estimate(parameterization: Parameterization, process: Process) -> None:
    u0, noise = dct(images()), torch.randn(images().shape, dtype=torch.float64)
    gains = process.gains(process.level(BETAS), u0)
    truth = Estimate(u0, dct(noise))
    u = process.degrade(truth, gains)
    estimate = parameterization.estimate(parameterization.targets(truth, gains), u, gains)
    # Dividing R by 1 - M ≥ 1e-8 and a difference of images by β ≥ 0.002 leaves that much of 1e-16.
    torch.testing.assert_close(estimate.clean, u0, rtol=0, atol=1e-7)
    torch.testing.assert_close(estimate.noise, dct(noise), rtol=0, atol=1e-11)


def test_targets_are_algorithm_1_and_add_up_to_the_image() -> None:
    x0, process = images(), Warm(ConstantBNR(0.5))
    gains = process.gains(process.level(BETAS), x0)
    blurred, residual = DenoiseDeblur().targets(Estimate(dct(x0), dct(x0)), gains).unbind(1)
    torch.testing.assert_close(blurred, idct(gains.signal * dct(x0)))
    torch.testing.assert_close(blurred + residual, x0)
    torch.testing.assert_close(residual.mean((2, 3)), torch.zeros(5, 3, dtype=torch.float64))  # no DC


def test_loss_weight_is_edms() -> None:
    sigma_data = 0.7
    level = Hot().level(BETAS)
    c_out = EDMPreconditioning(sigma_data)(level, Hot().gains(level, images()), Denoiser()).out
    outputs, targets = torch.randn(2, 5, 2, 3, 16, 16, dtype=torch.float64)
    weight = (BETAS**2 + sigma_data**2) / (BETAS * sigma_data) ** 2
    expected = weight[:, None] * (outputs - targets).square().sum((2, 3, 4))
    torch.testing.assert_close(SquaredError()((outputs - targets) / c_out, Gains(c_out, c_out)), expected)


def test_noise_levels_are_log_normal() -> None:
    law = LogNormal(-1.2, 1.2)
    logs = law.draw(BatchDraws(0, 0, 20_000, torch.arange(20_000))).log()
    # Standard errors: 1.2/√20000 = 0.008 of the mean, 0.006 of the standard deviation.
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.04)
    assert logs.std().item() == pytest.approx(1.2, abs=0.03)
    quartile = torch.tensor([0.25, 0.5, 0.75])
    torch.testing.assert_close(law.quantile(quartile).log(), logs.quantile(quartile), rtol=0, atol=0.05)


def test_a_device_draws_its_rows_of_the_global_batch() -> None:
    everyone = BatchDraws(1, 512, 8, torch.arange(8))
    noise, uniform = everyone.normal(2, 3), everyone.uniform()
    for rows in (torch.arange(4), torch.arange(4, 8), torch.tensor([6])):
        mine = BatchDraws(1, 512, 8, rows)
        assert torch.equal(mine.normal(2, 3), noise[rows])
        assert torch.equal(mine.uniform(), uniform[rows])
    assert not torch.equal(BatchDraws(1, 520, 8, torch.arange(8)).normal(2, 3), noise)
    assert not torch.equal(BatchDraws(2, 512, 8, torch.arange(8)).normal(2, 3), noise)


def test_draws_are_the_same_bits_in_double_precision() -> None:
    single = BatchDraws(0, 0, 4, torch.arange(4)).normal(3)
    torch.set_default_dtype(torch.float64)  # as Lightning's 64-true precision does
    try:
        double = BatchDraws(0, 0, 4, torch.arange(4)).normal(3, dtype=torch.float64)
        assert SeedStreams([5]).normal(2).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(single.double(), double)
