"""DDPM, DDIM, improved DDPM and Lee et al.'s blur diffusion against their papers' formulas, written out again."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d
from small import DIGITS, REPOSITORY
from torch import Tensor
from truths import Prescribed, clocks, gains_at, noise, step_of

from warm_lightning import load_config
from warm_lightning.errors import UserError
from warm_lightning.parameterizations import Epsilon
from warm_lightning.processes import (
    BlurKernel,
    BlurRate,
    CosineSchedule,
    GaussianKernel,
    LinearSchedule,
    LogRate,
    Process,
    ProgressiveDeblurring,
    QuarticRate,
    SampledKernel,
    Schedule,
    VariancePreserving,
)
from warm_lightning.rng import BatchDraws
from warm_lightning.samplers import Euler, EvenGrid, ReverseDiffusion, StepRule
from warm_lightning.spectral import dct, idct
from warm_lightning.types import Batch, Estimate, Level

STEPS = 1000
SHAPE = (2, 1, 8, 8)


def linear_betas() -> list[float]:
    """β_1 … β_T, Ho et al. 2020, Section 4."""
    return [1e-4 + (0.02 - 1e-4) * i / (STEPS - 1) for i in range(STEPS)]


def cosine_betas(steps: int = STEPS) -> list[float]:
    """Nichol & Dhariwal 2021, Eqs. 16 and 17, s = 0.008, and no variance above 0.999."""

    def f(t: int) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha_bar = [f(t) / f(0) for t in range(steps + 1)]
    return [min(1 - alpha_bar[t] / alpha_bar[t - 1], 0.999) for t in range(1, steps + 1)]


SCHEDULES = [(LinearSchedule(), linear_betas()), (CosineSchedule(), cosine_betas())]


def alpha_bar(betas: list[float], t: int) -> float:
    return math.prod(1 - beta for beta in betas[:t])


@pytest.mark.parametrize(("schedule", "betas"), SCHEDULES)
@pytest.mark.parametrize("t", [0, 1, 2, 137, 500, 999, 1000])
def test_gains_are_products_of_the_schedule(schedule: Schedule, betas: list[float], t: int) -> None:
    left, gains = alpha_bar(betas, t), gains_at(VariancePreserving(schedule), t, torch.zeros(SHAPE).double())
    assert gains.signal.flatten()[0].item() == pytest.approx(math.sqrt(left), rel=1e-12)
    # 1 - ᾱ of the reference loses digits at t = 1 itself.
    assert (gains.noise**2).flatten()[0].item() == pytest.approx(1 - left, rel=1e-11, abs=1e-15)
    level = VariancePreserving(schedule).level(clocks(t))
    assert level.alpha.item() == 0
    assert level.beta.item() == pytest.approx(math.sqrt((1 - left) / left), rel=1e-8, abs=0)


def test_the_cosine_schedule_is_clipped() -> None:
    betas = CosineSchedule(STEPS).variances()
    assert betas[-1] == 0.999
    assert (betas[:-1] < 0.999).all()
    assert cosine_betas()[-1] == 0.999


@pytest.mark.parametrize(("schedule", "betas"), SCHEDULES)
@pytest.mark.parametrize("t", [2, 137, 999, 1000])
def test_ancestral_sampling_is_ho_et_als_algorithm_2(schedule: Schedule, betas: list[float], t: int) -> None:
    """x_{t-1} = (x_t - β_t/√(1-ᾱ_t) ε)/√α_t + σ_t z with σ_t² = β̃_t (their Eqs. 7 and 11)."""
    x, z, epsilon = noise(*SHAPE), noise(*SHAPE, seed=1), noise(*SHAPE, seed=2)
    beta, bar, before = betas[t - 1], alpha_bar(betas, t), alpha_bar(betas, t - 1)
    mean = (x - beta / math.sqrt(1 - bar) * epsilon) / math.sqrt(1 - beta)
    expected = mean + math.sqrt((1 - before) / (1 - bar) * beta) * z
    got = one_step(Euler(1.0), VariancePreserving(schedule), x, epsilon, t, t - 1, z)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def one_step(rule: StepRule, process: Process, x: Tensor, epsilon: Tensor, t: float, s: float, z: Tensor) -> Tensor:
    """A step in pixels of somebody who sees this noise."""
    step = step_of(process, x, t, s, Prescribed(z))

    def ask(u: Tensor, level: Level) -> Estimate:
        return Epsilon().estimate(epsilon[:, None], u, process.gains(level, u))

    return idct(rule(ask, dct(x), step))


@pytest.mark.parametrize("t", [1, 50])
def test_no_noise_is_added_on_the_last_step(t: int) -> None:
    x, epsilon = noise(*SHAPE), noise(*SHAPE, seed=2)
    betas = linear_betas()
    bar = alpha_bar(betas, t)
    expected = (x - math.sqrt(1 - bar) * epsilon) / math.sqrt(bar)  # x̂0, their Eq. 15
    got = one_step(Euler(1.0), VariancePreserving(), x, epsilon, t, 0, 1e6 * torch.ones_like(x))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("t", "s"), [(1000, 900), (620, 600), (10, 1)])
def test_ddim_at_any_eta(eta: float, t: int, s: int) -> None:
    """Song et al. 2021, Eqs. 12 and 16, on a respaced chain."""
    x, z, epsilon = noise(*SHAPE), noise(*SHAPE, seed=1), noise(*SHAPE, seed=2)
    here, there = alpha_bar(linear_betas(), t), alpha_bar(linear_betas(), s)
    sigma = eta * math.sqrt((1 - there) / (1 - here)) * math.sqrt(1 - here / there)
    predicted = (x - math.sqrt(1 - here) * epsilon) / math.sqrt(here)
    expected = math.sqrt(there) * predicted + math.sqrt(1 - there - sigma**2) * epsilon + sigma * z
    got = one_step(Euler(eta), VariancePreserving(), x, epsilon, t, s, z)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_respaced_grids_stop_at_levels_that_were_trained_on() -> None:
    assert EvenGrid(4, 1000).clocks().tolist() == [1000, 750, 500, 250, 0]
    assert EvenGrid(1000, 1000).clocks().tolist() == list(range(1000, -1, -1))
    for steps in (3, 7, 300, 999):
        readings = EvenGrid(steps, 1000).clocks()
        assert torch.equal(readings, readings.round())
        assert (readings[:-1] > readings[1:]).all()
        assert (readings[0], readings[-1], len(readings)) == (1000, 0, steps + 1)
    with pytest.raises(UserError, match="steps is 6"):
        EvenGrid(6, 5)


# ---------------------------------------------------------------------- Lee et al.

linear_betas_at = dict(enumerate(linear_betas(), start=1))
SIGMA = 0.4
RATES = [
    (QuarticRate(0.14), lambda i: 0.14 * i**4 / STEPS**4),
    (LogRate(0.6), lambda i: 0.6 * math.log(i) / math.log(STEPS)),
]


def gaussian(size: int) -> Tensor:
    """D, the eigenvalues of a Gaussian blur of 0.4 pixels."""
    i = torch.arange(size, dtype=torch.float64)
    return torch.exp(-(math.pi**2) * (i[:, None] ** 2 + i**2) / size**2 * SIGMA**2 / 2)


def sampled(size: int) -> Tensor:
    """D, the eigenvalues of the convolution with a sampled Gaussian of 0.4 pixels, on mirrored images."""
    taps = np.exp(-(np.arange(-8, 9) ** 2) / (2 * SIGMA**2))
    basis = idct(torch.eye(size**2, dtype=torch.float64).view(-1, size, size)).numpy()
    for axis in (1, 2):
        basis = convolve1d(basis, taps / taps.sum(), axis, mode="reflect")
    blurred = dct(torch.from_numpy(basis)).view(size**2, size**2)
    torch.testing.assert_close(blurred, blurred.diagonal().diag(), rtol=0, atol=1e-12)  # it is diagonal here
    return blurred.diagonal().view(size, size)


KERNELS = [(GaussianKernel(), gaussian), (SampledKernel(), sampled)]


@pytest.mark.parametrize(("blur", "kernel"), KERNELS)
@pytest.mark.parametrize(("rate", "f"), RATES)
@pytest.mark.parametrize("n", [1, 2, 300, 1000])
def test_blur_diffusions_gains_are_equation_3(rate: BlurRate, f, n: int, blur: BlurKernel, kernel) -> None:
    """√Ā_n = Π √A_i with A_i = (1-β_i) D^{2f(i)}: a product of a thousand matrices, one by one."""
    root = torch.ones(8, 8, dtype=torch.float64)
    for i in range(1, n + 1):
        root = root * math.sqrt(1 - linear_betas_at[i]) * kernel(8) ** f(i)
    gains = gains_at(ProgressiveDeblurring(rate=rate, kernel=blur), n, torch.zeros(SHAPE).double())
    torch.testing.assert_close(gains.signal[0, 0], root, rtol=1e-11, atol=0)
    torch.testing.assert_close(gains.noise[0, 0], (1 - root**2).sqrt(), rtol=1e-11, atol=0)
    assert root[0, 1] < root[0, 0] or n == 1


def test_the_sampled_kernel_blurs_less_than_the_gaussian_that_it_samples() -> None:
    """The numbers of Lee et al.'s code: σ = 0.4 gives [0.040, 0.919, 0.040]; it is the default."""
    kernel = ProgressiveDeblurring().kernel
    assert isinstance(kernel, SampledKernel)
    _, weights = kernel.taps(0.4)
    torch.testing.assert_close(weights[19:22], torch.tensor([0.0404, 0.9192, 0.0404]).double(), rtol=0, atol=5e-5)
    assert weights.sum() == pytest.approx(1, abs=1e-15)
    omega = torch.tensor([0.01, 1.0, math.pi], dtype=torch.float64)
    by_hand = torch.log(0.91918 + 0.08082 * omega.cos())
    torch.testing.assert_close(kernel.log_gain(0.4, omega)[1:], by_hand[1:], rtol=1e-3, atol=0)
    ratios = GaussianKernel().log_gain(0.4, omega) / kernel.log_gain(0.4, omega)
    assert ratios.tolist() == pytest.approx([1.98, 2.11, 4.48], rel=0.003)
    # The blur level is the Gaussian's of equal low frequencies.
    assert kernel.deviation(0.4) == pytest.approx(0.4 / math.sqrt(ratios[0]), rel=1e-4)
    assert GaussianKernel().deviation(0.4) == 0.4
    wide = torch.linspace(0, math.pi, 9, dtype=torch.float64)
    for narrow in (0.0, 1e-3):  # no blur
        assert kernel.log_gain(narrow, wide).abs().max() < 1e-15
    # Sampling a wide one loses nothing: its spectrum is repeated each 2π, where next to nothing is left of it.
    torch.testing.assert_close(
        kernel.log_gain(1.5, wide[:6]), GaussianKernel().log_gain(1.5, wide[:6]), rtol=0, atol=1e-4
    )
    with pytest.raises(UserError, match="GaussianKernel for more"):
        ProgressiveDeblurring(sigma=2.5)


