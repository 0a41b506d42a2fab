"""Bits per dimension against laws whose density is known: normal ones, and mixtures of a few images."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from small import DIGITS, here
from spectra import level
from torch import Tensor
from truths import digits, gains_at

from warm_lightning.analysis.likelihood import (
    basis,
    bits_of_images,
    bits_per_dimension,
    excess_at_most,
    last_noisy_state,
    log_density,
    prior_deviation,
    prior_gap,
    rademacher,
    rising_levels,
    with_divergence,
)
from warm_lightning.cli import main
from warm_lightning.errors import UserError
from warm_lightning.images import dequantise, quantise
from warm_lightning.oracles import DatasetOracle, GaussianOracle
from warm_lightning.processes import (
    IHDM,
    BlurringDiffusion,
    ColdDiffusion,
    ConstantBNR,
    FlowMatching,
    Hot,
    PFGMpp,
    Process,
    SoftDiffusion,
    VariancePreserving,
    Warm,
)
from warm_lightning.rng import SeedStreams
from warm_lightning.samplers import EvenGrid, Grid, PowerGrid
from warm_lightning.spectral import dct, frequencies, idct
from warm_lightning.types import Gains

RATES = frequencies(torch.zeros(1, 8, 8, dtype=torch.float64))[None]
SPECTRUM = 0.25 / RATES.clamp(min=RATES[0, 0, 1] / 4)  # about that of photographs
CASES: dict[str, tuple[Process, Grid]] = {
    "hot": (Hot(), PowerGrid()),
    "warm 0.5": (Warm(), PowerGrid()),
    "warm 2": (Warm(ConstantBNR(2.0)), PowerGrid()),
    "ddpm": (VariancePreserving(), EvenGrid()),
    "blurring": (BlurringDiffusion(), EvenGrid(1000, 1, False)),
}


def normal_log(u: Tensor, variance: Tensor) -> Tensor:
    """ln of the density of N(0, diag variance), [B]."""
    return -(u.square() / variance + (2 * math.pi * variance).log()).sum((1, 2, 3)) / 2


@pytest.mark.parametrize("name", CASES)
def test_normal_data_have_their_density(name: str) -> None:
    """With the prior N(0, P) instead of the last level's law N(0, V_T), the density at the first is N(0, P·V_0/V_T)."""
    process, grid = CASES[name]
    oracle, errors = GaussianOracle(SPECTRUM, process), []
    noise = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for steps in (50, 100, 200):
        way = rising_levels(process, grid, steps)
        assert len(way) == steps + 1
        first, last = (oracle.marginal_variance(process.gains(end, noise)) for end in (way[0], way[-1]))
        u = first.sqrt() * noise
        exact = normal_log(u, prior_deviation(process, way[-1], u[:1]).square() * first / last)
        # The Jacobian being diagonal, random signs give its trace exactly.
        found = log_density(oracle, process, u, way, rademacher(SeedStreams(range(3)), 1))
        errors.append((found - exact).abs().max().item())
        # What the prior does not know of the image is as good as nothing, in bits a dimension.
        assert (exact - normal_log(u, first)).abs().max() / 64 / math.log(2) < 1e-3
    assert errors[-1] / 64 / math.log(2) < 3e-3
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert abs(orders[-1] - 2) < 0.15, orders


@pytest.mark.parametrize(
    "process", [Hot(), Warm(ConstantBNR(0.5)), Warm(ConstantBNR(2.0))], ids=["hot", "warm 0.5", "warm 2"]
)
def test_mixtures_have_their_density(process: Process) -> None:
    """Three images of 2×2 pixels: p(u) = mean of N(u; A a_i, B²), whose Jacobians are not diagonal."""
    u0 = torch.tensor([[0.5, -0.2, 0.1, 0.7], [-0.9, 0.4, 0.3, -0.1], [0.2, 0.2, -0.8, 0.6]]).double().view(3, 1, 2, 2)
    u0 = u0 - u0.mean(0)  # which the prior does not know
    way = rising_levels(process, PowerGrid(beta_min=0.3), 400)
    gains = process.gains(way[0], u0)
    noise = torch.randn(6, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u = gains.signal * u0.repeat(2, 1, 1, 1) + gains.noise * noise
    variance = gains.noise.square().expand(1, 1, 2, 2)
    parts = torch.stack([normal_log(u - gains.signal * image, variance) for image in u0])
    exact = torch.logsumexp(parts, 0) - math.log(3)
    found = log_density(DatasetOracle(u0, process), process, u, way, basis)
    # 400 steps leave 9e-4, a quarter of what 200 do; the prior, 80² for images with squares of 1, as good as nothing.
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-3)


