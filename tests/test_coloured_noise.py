"""Coloured noise: its colours against closed forms, limits to the bit, and what networks say of it."""

import json
import math
from pathlib import Path

import pytest
import torch
from small import DIGITS, REPOSITORY, here
from test_flow import PROCESSES as FLOWS
from test_process_oracles import IMAGES, LIKE, PROCESSES, SPECTRUM, U0
from torch import Tensor
from truths import final_variance, gains_at

from warm_lightning.errors import UserError
from warm_lightning.losses import SquaredError, Whitened
from warm_lightning.oracles import DatasetOracle, GaussianOracle
from warm_lightning.parameterizations import ColouredEpsilon, Epsilon
from warm_lightning.processes import (
    BlurredNoise,
    Colour,
    ColouredNoise,
    ConstantBNR,
    CorrelatedNoise,
    DataColour,
    Hot,
    PowerBand,
    Process,
    VariancePreserving,
    Warm,
)
from warm_lightning.rng import BatchDraws, SeedStreams
from warm_lightning.samplers import Churn, Euler, EvenGrid, Heun, Multistep, PowerGrid, Sampler
from warm_lightning.spectral import dct, frequencies, idct, second_moment
from warm_lightning.types import Estimate, Gains

FLAT = PowerBand(0.0)
RED = PowerBand(-0.5)


def data_colour() -> DataColour:
    colour = DataColour()
    colour.learned = colour.learn([IMAGES])
    return colour


@pytest.mark.parametrize("colour", [FLAT, RED, PowerBand(0.3, outside=0.5, high=2), BlurredNoise(), CorrelatedNoise()])
@pytest.mark.parametrize("like", [LIKE, torch.zeros(2, 3, 12, 6)])
def test_colours_have_the_power_of_white_noise(colour: Colour, like: Tensor) -> None:
    b = colour(like)
    assert b.dtype == like.dtype
    assert b.square().expand(1, *like.shape[1:]).mean().item() == pytest.approx(1, rel=1e-6)


def test_colours_are_their_formulas() -> None:
    rates = frequencies(LIKE)
    ratio = (RED(LIKE) / RED(LIKE)[..., 1:2, :1])[0, 0]
    torch.testing.assert_close(ratio[rates > 0], (rates / rates[1, 0])[rates > 0] ** -0.25)
    assert ratio[0, 0] == 1  # the constant image has the noise of the lowest frequency
    band = PowerBand(low=1, high=2)(LIKE)[0, 0]
    assert torch.equal(band > 0, (rates.sqrt() >= 1) & (rates.sqrt() <= 2))
    blurred = BlurredNoise(0.7)(LIKE)[0, 0]
    torch.testing.assert_close(blurred / blurred[0, 0], (-rates * 0.49 / 2).exp())
    power = second_moment([IMAGES])
    torch.testing.assert_close(data_colour()(LIKE).square(), (power / power.mean())[None])


def test_correlated_noise_has_the_variances_of_its_pixels() -> None:
    """Against the covariance matrix of all pixels, taken to DCT coefficients."""
    eta, height, width = 0.2, 5, 4
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    distance = (y[:, None] - y).abs() + (x[:, None] - x).abs()
    covariance = (1.0 + distance.double()) ** -eta
    vectors = idct(torch.eye(height * width, dtype=torch.float64).view(-1, height, width)).flatten(1)
    expected = torch.einsum("ki,ij,kj->k", vectors, covariance, vectors).view(height, width)
    found = CorrelatedNoise(eta)(torch.zeros(1, 1, height, width, dtype=torch.float64))[0, 0].square()
    torch.testing.assert_close(found, expected)  # a pixel's variance is 1 in both


NOISY: dict[str, Process] = {name: process for name, process in (PROCESSES | FLOWS).items() if name != "cold"}