@pytest.mark.parametrize(("blur", "kernel"), KERNELS)
@pytest.mark.parametrize(("rate", "f"), RATES)
@pytest.mark.parametrize("i", [2, 400, 1000])
def test_reverse_diffusion_is_the_corrected_formula(rate: BlurRate, f, i: int, blur: BlurKernel, kernel) -> None:
    """x_{i-1} = (2-√a_i) x_i - b_i (1-A_i²)^{-½} ε̂ + √b_i z, a_i = (1-β_i) D^{2f(i)}, b_i = 1 - a_i."""
    process = ProgressiveDeblurring(rate=rate, kernel=blur)
    x, z, epsilon = noise(*SHAPE), noise(*SHAPE, seed=1), noise(*SHAPE, seed=2)
    a = (1 - linear_betas_at[i]) * kernel(8) ** (2 * f(i))
    bar = torch.ones(8, 8, dtype=torch.float64)
    for j in range(1, i + 1):
        bar = bar * (1 - linear_betas_at[j]) * kernel(8) ** (2 * f(j))
    b = 1 - a
    drifted = (2 - a.sqrt()) * dct(x) - b / (1 - bar).sqrt() * dct(epsilon)
    got = dct(one_step(ReverseDiffusion(), process, x, epsilon, i, i - 1, z))
    torch.testing.assert_close(got, drifted + b.sqrt() * dct(z), rtol=1e-12, atol=1e-12)