def test_random_probes_have_the_trace_as_their_mean() -> None:
    """At a level at which some of the images are still told apart, so that frequencies depend on each other."""
    process, u0 = Warm(), dct(digits(30))
    here_level = level(process, 1.0)
    gains = process.gains(here_level, u0)
    count = 4000
    noise = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = gains.signal * u0[:1] + gains.noise * noise
    oracle = DatasetOracle(u0, process)

    def clean(v: Tensor) -> Tensor:
        return oracle(v, here_level).clean

    jacobian = torch.autograd.functional.jacobian(clean, u).view(64, 64)  # a second route
    exact = with_divergence(clean, u, basis)[1]
    assert exact.item() == pytest.approx(jacobian.trace().item())
    probes = rademacher(SeedStreams(range(count)), 1)
    each = with_divergence(clean, u.expand(count, -1, -1, -1), probes)[1]
    error = each.std() / math.sqrt(count)
    assert (each.mean() - exact).abs() < 4 * error
    assert error > 0.01  # they do differ
    of_four = with_divergence(clean, u.expand(count, -1, -1, -1), rademacher(SeedStreams(range(count)), 4))[1]
    assert (of_four.mean() - exact).abs() < 4 * of_four.std() / math.sqrt(count)
    assert of_four.std().item() == pytest.approx(each.std().item() / 2, rel=0.1)  # known to 1.1 % each


def test_bits_count_grey_levels_of_sharp_images() -> None:
    """A density of 1 in images x is one of 127.5⁻¹ in grey levels; where A halves, u = A∘x has twice that of x."""
    u = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    one = Gains(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    half = Gains(torch.full((1, 1, 4, 4), 0.5).log(), torch.ones(1, 1, 1, 1))
    assert bits_per_dimension(torch.zeros(1), one, u).item() == pytest.approx(math.log2(127.5))
    assert bits_per_dimension(torch.full((1,), 16 * math.log(2)), half, u).item() == pytest.approx(math.log2(127.5))


def test_bits_of_images_of_normal_data() -> None:
    """From uint8 images to bits, where their density is known: the scale, the levels and the blur at the lowest one."""
    process = Warm(ConstantBNR(2.0))
    oracle, way = GaussianOracle(SPECTRUM, process), rising_levels(process, PowerGrid(), 200)
    images = quantise(digits(4).float())
    found = bits_of_images(oracle, process, images, way, SeedStreams(range(4)), probes=1)
    u = last_noisy_state(process, images, way[0], SeedStreams(range(4)))
    gains, last = (process.gains(end, u) for end in (way[0], way[-1]))
    ratio = oracle.marginal_variance(gains) / oracle.marginal_variance(last)
    log_p = normal_log(u, prior_deviation(process, way[-1], u[:1]).square() * ratio)
    exact = -(log_p + gains.log_signal.sum()) / (64 * math.log(2)) + math.log2(127.5)
    # Heun's error in 200 steps is 0.006; a wrong level, scale or sign is whole bits.
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-2)