@pytest.mark.parametrize("name", NOISY)
def test_flat_noise_is_the_process_itself_to_the_bit(name: str) -> None:
    """In sampling, and in what is drawn and made of an image in training."""
    inner = NOISY[name]
    for part in inner.learners:
        part.learned = part.learn([IMAGES]) if part.learned is None else part.learned
    outer = ColouredNoise(inner, FLAT)
    first = 80.0 if inner.max_clock == math.inf else inner.max_clock
    grid = PowerGrid(4) if inner.max_clock == math.inf else EvenGrid(4, first, first > 1)
    sampler = Sampler(grid, Euler(0.5), Churn(4))
    found = []
    for process in (inner, outer):
        draws = SeedStreams(range(3))
        start = draws.normal(1, 8, 8, dtype=torch.float64)
        found.append(sampler(DatasetOracle(U0, process), process, start, draws))
    assert torch.equal(*found)
    seen = []
    for process in (inner, outer):
        draws = BatchDraws(0, 0, len(U0), torch.arange(len(U0)))
        level = process.draw_level(torch.full((len(U0),), 0.4 * first), draws)
        noise = process.noise(draws.normal(1, 8, 8), draws)
        seen.append(process.degrade(Estimate(U0.float(), dct(noise)), process.gains(level, U0.float())))
    assert torch.equal(*seen)


def test_what_flat_noise_asks_of_a_network_is_epsilon_to_the_bit() -> None:
    process, like = VariancePreserving(), LIKE.float()
    plain, gains = (
        p.gains(process.level(torch.tensor([300.0])), like) for p in (process, ColouredNoise(process, FLAT))
    )
    truth = Estimate(U0[:1].float(), torch.randn(1, 1, 8, 8))
    assert torch.equal(ColouredEpsilon().targets(truth, gains), Epsilon().targets(truth, plain))
    outputs = torch.randn(1, 1, 1, 8, 8)
    u = torch.randn(1, 1, 8, 8)
    one, other = ColouredEpsilon().estimate(outputs, u, gains), Epsilon().estimate(outputs, u, plain)
    torch.testing.assert_close(one.clean, other.clean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.noise, other.noise, rtol=1e-6, atol=1e-6)
    errors = torch.randn(1, 1, 1, 8, 8)
    torch.testing.assert_close(Whitened()(errors, gains), SquaredError()(errors, plain))


@pytest.mark.parametrize("colour", [RED, BlurredNoise(), CorrelatedNoise(), data_colour()])
@pytest.mark.parametrize("inner", [Hot(), Warm(ConstantBNR(0.5)), VariancePreserving()])
def test_coloured_processes_sample_the_data(colour: Colour, inner: Hot) -> None:
    """Samples of normal data have its variances, and those of some images are these images."""
    process = ColouredNoise(inner, colour)
    hot = inner.max_clock == math.inf
    grid = PowerGrid(125) if hot else EvenGrid(125, 1000)
    got = final_variance(Heun(), GaussianOracle(SPECTRUM, process), process, LIKE, grid.clocks(), None)
    # 0.002 and 0.18 were measured, the latter at the constant image with most of the noise; 0.055 with white noise.
    assert (got / SPECTRUM - 1).abs().max() < (0.01 if hot else 0.22)
    draws = SeedStreams(range(8))
    start = draws.normal(1, 8, 8, dtype=torch.float64)
    samples = Sampler(PowerGrid(30) if hot else EvenGrid(30, 1000))(DatasetOracle(U0, process), process, start, draws)
    assert (samples[:, None] - U0).square().mean((2, 3, 4)).min(1).values.max() < 1e-20


