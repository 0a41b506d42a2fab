"""Blurring Diffusion against its paper: formulas and pseudo-code (Hoogeboom & Salimans 2022), written out again."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from truths import Prescribed, clocks, gains_at, levels, noise, step_of

from warm_lightning.parameterizations import Epsilon
from warm_lightning.processes import BlurringDiffusion, BlurringSchedule, Schedule, VariancePreserving, Warm
from warm_lightning.samplers import Euler, Sampler
from warm_lightning.spectral import dct, idct
from warm_lightning.types import Estimate, Level

SIZE = 16
STEPS = [(1.0, 0.999), (1.0, 0.99), (0.7, 0.699), (0.5, 0.3), (0.03, 0.002), (0.002, 0.001)]


# ---------------------------------------------------------------------- Appendix A.1, line by line


def frequency_scaling(t: float, blur_max: float, power: int, min_scale: float) -> np.ndarray:
    sigma_blur = blur_max * math.sin(t * math.pi / 2) ** power
    dissipation_time = sigma_blur**2 / 2
    freqs = math.pi * np.linspace(0, SIZE - 1, SIZE) / SIZE
    labda = freqs[:, None] ** 2 + freqs[None, :] ** 2
    scaling = np.exp(-labda * dissipation_time) * (1 - min_scale)
    return scaling + min_scale


def noise_scaling_cosine(t: float, logsnr_min: float = -10, logsnr_max: float = 10) -> tuple[float, float]:
    limit_max = math.atan(math.exp(-0.5 * logsnr_max))
    limit_min = math.atan(math.exp(-0.5 * logsnr_min)) - limit_max
    logsnr = -2 * math.log(math.tan(limit_min * t + limit_max))
    return math.sqrt(1 / (1 + math.exp(-logsnr))), math.sqrt(1 / (1 + math.exp(logsnr)))


def alpha_sigma(t: float, blur_max: float = 20, power: int = 2, min_scale: float = 0.001) -> tuple[np.ndarray, float]:
    a, sigma = noise_scaling_cosine(t)
    return a * frequency_scaling(t, blur_max, power, min_scale), sigma


def denoise(u_t: Tensor, u_eps: Tensor, t: float, s: float, **schedule: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by the pseudo-code with delta = 0."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (alpha_sigma(time, **schedule) for time in (s, t))
    alpha_ts = alpha_t / alpha_s
    alpha_st = 1 / alpha_ts
    sigma2_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    sigma2_denoise = 1 / (1 / sigma_s**2 + 1 / (sigma_t**2 / alpha_ts**2 - sigma_s**2))
    term1 = torch.from_numpy(alpha_ts * sigma2_denoise / sigma2_ts) * u_t
    term2 = torch.from_numpy(alpha_st * sigma2_denoise / sigma_s**2) * (u_t - sigma_t * u_eps)
    return term1 + term2, torch.from_numpy(np.sqrt(sigma2_denoise))


def section_2_1(u_t: Tensor, u_eps: Tensor, t: float, s: float, **schedule: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by Eqs. 18 and 21, in which x̂ stands."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (alpha_sigma(time, **schedule) for time in (s, t))
    u_x = (u_t - sigma_t * u_eps) / torch.from_numpy(alpha_t)
    alpha_ts = alpha_t / alpha_s
    sigma2_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    variance = torch.from_numpy(1 / (1 / sigma_s**2 + alpha_ts**2 / sigma2_ts))
    mean = variance * (torch.from_numpy(alpha_ts / sigma2_ts) * u_t + torch.from_numpy(alpha_s / sigma_s**2) * u_x)
    return mean, variance.sqrt()


@pytest.mark.parametrize("t", [0, 0.001, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize(("blur_max", "power", "d_min"), [(20, 2, 0.001), (20, 1, 0.001), (1, 2, 0.0), (0, 2, 0.001)])
def test_gains_are_the_pseudo_codes(t: float, blur_max: float, power: int, d_min: float) -> None:
    gains = gains_at(BlurringDiffusion(blur_max, power, d_min), t, noise(1, 3, SIZE, SIZE))
    alpha, sigma = alpha_sigma(t, blur_max, power, d_min)
    torch.testing.assert_close(gains.signal[0, 0], torch.from_numpy(alpha), rtol=1e-11, atol=0)
    assert gains.noise.flatten().tolist() == pytest.approx([sigma], rel=1e-12)


@pytest.mark.parametrize("truth", [denoise, section_2_1])
@pytest.mark.parametrize(("t", "s"), STEPS)
@pytest.mark.parametrize("schedule", [{}, {"power": 1}, {"blur_max": 0}, {"blur_max": 1, "min_scale": 0.01}])
def test_the_update_is_the_papers(truth, t: float, s: float, schedule: dict) -> None:
    """Per frequency, up to those of which d_min alone is left: both gains of the finest are 0.001·a there."""
    names = {"min_scale": "d_min"}
    process = BlurringDiffusion(**{names.get(name, name): value for name, value in schedule.items()})
    u, outputs, fresh = noise(2, 3, SIZE, SIZE), noise(2, 1, 3, SIZE, SIZE, seed=1), noise(2, 3, SIZE, SIZE, seed=2)
    step = step_of(process, u, t, s, Prescribed(fresh))
    if not schedule and t > 0.1:
        assert (frequency_scaling(t, 20, 2, 0.001) < 0.0010001).any()
    moved = Euler(eta=1.0)(lambda u, level: Epsilon().estimate(outputs, u, process.gains(level, u)), u, step)
    mean, deviation = truth(u, dct(outputs[:, 0]), t, s, **schedule)
    torch.testing.assert_close(moved, mean + deviation * dct(fresh), rtol=1e-12, atol=1e-12)


def test_the_last_level_has_noise_in_its_law_and_returns_the_mean() -> None:
    process, u = BlurringDiffusion(), noise(1, 1, SIZE, SIZE)
    assert gains_at(process, 0, u).noise.item() == pytest.approx(0.0067, abs=5e-5)
    outputs = noise(1, 1, 1, SIZE, SIZE, seed=1)
    step = step_of(process, u, 0.001, 0, Prescribed(100 * torch.ones_like(u)))
    assert step.last
    moved = Euler(eta=1.0)(lambda u, level: Epsilon().estimate(outputs, u, process.gains(level, u)), u, step)
    torch.testing.assert_close(moved, denoise(u, dct(outputs[:, 0]), 0.001, 0)[0], rtol=1e-12, atol=1e-12)


def test_training_pairs_are_the_pseudo_codes() -> None:
    """`diffuse`: noise is added in pixels, and is what is to be predicted."""
    x, eps, process = noise(1, 3, SIZE, SIZE), noise(1, 3, SIZE, SIZE, seed=1), BlurringDiffusion()
    for t in (0.0, 0.4, 1.0):
        alpha, sigma = alpha_sigma(t)
        z_t = idct(torch.from_numpy(alpha) * dct(x)) + sigma * eps
        truth, gains = Estimate(dct(x), dct(eps)), gains_at(process, t, x)
        torch.testing.assert_close(idct(process.degrade(truth, gains)), z_t, rtol=0, atol=1e-13)
        torch.testing.assert_close(Epsilon().targets(truth, gains)[:, 0], eps, rtol=0, atol=1e-13)


def test_the_prior_is_standard_normal() -> None:
    pixels, process = noise(2, 3, SIZE, SIZE), BlurringDiffusion()
    assert torch.equal(process.prior(pixels, process.level(clocks(1.0)), Prescribed(pixels)), dct(pixels))


class TheirCosine(Schedule):
    """The variances of a chain whose step i + 1 is their time i/T; the first makes up for what is left at time 0."""

    def variances(self) -> Tensor:
        times = range(self.steps)
        bar = clocks(1.0, *(noise_scaling_cosine(i / (self.steps - 1))[0] ** 2 for i in times))
        return 1 - bar[1:] / bar[:-1]


def test_without_blur_it_is_a_ddpm_on_the_same_schedule() -> None:
    """In gains and in a whole run of ancestral sampling with one network; the DDPM's own test has its formulas."""
    steps, fresh, mixing = 50, noise(2, 1, SIZE, SIZE, seed=1), noise(SIZE, SIZE, seed=2) / SIZE
    run, states = Sampler(rule=Euler(eta=1.0)), []
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    ours, ddpm = BlurringDiffusion(blur_max=0), VariancePreserving(TheirCosine(steps + 1))
    for t in times.tolist():
        one, other = (gains_at(p, r, fresh) for p, r in ((ours, t), (ddpm, t * steps + 1)))
        torch.testing.assert_close(one.signal.expand_as(fresh), other.signal.expand_as(fresh), rtol=1e-12, atol=0)
        torch.testing.assert_close(one.noise.expand_as(fresh), other.noise.expand_as(fresh), rtol=1e-12, atol=0)
    for process, readings in ((ours, times[:-1]), (ddpm, times[:-1] * steps + 1)):

        def ask(u: Tensor, level: Level, process=process) -> Estimate:  # a network that sees the image alone
            return Epsilon().estimate(torch.tanh(mixing @ idct(u))[:, None], u, process.gains(level, u))

        way = levels(process, *readings.tolist())
        states.append(run.descend(ask, process, noise(2, 1, SIZE, SIZE), way, Prescribed(fresh)))
    torch.testing.assert_close(states[1], states[0], rtol=1e-9, atol=1e-9)