def test_bits_down_to_the_same_noise_are_comparable() -> None:
    """Bits of normal images are those of their density, whatever the scale, clock and grid of the process."""
    images, found = quantise(digits(4).float()), []
    for process, grid in (
        (Hot(), PowerGrid(18)),
        (VariancePreserving(), EvenGrid(18, 1000)),
        (FlowMatching(), EvenGrid(18, 1.0, whole=False)),
    ):
        way = rising_levels(process, grid, 200, last_noise=0.05)
        assert way[0].beta.item() == pytest.approx(0.05)
        oracle = GaussianOracle(SPECTRUM, process)
        found.append(bits_of_images(oracle, process, images, way, SeedStreams(range(4)), probes=1))
        assert excess_at_most(process.gains(way[0], RATES)) == pytest.approx(
            excess_at_most(Gains(0 * RATES, 0.05 + 0 * RATES))
        )
    u = last_noisy_state(Hot(), images, level(Hot(), 0.05), SeedStreams(range(4)))
    exact = math.log2(127.5) - normal_log(u, SPECTRUM + 0.05**2) / (64 * math.log(2))
    for bits in found:
        torch.testing.assert_close(bits, exact, rtol=0, atol=1e-2)  # Heun's error, as above
    for noise in (0.0, -1.0, 100.0):
        with pytest.raises(UserError, match=r"--last_noise is .* below the first, 80"):
            rising_levels(Hot(), PowerGrid(18), 10, last_noise=noise)


def test_images_are_uniform_over_their_grey_levels() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    silent = Hot()
    u = last_noisy_state(silent, images, level(silent, 1e-12), SeedStreams(range(4)))
    x = idct(u)
    assert torch.equal(quantise(x), images)
    place = x * 127.5 + 128 - images  # in [0, 1), of 256 numbers: their mean is known to 0.018
    assert (place.min() < 0.05, place.max() > 0.95) == (True, True)
    assert place.mean().item() == pytest.approx(0.5, abs=0.06)
    process = Warm(ConstantBNR(2.0))
    blurred = last_noisy_state(process, images, level(process, 0.5), SeedStreams(range(4)))
    gains = gains_at(process, 0.5, u)
    noise = (blurred - gains.signal * u) / gains.noise
    assert noise.std().item() == pytest.approx(1, abs=0.15)  # known to 0.044


def test_excess_is_a_cross_entropy() -> None:
    """Sampled: of a level's normal noise, asked about it and a uniform share of a grey level, for each frequency."""
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor([[0.1, 0.255], [1.0, 4.0]], dtype=torch.float64)  # in grey levels
    shape = (200_000, 1, 2, 2)
    share = dct(torch.rand(shape, dtype=torch.float64, generator=generator) - 0.5)
    v = share + sigma * torch.randn(shape, dtype=torch.float64, generator=generator)
    sampled = -torch.distributions.Normal(torch.zeros(2, 2), sigma).log_prob(v).mean((1, 2, 3)) / math.log(2)
    gains = Gains(torch.full((1, 1, 2, 2), -3.0), (sigma / 127.5 * math.exp(-3))[None, None])
    assert excess_at_most(gains) == pytest.approx(sampled.mean().item(), abs=5 * sampled.std().item() / math.sqrt(2e5))


def test_excess_has_a_value_where_nothing_is_left() -> None:
    assert 1000 < excess_at_most(Gains(torch.full((1, 1, 1, 1), -925.0), torch.ones(1, 1, 1, 1))) < 2000


@pytest.mark.parametrize("process", [Hot(), Warm(ConstantBNR(2))])
def test_a_perfect_model_of_isolated_images_needs_their_entropy_and_the_excess(process: Process) -> None:
    """Digits have 17 grey levels, so far apart that the noise of the lowest level does not join them."""
    images = quantise(digits(64))
    u0 = dct(dequantise(images, torch.float64))
    levels = rising_levels(process, PowerGrid(18), 100)
    found = bits_of_images(DatasetOracle(u0, process), process, images, levels, SeedStreams(range(64)), 2)
    expected = math.log2(64) / 64 + excess_at_most(process.gains(levels[0], u0))
    # Four standard errors of 4,096 numbers of about 1.5 bits, and a hundredth for the steps.
    assert found.mean().item() == pytest.approx(expected, abs=0.1)