def test_the_start_has_the_colour() -> None:
    process = ColouredNoise(VariancePreserving(), RED)
    normal = torch.randn(2000, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = process.prior(normal, process.level(torch.tensor([1000.0])), SeedStreams(range(2000)))
    # The relative standard error of a variance is √(2/2000) = 0.03.
    torch.testing.assert_close(start.square().mean(0)[0], RED(LIKE)[0, 0].square(), rtol=0.15, atol=0)


def test_equal_snr_is_equal() -> None:
    """All frequencies of the data have one SNR at each step, which is DDPM's SNR of their mean power."""
    process, power = ColouredNoise(VariancePreserving(), data_colour()), second_moment([IMAGES])
    for step in (1, 200, 700, 1000):
        gains = gains_at(process, step, LIKE)
        snr = gains.signal.square() * power / gains.noise.square()
        plain = gains_at(VariancePreserving(), step, LIKE)
        expected = (plain.signal.square() * power.mean() / plain.noise.square()).expand_as(snr)
        torch.testing.assert_close(snr, expected)


@pytest.mark.parametrize("colour", [RED, PowerBand(low=0.5, high=3)])
def test_true_outputs_give_the_true_estimate(colour: Colour) -> None:
    process = ColouredNoise(VariancePreserving(), colour)
    gains = gains_at(process, 400, LIKE)
    noise = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    truth = Estimate(U0[:1], torch.where(gains.noise > 0, noise, 0.0))
    target = ColouredEpsilon().targets(truth, gains)
    found = ColouredEpsilon().estimate(target, process.degrade(truth, gains), gains)
    torch.testing.assert_close(found.clean, truth.clean)
    torch.testing.assert_close(found.noise, truth.noise)
    # Flicker's loss of an error in what is added is that of white noise.
    error = torch.randn(1, 1, 8, 8, dtype=torch.float64) * (gains.noise > 0)
    coloured = idct(gains.colour * error)[:, None]
    torch.testing.assert_close(Whitened()(coloured, gains)[0, 0], error.square().sum())


def test_nothing_happens_outside_of_a_band() -> None:
    process = ColouredNoise(Hot(), PowerBand(low=1, high=2))
    u = dct(IMAGES[:3])
    draws = SeedStreams(range(3))
    outside = PowerBand(low=1, high=2)(LIKE)[0, 0] == 0
    levels = [process.level(clock) for clock in PowerGrid(5).clocks().split(1)]
    for rule in (Euler(1.0), Heun()):
        moved = Sampler(PowerGrid(5), rule).descend(GaussianOracle(SPECTRUM, process), process, u, levels, draws)
        assert torch.equal(moved[..., outside], u[..., outside])
    with pytest.raises(UserError, match="noise at every level but the last and in every frequency"):
        Sampler(PowerGrid(5), Multistep()).descend(GaussianOracle(SPECTRUM, process), process, u, levels, draws)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PowerBand(low=2, high=1),
        lambda: PowerBand(outside=-1),
        lambda: BlurredNoise(-1),
        lambda: CorrelatedNoise(-1),
        lambda: PowerBand(low=50)(LIKE),
        lambda: DataColour()(LIKE),
    ],
)
def test_impossible_colours_are_refused_in_one_line(make) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)


def test_colour_of_white_noise_is_one() -> None:
    white = Gains(torch.zeros(2, 1, 1, 1), torch.tensor([0.002, 80.0]).view(2, 1, 1, 1))
    assert torch.equal(white.noise_scale, white.noise)
    assert torch.equal(white.colour, torch.ones(2, 1, 1, 1))


def test_the_oracle_command_and_drift_take_processes_that_learn_a_colour(tmp_path: Path) -> None:
    overlay = f"--config={REPOSITORY / 'configs' / 'method' / 'equal_snr.yaml'}"
    options = [f"--config={DIGITS}", overlay, "--model.sampler.grid.steps=20"]
    here("oracle", *options, f"--outdir={tmp_path / 'oracle'}")
    assert json.loads((tmp_path / "oracle" / "oracle.json").read_text())
    small = ["--model.network.model_channels=8", "--model.network.channel_mult=[1]", "--model.duration=64"]
    run, folder = [*options, *small, "--scores.every=0", "--samples.every=0"], f"--trainer.default_root_dir={tmp_path}"
    here("fit", *run, folder)
    checkpoint = f"--ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"
    here("drift", *options, *small, checkpoint, f"--outdir={tmp_path / 'drift'}", "--num_images=4")


def test_a_colour_follows_what_is_learned_and_where_it_is_asked() -> None:
    colour = data_colour()
    first = colour(LIKE)
    assert colour(LIKE) is first  # kept
    assert colour(LIKE.float()).dtype == torch.float32
    colour.learned = {"second_moment": torch.ones_like(second_moment([IMAGES]))}
    assert torch.equal(colour(LIKE), torch.ones_like(LIKE))
    with torch.inference_mode():
        kept = data_colour()(LIKE)
    assert not kept.is_inference()
