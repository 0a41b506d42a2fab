"""Inverse heat dissipation, Cold Diffusion and Soft Diffusion against their formulas, written out again."""

import math
from collections.abc import Sequence

import pytest
import torch
from small import DIGITS, REPOSITORY
from torch import Tensor
from truths import Prescribed, clocks, digits, gains_at, levels, noise, step_of

from warm_lightning import load_config
from warm_lightning.errors import UserError
from warm_lightning.losses import AbsoluteError, SoftScoreMatching
from warm_lightning.parameterizations import Denoiser, LessBlurred
from warm_lightning.processes import IHDM, ColdDiffusion, Process, SoftDiffusion
from warm_lightning.rng import SeedStreams
from warm_lightning.samplers import Direct, Euler, EvenGrid, Momentum, Sampler
from warm_lightning.spectral import dct, idct
from warm_lightning.types import Estimate, Level


def cosines(size: int) -> Tensor:
    """The orthonormal DCT-II as a matrix, by its definition."""
    i, n = (torch.arange(size, dtype=torch.float64).view(shape) for shape in ((-1, 1), (1, -1)))
    basis = torch.cos(math.pi * i * (n + 0.5) / size) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def blurred(x: Tensor, alpha: float) -> Tensor:
    """V M_α Vᵀ x in pixels, one axis at a time."""
    for axis in (2, 3):
        size = x.shape[axis]
        frequency = math.pi / size * torch.arange(size, dtype=torch.float64)
        kernel = cosines(size).T * torch.exp(-(frequency**2) * alpha**2 / 2) @ cosines(size)
        x = torch.movedim(torch.movedim(x.double(), axis, -1) @ kernel.T, -1, axis)
    return x


def alpha(k: float, steps: int, low: float, high: float) -> float:
    """α_k, log-spaced from `low` at 1 to `high` at K; α_0 = 0."""
    return math.exp(math.log(low) + (math.log(high) - math.log(low)) * (k - 1) / (steps - 1)) if k else 0.0


def photographs(channels: int, height: int, width: int, count: int = 40) -> Tensor:
    """Smooth random images about [-1, 1], each with its own mean."""
    return blurred(noise(count, channels, height, width), 1.0) + 0.3 * noise(count, channels, 1, 1, seed=1)


SIZES = [(1, 8, 8), (3, 8, 8), (3, 8, 32), (1, 32, 8), (3, 32, 32)]


# ---------------------------------------------------------------------- inverse heat dissipation


def test_ihdms_blur_levels_and_noise() -> None:
    process = IHDM()
    got = process.level(torch.arange(201, dtype=torch.float64))
    expected = clocks(*(alpha(k, 200, 0.5, 24) for k in range(201)))
    torch.testing.assert_close(got.alpha, expected, rtol=1e-12, atol=0)
    assert (got.beta == 0.02).all()
    assert (got.alpha[0], process.max_clock) == (0, 200)


