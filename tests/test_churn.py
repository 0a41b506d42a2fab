"""Churn and epsilon scaling against the papers' formulas, and what must not change."""

import itertools
import math

import pytest
import torch
from spectra import level, power_law
from torch import Tensor
from truths import Prescribed

from warm_lightning.oracles import DatasetOracle, GaussianOracle
from warm_lightning.processes import BlurringDiffusion, ConstantBNR, Hot, Process, VariancePreserving, Warm
from warm_lightning.rng import Draws, SeedStreams
from warm_lightning.samplers import (
    Churn,
    ClippedImage,
    EpsilonScaling,
    Euler,
    Heun,
    Multistep,
    PowerGrid,
    Sampler,
    StepRule,
)
from warm_lightning.spectral import dct, idct
from warm_lightning.types import Estimate, Level


def algorithm_2(denoise, x: Tensor, times: list[float], steps: int, draws: Draws, churn: float, low, high, noise):
    """Algorithm 2 of Karras et al. 2022 in pixels, as it is printed; N is `steps`, also on a part of the levels."""
    for t, s in itertools.pairwise(times):
        gamma = min(churn / steps, math.sqrt(2) - 1) if low <= t <= high else 0.0
        hat = t + gamma * t
        if gamma:
            x = x + math.sqrt(hat**2 - t**2) * noise * draws.normal(*x.shape[1:], dtype=x.dtype)
        d = (x - denoise(x, hat)) / hat
        euler = x + (s - hat) * d
        x = euler if s == 0 else x + (s - hat) * (d / 2 + (euler - denoise(euler, s)) / s / 2)
    return x


@pytest.mark.parametrize("churn", [1.2, 40.0])  # γ of 0.2, and at its bound of √2 - 1
def test_churn_is_edms_algorithm_2(churn: float) -> None:
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    oracle, process = DatasetOracle(dct(images), Hot()), Hot()

    def denoise(x: Tensor, sigma: float) -> Tensor:
        squares = (x.unsqueeze(1) - images).square().sum((2, 3, 4))
        return torch.einsum("bn,nchw->bchw", (-squares / (2 * sigma**2)).softmax(1), images)

    grid, seeds = PowerGrid(6), [1, 2, 3]
    sampler, levels = Sampler(grid, churn=Churn(churn)), grid.levels(process)
    start = 80 * SeedStreams(seeds).normal(1, 4, 4, dtype=torch.float64)
    for stops in (levels[:4], levels):  # to a noise of 1.4, and to the end, on one of the images
        times = [at.beta.item() for at in stops]
        expected = algorithm_2(denoise, start, times, 6, SeedStreams(seeds), churn, 0.05, 50.0, 1.003)
        found = idct(sampler.descend(oracle, process, dct(start), stops, SeedStreams(seeds)))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    plain = idct(Sampler().descend(oracle, process, dct(start), levels[:4], SeedStreams(seeds)))
    churned = idct(sampler.descend(oracle, process, dct(start), levels[:4], SeedStreams(seeds)))
    assert (plain - churned).abs().max() > 0.1


@pytest.mark.parametrize(
    ("process", "clock"),
    [(Hot(), 1.0), (Warm(ConstantBNR(0.5)), 2.0), (VariancePreserving(), 400.0), (BlurringDiffusion(), 0.5)],
)
def test_churn_keeps_the_marginal(process: Process, clock: float) -> None:
    spectrum, here = power_law(8), level(process, clock)
    oracle, ones = GaussianOracle(spectrum, process), torch.ones(1, 1, 8, 8, dtype=torch.float64)
    churn = Churn(churn=2.0, beta_min=0, beta_max=1e6, noise=1.0)
    kept, there = churn(process, ones, here, 10, Prescribed(0 * ones))
    added, _ = churn(process, 0 * ones, here, 10, Prescribed(idct(ones)))
    assert there.clock.item() == pytest.approx(1.2 * clock)
    before, after = (oracle.marginal_variance(process.gains(at, ones)) for at in (here, there))
    torch.testing.assert_close(kept**2 * before + added**2, after, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", [Heun(), Multistep(2), Multistep(3)])
def test_churned_samples_have_the_datas_variance(rule: StepRule) -> None:
    spectrum, process, seeds = power_law(8), Warm(ConstantBNR(0.5)), range(500)
    sampler = Sampler(PowerGrid(60), rule, churn=Churn(churn=12.0, beta_min=0.01, noise=1.0))
    start = SeedStreams(seeds).normal(1, 8, 8, dtype=torch.float64)
    u = sampler(GaussianOracle(spectrum, process), process, start, SeedStreams(seeds))
    # 64 coefficients of 500 samples: 0.8 %; the rest is the solver's.
    assert (u.square().mean(0) / spectrum).mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("options", [{"churn": Churn(churn=0.0)}, {"estimate_transform": EpsilonScaling(b=1.0)}])
@pytest.mark.parametrize("rule", [Heun(), Multistep(3), Euler(eta=0.5)])
def test_options_that_are_off_change_no_bit(rule: StepRule, options: dict) -> None:
    process, start = Warm(), SeedStreams([5]).normal(1, 8, 8, dtype=torch.float64)
    oracle = GaussianOracle(power_law(8), process)
    a, b = (Sampler(PowerGrid(6), rule, **o)(oracle, process, start, SeedStreams([5])) for o in ({}, options))
    assert torch.equal(a, b)


def test_epsilon_scaling_divides_the_direction() -> None:
    # Ning et al. 2024, Section 4: on the hot axis EDM's d_i becomes d_i/κ(t), κ = b + kt.
    oracle, b, k = GaussianOracle(power_law(8), Hot()), 1.01, 0.002
    sampler = Sampler(PowerGrid(5), Euler(), estimate_transform=EpsilonScaling(b, k))
    x = 80 * dct(SeedStreams([0]).normal(1, 8, 8, dtype=torch.float64))
    found = sampler.descend(oracle, Hot(), x, sampler.grid.levels(Hot()), SeedStreams([0]))
    for t, s in itertools.pairwise(sampler.grid.clocks().tolist()):
        d = (x - oracle(x, level(Hot(), t)).clean) / t
        x = x + (s - t) * d / (b + k * t)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


def test_a_clipped_image_is_an_image_and_explains_what_is_seen() -> None:
    """Ho et al. in their program: ε̂ → x̂0 = (x - √(1-ᾱ)ε̂)/√ᾱ → clipped → the ε̂ that goes with it."""
    process, u = VariancePreserving(), dct(SeedStreams([0]).normal(1, 8, 8, dtype=torch.float64))
    here = level(process, 900.0)
    gains = process.gains(here, u)
    said = dct(SeedStreams([1]).normal(1, 8, 8, dtype=torch.float64))

    def ask(u: Tensor, at: Level) -> Estimate:
        return Estimate((u - gains.noise * said) / gains.signal, said)

    estimate = ClippedImage()(ask, process)(u, here)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[899]
    x0 = ((idct(u) - (1 - alpha_bar).sqrt() * idct(said)) / alpha_bar.sqrt()).clamp(-1, 1)
    assert x0.abs().max() == 1  # something was to be clipped
    torch.testing.assert_close(idct(estimate.clean), x0, rtol=0, atol=1e-11)
    noise = (idct(u) - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
    torch.testing.assert_close(idct(estimate.noise), noise, rtol=0, atol=1e-11)