def test_reverse_diffusion_ends_without_noise() -> None:
    process, x, epsilon = ProgressiveDeblurring(), noise(*SHAPE), noise(*SHAPE, seed=2)
    a = (1 - linear_betas_at[1]) * sampled(8) ** (2 * 0.14 / STEPS**4)
    expected = (2 - a.sqrt()) * dct(x) - (1 - a).sqrt() * dct(epsilon)
    got = dct(one_step(ReverseDiffusion(), process, x, epsilon, 1, 0, 1e6 * torch.ones_like(x)))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", [ProgressiveDeblurring(), ProgressiveDeblurring(rate=QuarticRate(0))])
@pytest.mark.parametrize("t", [100.0, 700.0])
def test_reverse_diffusion_differs_from_ancestral_sampling_at_second_order(process: Process, t: float) -> None:
    """In what becomes of u and of ε̂, and in the variance of z, for steps as long as β_i down to β_i/16."""
    zero, one = torch.zeros(1, 1, 8, 8, dtype=torch.float64), idct(torch.ones(1, 1, 8, 8, dtype=torch.float64))
    differences = []
    for part in (1, 2, 4, 8, 16):
        factors = [
            [dct(one_step(rule, process, *parts, t, t - 1 / part, z)) for *parts, z in
             ((one, zero, zero), (zero, one, zero), (zero, zero, one))]
            for rule in (ReverseDiffusion(), Euler(1.0))
        ]  # fmt: skip
        powers = [(u, epsilon, z.square()) for u, epsilon, z in factors]
        differences.append([(a - b).abs().max().item() for a, b in zip(*powers, strict=True)])
    orders = [math.log2(a / b) for pair in itertools.pairwise(differences) for a, b in zip(*pair, strict=True)]
    # Measured: within 0.01 of 2.
    assert all(abs(order - 2) < 0.05 for order in orders), orders