@pytest.mark.parametrize("k", [1, 2, 100, 200])
def test_ihdm_trains_towards_the_image_a_step_less_blurred(k: int) -> None:
    x0, z, process = photographs(3, 8, 8, 2), noise(2, 3, 8, 8, seed=2), IHDM()
    gains, truth = gains_at(process, k, x0), Estimate(dct(x0), dct(z))
    torch.testing.assert_close(
        idct(process.degrade(truth, gains)), blurred(x0, alpha(k, 200, 0.5, 24)) + 0.02 * z, rtol=0, atol=1e-13
    )
    target = LessBlurred().targets(truth, gains)[:, 0]
    torch.testing.assert_close(target, blurred(x0, alpha(k - 1, 200, 0.5, 24)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("k", [1, 2, 160, 200])
def test_ihdms_step_is_the_output_of_the_network_plus_noise(k: int) -> None:
    """x ← f(x) + δz, and f(x) last. What f says of frequencies of which nothing can be left (M < 1e-154) is taken for
    the error that it is."""
    process, x, f, z = IHDM(), noise(2, 1, 8, 8), noise(2, 1, 1, 8, 8, seed=1), noise(2, 1, 8, 8, seed=2)
    step = step_of(process, x, k, k - 1, Prescribed(z))
    moved = idct(Direct(0.025)(lambda u, level: LessBlurred().estimate(f, u, process.gains(level, u)), dct(x), step))
    visible = gains_at(process, k - 1, x).log_signal > -354
    said = idct(torch.where(visible, dct(f[:, 0]), 0.0))
    torch.testing.assert_close(moved, said if k == 1 else said + 0.025 * z, rtol=0, atol=1e-12)
    assert visible.all() == (k < 150)


def test_ihdms_overlay_is_its_papers() -> None:
    """Images in [-1, 1] instead of [0, 1] double σ = 0.01 and δ = 0.0125."""
    module, _ = load_config([DIGITS, REPOSITORY / "configs" / "method" / "ihdm.yaml"])
    assert isinstance(module.model().process, IHDM)
    assert isinstance(module.model().sampler.rule, Direct)
    assert (module.model().process.noise_level, module.model().sampler.rule.delta) == (2 * 0.01, 2 * 0.0125)
    assert module.model().sampler.grid.clocks().tolist() == list(range(200, -1, -1))
    assert sorted(module.model().clock_law.quantile(torch.linspace(0.001, 0.999, 5000)).unique().tolist()) == list(
        range(1, 201)
    )
    # x + f(x): the network adds to the image that it sees.
    model, level = module.model(), module.model().process.level(clocks(7))
    gains = model.process.gains(level, torch.zeros(1, *model.image_shape, dtype=torch.float64))
    c = model.preconditioning(level, gains, model.parameterization)
    assert (c.skip.item(), c.out.item(), c.input.item()) == (1, 1, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("process", [IHDM(), IHDM(blur_max=8), IHDM(blur_max=2)])
def test_ihdm_starts_from_blurred_training_images(process: IHDM, size: tuple[int, int, int]) -> None:
    """All of them roughly equally often, and nothing else; read in batches, in single precision."""
    images = photographs(*size)
    process.learned = process.learn(images.float().split(17))
    count = 400
    draws = SeedStreams(range(count))
    start = draws.normal(*size, dtype=torch.float64)
    u = process.prior(start, process.level(clocks(200)), draws)
    distances = torch.cdist(idct(u).flatten(1), blurred(images, process.blur_max).flatten(1))
    # 1e-5 a pixel, of float32 and of the frequencies left out.
    assert distances.min(1).values.max() < 1e-5 * math.sqrt(math.prod(size))
    often = distances.argmin(1).bincount(minlength=len(images))
    # Binomial with mean 10 and standard deviation 3; chi-square with 39 degrees has standard deviation 8.8.
    assert ((often - 10) ** 2 / 10).sum() < 39 + 4 * 8.8
    if process.blur_max == 24:
        assert process.learned["low_frequencies"][0].numel() <= size[0] * 3 * 3


def test_every_training_image_can_be_drawn() -> None:
    process, images = IHDM(blur_max=2), digits(300)
    process.learned = process.learn([images])
    level, pixels = process.level(clocks(200)), noise(1, 1, 8, 8)
    for share, index in ((0.0, 0), (0.5, 150), (1 - 2.0**-24, 299)):
        u = process.prior(pixels, level, Prescribed(pixels, torch.tensor([share])))
        torch.testing.assert_close(idct(u), blurred(images[index : index + 1], 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("process", [IHDM(), SoftDiffusion()])
def test_blurred_images_are_known_at_the_first_level_alone(process: Process) -> None:
    process.learned = process.learn([digits(10)])
    with pytest.raises(UserError, match=f"starts at step 100, .* {process.max_clock}"):
        process.prior(noise(1, 1, 8, 8), process.level(clocks(100)), SeedStreams([0]))


@pytest.mark.parametrize("process", [IHDM(), SoftDiffusion(), ColdDiffusion()])
def test_processes_that_have_not_learned_are_refused(process: Process) -> None:
    with pytest.raises(UserError, match=f"^{type(process).__name__} .*has learned nothing: train it") as error:
        process.prior(noise(1, 1, 8, 8), process.level(clocks(process.max_clock)), SeedStreams([0]))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- Cold Diffusion


def restorer(mixing: Tensor):
    """R(x, k): a nonlinear restoration of pixels."""
    return lambda x, k: torch.tanh(mixing @ x) * (1 + k / 50)


def test_cold_algorithms_1_and_2() -> None:
    """x ← D(x̂0, s-1) of Algorithm 1; x ← x - D(x̂0, s) + D(x̂0, s-1) of Algorithm 2 (Bansal et al. 2022)."""
    steps, process = 20, ColdDiffusion(20, blur_max=8)
    restore, x = restorer(noise(8, 8, seed=3) / 8), noise(2, 3, 8, 8)

    def ask(u: Tensor, level: Level) -> Estimate:
        return Denoiser().estimate(restore(idct(u), level.clock.item())[:, None], u, process.gains(level, u))

    first = second = x
    for s in range(steps, 0, -1):
        first = blurred(restore(first, s), alpha(s - 1, steps, 0.5, 8))
        guess = restore(second, s)
        second = second - blurred(guess, alpha(s, steps, 0.5, 8)) + blurred(guess, alpha(s - 1, steps, 0.5, 8))
    way = levels(process, *range(steps, -1, -1))
    for rule, expected in ((Direct(), first), (Euler(), second)):
        got = idct(Sampler(rule=rule).descend(ask, process, dct(x), way, SeedStreams([0, 1])))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def test_colds_loss_is_l1_in_pixels() -> None:
    outputs, targets = noise(2, 1, 3, 8, 8), noise(2, 1, 3, 8, 8, seed=1)
    gains = gains_at(ColdDiffusion(), 30, outputs[:, 0])
    loss = AbsoluteError()(outputs - targets, gains)
    torch.testing.assert_close(loss, (outputs - targets).abs().sum((2, 3, 4)))


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 8, 8), (3, 8, 32)])
def test_cold_starts_from_the_colours_of_the_training_images(size: tuple[int, int, int]) -> None:
    channels = size[0]
    # Two clusters of colours, of 1/4 and 3/4 of the images, with channels that go together.
    images = photographs(*size, count=400)
    images = images - images.mean((2, 3), keepdim=True)
    colours = noise(400, channels, seed=4) @ (0.1 * noise(channels, channels, seed=5) + 0.1)
    colours[:100] += 0.6
    images = images + colours[:, :, None, None]
    process = ColdDiffusion(blur_max=max(size))
    process.learned = process.learn(images.float().split(64))
    count = 4000
    draws = SeedStreams(range(count))
    start = draws.normal(*size, dtype=torch.float64)
    x = idct(process.prior(start, process.level(clocks(50)), draws))
    means = x.mean((2, 3))
    # A mixture keeps both moments of what it is fitted to. Standard error of a mean: 0.3/√4000 = 0.005.
    torch.testing.assert_close(means.mean(0), colours.mean(0), rtol=0, atol=0.025)
    expected = torch.cov(colours.T, correction=0).reshape(channels, channels)
    torch.testing.assert_close(means.T.cov().reshape(channels, channels), expected, rtol=0.1, atol=0.003)
    share = (means.mean(1) > 0.4).double().mean().item()
    assert share == pytest.approx((colours.mean(1) > 0.4).double().mean().item(), abs=0.04)
    # Plain colours, but for noise of 0.002 that is the initial noise itself.
    torch.testing.assert_close(x - means[:, :, None, None], 0.002 * (start - start.mean((2, 3), keepdim=True)))
    assert (process.level(clocks(50)).beta, gains_at(process, 50, x).noise) == (0, 0)


def test_colds_colours_are_those_of_their_seeds() -> None:
    process = ColdDiffusion(blur_max=8)
    process.learned = process.learn([photographs(3, 8, 8)])

    def start(seeds: Sequence[int]) -> Tensor:
        draws = SeedStreams(seeds)
        return process.prior(draws.normal(3, 8, 8, dtype=torch.float64), process.level(clocks(50)), draws)

    together = start(range(6))
    assert torch.equal(start([4]), together[4:5])
    assert torch.equal(start([5, 1]), together[[5, 1]])
    assert len(together.unique(dim=0)) == 6


@pytest.mark.parametrize("size", [(8, 32), (32, 8), (32, 32)])
def test_cold_refuses_a_blur_that_leaves_something(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"blur_max of 30 pixels leaves 1%.* to 32") as error:
        ColdDiffusion(blur_max=30).learn([photographs(1, *size)])
    assert "\n" not in str(error.value)
    ColdDiffusion(blur_max=31).learn([photographs(1, *size)])


# ---------------------------------------------------------------------- Soft Diffusion


@pytest.mark.parametrize(("t", "s"), [(1000, 999), (700, 600), (3, 2), (1, 0)])
def test_soft_diffusions_momentum_step(t: int, s: int) -> None:
    """u_s = u_t + (A_s-A_t) x̂0 - (B_t²-B_s²)/B_t ε̂ + √(B_t²-B_s²) z, with blur and noise in pixels."""
    process, x, x0, z = SoftDiffusion(), noise(2, 1, 8, 8), noise(2, 1, 8, 8, seed=1), noise(2, 1, 8, 8, seed=2)
    high, low = (alpha(k, 1000, 0.05, 24) for k in (t, s))
    b_t, b_s = (alpha(k, 1000, 0.01, 0.2) for k in (t, s))
    epsilon = (x - blurred(x0, high)) / b_t
    expected = x + blurred(x0, low) - blurred(x0, high) - (b_t**2 - b_s**2) / b_t * epsilon
    if s > 0:
        expected = expected + math.sqrt(b_t**2 - b_s**2) * z
    step = step_of(process, x, t, s, Prescribed(z))

    def ask(u: Tensor, level: Level) -> Estimate:
        return Denoiser().estimate(x0[:, None], u, process.gains(level, u))

    torch.testing.assert_close(idct(Momentum()(ask, dct(x), step)), expected, rtol=0, atol=1e-12)


def test_soft_score_matching_is_a_loss_of_degraded_pixels() -> None:
    outputs, targets = noise(2, 1, 3, 8, 8), noise(2, 1, 3, 8, 8, seed=1)
    process = SoftDiffusion()
    level = process.level(clocks(300, 900))
    loss = SoftScoreMatching()(outputs - targets, process.gains(level, outputs[:, 0]))
    for i, k in enumerate((300, 900)):
        error = blurred((outputs - targets)[i], alpha(k, 1000, 0.05, 24))
        torch.testing.assert_close(loss[i], error.square().sum((1, 2, 3)))


def test_soft_diffusion_starts_from_blurred_images_with_noise() -> None:
    process, images = SoftDiffusion(blur_max=6), digits(20)
    process.learned = process.learn([images])
    pixels = noise(1, 1, 8, 8)
    u = process.prior(pixels, process.level(clocks(1000)), Prescribed(pixels, torch.tensor([0.26])))
    torch.testing.assert_close(idct(u), blurred(images[5:6], 6) + 0.2 * pixels, rtol=0, atol=1e-5)


def test_the_overlays_grids_begin_where_their_processes_do() -> None:
    for name in ("ihdm", "cold", "soft"):
        module, _ = load_config([DIGITS, REPOSITORY / "configs" / "method" / f"{name}.yaml"])
        assert isinstance(module.model().sampler.grid, EvenGrid)
        assert (
            module.model().sampler.grid.first
            == module.model().process.max_clock
            == module.model().clock_law.quantile(torch.tensor(1.0))
        )
