"""Preconditioning: the principles that it was derived from, EDM's as a case, and the blur signal at its edges."""

import math
from functools import partial
from typing import Literal

import pytest
import torch

from warm_lightning.errors import UserError
from warm_lightning.losses import LogNormal, SpectrumWeighted, SquaredError, Uniform
from warm_lightning.model import DiffusionModel
from warm_lightning.networks import DDPMpp
from warm_lightning.oracles import GaussianOracle
from warm_lightning.parameterizations import (
    ColouredEpsilon,
    DenoiseDeblur,
    Denoiser,
    DenoiseRestore,
    Epsilon,
    InvertedBlur,
    Parameterization,
    StraightVelocity,
)
from warm_lightning.preconditioning import Coefficients, EDMPreconditioning, SpectralPreconditioning
from warm_lightning.processes import (
    BlurringDiffusion,
    ColouredNoise,
    ConstantBNR,
    DataColour,
    FlowMatching,
    Hot,
    PowerBand,
    Process,
    VariancePreserving,
    Warm,
)
from warm_lightning.samplers import EvenGrid, PowerGrid, Sampler
from warm_lightning.spectral import dct, frequencies, idct
from warm_lightning.types import Estimate, Gains, Level

BETA = torch.logspace(-3, 2, 41, dtype=torch.float64)


def hot(beta: torch.Tensor) -> Level:
    return Level(torch.zeros_like(beta), beta, beta)


def edm(level: Level, sigma_data: float | Literal["measured"] = 0.5) -> Coefficients:
    """EDM's coefficients, which depend on the level alone, for a branch with the signal of the input."""
    return EDMPreconditioning(sigma_data)(level, Gains(torch.zeros(1), level.beta), Denoiser())


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_principles_of_edm_appendix_b6(sigma_data):
    """Unit-variance input, unit-variance target, and the c_skip that amplifies the network's errors least.

    A second route to Table 1: the requirements, not the formulas. Float64, so 1e-12 is rounding.
    """
    c = edm(hot(BETA), sigma_data)
    skip, out, scale = c.skip.flatten(), c.out.flatten(), c.input.flatten()

    def target_variance(skip):  # of x0 - skip·(x0 + βε)
        return (1 - skip) ** 2 * sigma_data**2 + skip**2 * BETA**2

    ones = torch.ones_like(BETA)
    torch.testing.assert_close(scale**2 * (sigma_data**2 + BETA**2), ones, rtol=1e-12, atol=0)
    torch.testing.assert_close(target_variance(skip) / out**2, ones, rtol=1e-12, atol=0)
    assert (target_variance(skip * 1.01) > out**2).all()
    assert (target_variance(skip * 0.99) > out**2).all()
    weight = (BETA**2 + sigma_data**2) / (BETA * sigma_data) ** 2  # λ(β), EDM's Table 1
    torch.testing.assert_close(out**-2, weight, rtol=1e-12, atol=0)


def test_noise_signal():
    c = edm(hot(torch.tensor([math.exp(-4), 1.0, math.exp(2)])))
    torch.testing.assert_close(c.noise, torch.tensor([-1.0, 0.0, 0.5]))