def test_prior_gap_in_closed_form() -> None:
    moment, process = torch.full((1, 4, 4), 3.0, dtype=torch.float64), Hot()
    ratio = 1 + 3.0 / 4
    expected = (ratio - 1 - math.log(ratio)) / 2 / math.log(2)
    assert prior_gap(moment, process, level(process, 2.0)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("process", "grid", "message"),
    [
        (ColdDiffusion(), EvenGrid(50, 50), "no noise at"),
        (IHDM(), EvenGrid(200, 200), "normal noise"),
        (SoftDiffusion(), EvenGrid(100, 1000), "normal noise"),
        (PFGMpp(), PowerGrid(), "normal noise"),
        (Warm(), PowerGrid(1), "raise its steps"),
    ],
)
def test_processes_without_a_density_are_refused(process: Process, grid: Grid, message: str) -> None:
    images = digits(4)
    process.learned = process.learn([images]) if process.learned is None else process.learned
    with pytest.raises(UserError, match=message):
        bits_of_images(
            GaussianOracle(SPECTRUM, process), process, quantise(images), rising_levels(process, grid, 3),
            SeedStreams(range(4)), 1,
        )  # fmt: skip


# ---------------------------------------------------------------------- the command


SETTINGS = [f"--config={DIGITS}", "--model.network.model_channels=8", "--model.network.channel_mult=[1,2]"]


def test_command(learned_ckpt: Path, tmp_path: Path) -> None:
    def run(name: str, *options: str) -> dict:
        where = [
            f"--ckpt_path={learned_ckpt}",
            f"--outdir={tmp_path / name}",
            "--accelerator=cpu",
            "--data.held_out=40",
        ]
        here("bits", *SETTINGS, *where, "--num_images=5", "--steps=8", *options)
        return json.loads((tmp_path / name / "bits.json").read_text())

    found, split = run("a"), run("b", "--batch_size=2")
    each = torch.tensor(found["per_image"], dtype=torch.float64)
    assert found["bpd"] == pytest.approx(each.mean().item())
    assert found["standard_error"] == pytest.approx(each.std().item() / 5**0.5)
    assert found["nfe"] == 16
    # An image's bits are a function of the seed and the image; the float32 network differs a little between batches.
    assert split["per_image"] == pytest.approx(found["per_image"], rel=1e-4)
    # A trained model knows more than that grey levels go from 0 to 255, less than a process that knows all.
    assert 1 < found["bpd"] < 8.5
    other = run("c", "--seed=1", "--split=train", "--probes=0", "--weights=raw")
    assert other["protocol"]["divergence"] == "exact"
    assert other["bpd"] != found["bpd"]
    noisier = run("d", "--last_noise=0.06")
    assert noisier["protocol"]["levels"]["beta"][0] == pytest.approx(0.06)
    assert noisier["excess_at_most"] > found["excess_at_most"]


def test_exact_divergence_is_the_mean_of_probes(learned_ckpt: Path, tmp_path: Path) -> None:
    """Through a network, whose Jacobian is not diagonal."""
    options = [f"--ckpt_path={learned_ckpt}", "--accelerator=cpu", "--split=train", "--num_images=4", "--steps=3"]
    found = []
    for probes in (0, 20):
        here("bits", *SETTINGS, *options, f"--outdir={tmp_path}", f"--probes={probes}", "--data.held_out=40")
        found.append(json.loads((tmp_path / "bits.json").read_text())["per_image"])
    # What is drawn for the image is drawn before probes, and is the same. Of the 13 bits of three such steps, 6 calls
    # with 20 probes each leave about 0.1 to chance.
    assert found[1] == pytest.approx(found[0], abs=0.5)


def test_user_errors_are_one_line(learned_ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, part in [
        (["--data.held_out=0"], "no held-out images"),
        (["--data.held_out=40", "--num_images=41"], "held_out has 40 images"),
        (["--data.held_out=40", "--probes=-1"], "--probes is -1"),
        (["--data.held_out=40", "--model.process=PFGMpp"], "normal noise"),
    ]:
        capsys.readouterr()
        where = [f"--ckpt_path={learned_ckpt}", f"--outdir={tmp_path}", "--accelerator=cpu"]
        assert main(["bits", *SETTINGS, *where, *options]) == 2
        error = capsys.readouterr().err.strip()
        assert part in error
        assert "\n" not in error