def test_without_blur_it_is_ddpm_in_gains_prior_and_loss() -> None:
    overlays = {name: REPOSITORY / "configs" / "method" / f"{name}.yaml" for name in ("ddpm", "progressive_deblurring")}
    network = {"model.network.model_channels": 8, "model.network.channel_mult": [1, 1]}
    ddpm, data = load_config([DIGITS, overlays["ddpm"]], network)
    lee, _ = load_config(
        [DIGITS, overlays["progressive_deblurring"]], {**network, "model.process.rate.init_args.last": 0}
    )
    assert (type(ddpm.model().process), type(lee.model().process)) == (VariancePreserving, ProgressiveDeblurring)
    where = torch.arange(32)
    batch = Batch(data.train_images().take(where), where, where)
    losses = []
    for module in (ddpm, lee):
        # The last layer starts at 0, and a network that says nothing has the same loss on any input.
        for parameter in module.network.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        losses.append(module.model("raw").loss(batch, BatchDraws(0, 0, 32, where)))
    assert torch.equal(losses[0][1], losses[1][1])
    torch.testing.assert_close(losses[0][0], losses[1][0], rtol=0, atol=0)
    x = noise(2, 1, 8, 8)
    for i in (0, 1, 500, 1000):
        for name in ("log_signal", "noise"):
            one, other = (getattr(gains_at(m.process, i, x), name).expand_as(x) for m in (ddpm.model(), lee.model()))
            assert torch.equal(one, other)
    level = lee.model().process.level(clocks(1000))
    assert torch.equal(
        lee.model().process.prior(x, level, Prescribed(x)), ddpm.model().process.prior(x, level, Prescribed(x))
    )


def test_the_loss_is_the_plain_square_of_the_error_in_pixels() -> None:
    """Lee et al.'s Eq. 10: not weighted by (1-Ā)^{-1} (their Eq. 9), though their noise has a colour."""
    module, _ = load_config([DIGITS, REPOSITORY / "configs" / "method" / "progressive_deblurring.yaml"])
    x0, epsilon = noise(4, 1, 8, 8), noise(4, 1, 8, 8, seed=1)
    gains = gains_at(module.model().process, 700, x0)
    targets = module.model().parameterization.targets(Estimate(dct(x0), dct(epsilon)), gains)
    level = module.model().process.level(clocks(700))
    model = module.model()
    errors = -targets / model.preconditioning(level, gains, model.parameterization).out
    loss = model.cost(errors, gains)
    torch.testing.assert_close(loss[:, 0], epsilon.square().sum((1, 2, 3)))