def test_blur_signal():
    """ln(1 + α/β), exactly 0 without blur, ln(1 + α) without noise, and no cancellation for tiny blurs."""
    alpha = torch.tensor([0.0, 1.0, math.e - 1, 1e-10])
    beta = torch.tensor([0.3, 1.0, 0.0, 1e-2])
    c = edm(Level(alpha, beta, beta))
    assert c.blur[0] == 0
    # log1p in float32: 1e-8 would come out as 0 from log(1 + x)
    torch.testing.assert_close(c.blur[1:], torch.tensor([math.log(2), 1.0, 1e-8]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_no_noise_is_finite_with_finite_gradients(alpha):
    """A NaN in the branch of a `where` that is not taken would still reach the gradient."""
    beta = torch.tensor([0.0], requires_grad=True)
    level = Level(torch.tensor([alpha], requires_grad=True), beta, beta)
    c = edm(level)
    fields = (c.skip, c.out, c.input, c.noise, c.blur)
    assert all(value.isfinite().all() for value in fields)
    sum(value.sum() for value in fields).backward()
    assert level.alpha.grad.isfinite().all()
    assert level.beta.grad.isfinite().all()
    assert c.skip.item() == 1
    assert c.out.item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtype(dtype):
    """A level may be one number for the batch; coefficients keep its dtype (the sampler's float64)."""
    c = edm(Level(torch.ones(1, dtype=dtype), torch.ones(5, dtype=dtype), torch.ones(5, dtype=dtype)))
    assert all(value.shape == (5, 1, 1, 1, 1) for value in (c.skip, c.out))
    assert c.input.shape == (5, 1, 1, 1)
    assert c.noise.shape == c.blur.shape == (5,)
    assert {value.dtype for value in (c.skip, c.out, c.input, c.noise, c.blur)} == {dtype}


@pytest.mark.parametrize("sigma_data", [0, -0.5, math.nan])
def test_sigma_data_must_be_positive(sigma_data):
    with pytest.raises(UserError, match="sigma_data"):
        EDMPreconditioning(sigma_data)


# ---------------------------------------------------------------------- frequency by frequency

SIZE = 8
LEARNED = {"second_moment": 0.4 / (0.1 + frequencies(torch.zeros(3, SIZE, SIZE).double())) * torch.ones(3, 1, 1)}
"""S of a law of photographs."""


def data_colour() -> DataColour:
    """The colour of EqualSNR, for these data."""
    colour = DataColour()
    colour.learned = {"second_moment": LEARNED["second_moment"][:1]}
    return colour


SYSTEMS: list[tuple[Process, Parameterization, float]] = [
    (Hot(), Denoiser(), 0.7),
    (Hot(), DenoiseDeblur(), 0.7),
    (Warm(ConstantBNR(0.5)), DenoiseDeblur(), 0.3),
    (Warm(ConstantBNR(2.0)), DenoiseDeblur(), 3.0),
    (Warm(ConstantBNR(0.5)), DenoiseRestore(), 0.3),
    (Warm(ConstantBNR(0.5)), InvertedBlur(0.0), 0.3),
    (VariancePreserving(), Epsilon(), 300.0),
    (BlurringDiffusion(), Epsilon(), 0.4),
    (FlowMatching(), StraightVelocity(), 0.6),
    (ColouredNoise(VariancePreserving(), PowerBand(-0.5)), ColouredEpsilon(), 300.0),
    (ColouredNoise(VariancePreserving(), data_colour()), Denoiser(), 300.0),
]


def spectral() -> SpectralPreconditioning:
    preconditioning = SpectralPreconditioning()
    preconditioning.learned = LEARNED
    return preconditioning


@pytest.mark.parametrize(("process", "parameterization", "clock"), SYSTEMS)
def test_a_network_that_says_nothing_is_the_gaussian_oracle(process, parameterization, clock):
    """Its last layer, and all others, are 0."""
    grid = PowerGrid() if process.max_clock == math.inf else EvenGrid(18, process.max_clock, process.max_clock > 1)
    model = DiffusionModel(
        partial(DDPMpp, resolution=SIZE, model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[]),
        process,
        parameterization,
        spectral(),
        Uniform(0, process.max_clock) if process.max_clock < math.inf else LogNormal(),
        sampler=Sampler(grid),
    )
    for parameter in model.network.parameters():
        torch.nn.init.zeros_(parameter)
    u = dct(torch.randn(4, 3, SIZE, SIZE, dtype=torch.float64))
    level = process.level(torch.full((4,), clock, dtype=torch.float64))
    with torch.no_grad():
        found = model.estimate(u, level)
    expected = GaussianOracle(LEARNED["second_moment"], process)(u, level)
    torch.testing.assert_close(found.noise, expected.noise, rtol=0, atol=1e-6)
    known = process.gains(level, u).signal > 1e-70  # below, an inverted blur has 0, which moves nothing
    torch.testing.assert_close(*(torch.where(known, e.clean, 0.0) for e in (found, expected)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("process", "parameterization", "clock"), SYSTEMS)
def test_skip_is_the_regression_of_the_target_and_out_its_error(process, parameterization, clock):
    """By a regression on 40,000 Gaussian images, frequency by frequency; 6 standard errors are 0.03."""
    count, power = 40_000, LEARNED["second_moment"][:1]
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2, count, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    truth = Estimate(power.sqrt() * normal[0], normal[1])
    level = process.level(torch.tensor([clock], dtype=torch.float64))
    gains = process.gains(level, truth.clean)
    u = process.degrade(truth, gains)
    c = spectral()(level, gains, parameterization)
    torch.testing.assert_close(
        (c.input[:, :1] * u).square().mean(0).sqrt(), torch.ones(1, SIZE, SIZE).double(), rtol=0.03, atol=0
    )
    targets = dct(parameterization.targets(truth, gains))
    for branch in range(targets.shape[1]):
        target = targets[:, branch]
        slope = (target * u).mean(0) / u.square().mean(0)
        out = (target - slope * u).square().mean(0).sqrt()
        error = out / u.square().mean(0).sqrt()
        torch.testing.assert_close(c.skip[0, branch, :1], slope, rtol=0, atol=(0.03 * error.max()).item() + 1e-12)
        torch.testing.assert_close(c.out[0, branch, :1], out, rtol=0.03, atol=1e-9)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edms_coefficients_are_those_of_white_images(sigma_data):
    white = SpectralPreconditioning(c=sigma_data**2, s=0.0)
    level = hot(BETA)
    like = torch.zeros(len(BETA), 1, 4, 4, dtype=torch.float64)
    found, expected = white(level, Hot().gains(level, like), Denoiser()), edm(level, sigma_data)
    for name in ("skip", "out", "input", "noise", "blur"):
        a, b = torch.broadcast_tensors(getattr(found, name), getattr(expected, name))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("process", "parameterization", "clock"), SYSTEMS)
@pytest.mark.parametrize("make", [spectral, EDMPreconditioning])
def test_errors_are_those_of_outputs_in_units_of_c_out(process, parameterization, clock, make):
    """The raw target of `errors` and the coefficients are two routes to the same number; in float64."""
    truth = Estimate(*(dct(torch.randn(2, 3, 3, SIZE, SIZE, dtype=torch.float64))))
    level = process.level(torch.full((3,), clock, dtype=torch.float64))
    gains = process.gains(level, truth.clean)
    x, preconditioning = idct(process.degrade(truth, gains)), make()
    c = preconditioning(level, gains, parameterization)
    raw = torch.randn(3, len(parameterization.names), 3, SIZE, SIZE, dtype=torch.float64)
    errors = dct(preconditioning.errors(raw, x, c, truth, gains, parameterization))
    expected = dct(c.outputs(x, raw) - parameterization.targets(truth, gains))
    out = c.out.expand_as(expected)
    known = out > 1e-8  # below, rounding in pixels hides the expected value
    torch.testing.assert_close(errors[known], (expected / out)[known], rtol=1e-6, atol=1e-6)
    assert errors.isfinite().all()
    assert known.double().mean() > 0.4


@pytest.mark.parametrize("beta", [0.002, 0.4, 80.0])
@pytest.mark.parametrize("sigma_data", [0.5, 0.8])
def test_spectrum_weighted_loss_is_edms_loss_of_the_same_outputs(beta, sigma_data):
    """With power 1 the loss is that of the same outputs by EDM's c_out, and with power 0 the squared error."""
    truth = Estimate(*(dct(torch.randn(2, 3, 3, SIZE, SIZE, dtype=torch.float64))))
    level = hot(torch.full((3,), beta, dtype=torch.float64))
    gains = Hot().gains(level, truth.clean)
    x, preconditioning = idct(Hot().degrade(truth, gains)), SpectralPreconditioning(c=0.3, s=1.2)
    c = preconditioning(level, gains, Denoiser())
    raw = torch.randn(3, 1, 3, SIZE, SIZE, dtype=torch.float64)
    errors = preconditioning.errors(raw, x, c, truth, gains, Denoiser())
    in_pixels = (c.outputs(x, raw) - idct(truth.clean).unsqueeze(1)) / edm(level, sigma_data).out
    loss = SpectrumWeighted(c=0.3, s=1.2, sigma_data=sigma_data)(errors, gains)
    torch.testing.assert_close(loss, SquaredError()(in_pixels, gains), rtol=1e-8, atol=0)
    torch.testing.assert_close(SpectrumWeighted(power=0)(errors, gains), SquaredError()(errors, gains))


def test_spectrum_weighted_loss_refuses_powers_and_is_finite_where_nothing_is_left():
    with pytest.raises(UserError, match="sigma_data 0: both must be positive"):
        SpectrumWeighted(sigma_data=0)
    nothing = Gains(torch.full((1, 1, 4, 4), -1e3), torch.zeros(1, 1, 4, 4))
    assert SpectrumWeighted()(torch.ones(1, 1, 3, 4, 4), nothing).item() == 0


@pytest.mark.parametrize("kind", [EDMPreconditioning, SpectralPreconditioning])
def test_what_is_learned_is_that_of_the_images(kind):
    images = 0.3 + torch.randn(70, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    part = kind("measured") if kind is EDMPreconditioning else kind()
    with pytest.raises(UserError, match="has learned nothing"):
        part(hot(BETA), Hot().gains(hot(BETA), torch.zeros(len(BETA), 3, SIZE, SIZE).double()), Denoiser())
    part.learned = part.learn(images.split(32))
    assert tuple(part.learned) == part.needs
    (found,) = part.learned.values()
    expected = (
        images.double().std(correction=0) if kind is EDMPreconditioning else dct(images.double()).square().mean(0)
    )
    torch.testing.assert_close(found, expected)


def test_power_of_a_law_must_be_positive():
    with pytest.raises(UserError, match="c is -1"):
        SpectralPreconditioning(c=-1)