def test_single_precision_keeps_the_digits_of_a_small_blur() -> None:
    """d_t of 1 - 1e-11 would round to 1, and to nothing in its logarithm."""
    process = BlurringDiffusion()
    level = process.level(torch.tensor([1e-3]))
    single = process.log_damping(level, torch.zeros(1, 1, 32, 32))
    double = process.log_damping(level, torch.zeros(1, 1, 32, 32, dtype=torch.float64))
    assert 0 > double[0, 0, 0, 1] > -1e-10
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)


def test_single_precision_keeps_the_digits_of_a_large_blur() -> None:
    """d_t of 0.001 as 1 - 0.999 would have an error of 6e-5, and be divided by."""
    process, like = BlurringDiffusion(), torch.zeros(1, 1, 32, 32)
    single, double = (process.log_damping(process.level(torch.tensor([0.9])), x).exp() for x in (like, like.double()))
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)


def test_the_blurring_schedule_of_warm_has_the_bnr_of_equation_20() -> None:
    t = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    level = Warm(BlurringSchedule(20)).level(torch.tan(math.pi * t / 2))
    torch.testing.assert_close(level.alpha / level.beta, 10 * torch.sin(math.pi * t), rtol=1e-12, atol=0)
    torch.testing.assert_close(level.alpha, 20 * torch.sin(math.pi * t / 2) ** 2, rtol=1e-12, atol=0)
