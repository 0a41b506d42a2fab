"""Drift against closed forms: oracles in the network's place, and `warm drift` against a second computation."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from small import DIGITS, SMALL, here, refusal
from torch import Tensor
from truths import digits, noise

from warm_lightning import load_checkpoint
from warm_lightning.analysis import figures
from warm_lightning.analysis.drift import POWER, QUANTITIES, Bands, DriftMeasurement, compare, summarise
from warm_lightning.cli import main
from warm_lightning.data import Digits
from warm_lightning.errors import UserError
from warm_lightning.images import dequantise
from warm_lightning.model import one_hot
from warm_lightning.oracles import DatasetOracle, GaussianOracle
from warm_lightning.processes import (
    BlurringDiffusion,
    ColdDiffusion,
    ConstantBNR,
    Hot,
    PFGMpp,
    Process,
    ProgressiveDeblurring,
    SoftDiffusion,
    VariancePreserving,
    Warm,
)
from warm_lightning.rng import SeedStreams, key
from warm_lightning.samplers import Euler, EvenGrid, Heun, PowerGrid, Sampler
from warm_lightning.spectral import dct, frequencies, idct, power_spectrum, second_moment
from warm_lightning.types import Estimate, Estimator, Level

LIKE = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
SPECTRUM = 0.25 / frequencies(LIKE)[None].clamp(min=0.05)  # about that of photographs
BANDS = Bands(3, LIKE)
WARM = Warm(ConstantBNR(2))
measurement = partial(DriftMeasurement, bands=BANDS, like=LIKE)


def gaussian(count: int, seed: int = 0) -> Tensor:
    """Data N(0, diag S)."""
    return SPECTRUM.sqrt() * noise(count, 1, 8, 8, seed=seed)


def test_bands_are_rings_of_equal_width() -> None:
    radius = frequencies(LIKE).sqrt()
    assert BANDS.names == ["all", "1", "2", "3"]
    assert BANDS.edges[0] == (0, pytest.approx(math.pi * math.sqrt(2) * 7 / 8))
    x = noise(2, 3, 8, 8)
    means = BANDS.mean(x.square())
    torch.testing.assert_close(means[:, 0], idct(x).square().mean((1, 2, 3)))  # Parseval
    for k, (low, high) in enumerate(BANDS.edges[1:], start=1):
        assert high - low == pytest.approx(BANDS.edges[0][1] / 3)
        inside = [(i, j) for i in range(8) for j in range(8) if low <= radius[i, j] and (radius[i, j] < high or k == 3)]
        expected = sum(x[:, :, i, j].square().mean(1) for i, j in inside) / len(inside)
        torch.testing.assert_close(means[:, k], expected)


@pytest.mark.parametrize(
    ("process", "grid"),
    [
        (Hot(), PowerGrid(6)),
        (WARM, PowerGrid(6)),
        (BlurringDiffusion(), EvenGrid(5, 1.0, whole=False)),
        (ProgressiveDeblurring(), EvenGrid(5)),  # a noise gain of its own for each frequency
        (SoftDiffusion(), EvenGrid(5)),
    ],
)
def test_truly_degraded_images(process: Process, grid: EvenGrid) -> None:
    seen_by, oracle = measurement(process), GaussianOracle(SPECTRUM, process)
    levels = seen_by.levels(Sampler(grid))
    assert len(levels) == grid.steps  # all but the last
    seen = seen_by.of_degraded(oracle, levels, gaussian(600), SeedStreams(range(600)))
    closed = []
    for level in levels:
        gains = process.gains(level, LIKE)
        variance = gains.signal.square() * SPECTRUM + gains.noise.square()
        blur = gains.signal / gains.signal[..., :1, :1]  # without what some processes scale images by
        detail = ((1 - blur) * gains.signal * SPECTRUM).square() / variance
        closed.append(BANDS.mean(torch.cat([gains.noise.square() / variance, variance, detail])).T)
    expected = torch.stack(closed)
    # 5 standard errors, for some 250 numbers; what underflows is left out.
    assert ((seen.mean(0) - expected).abs() <= 5 * seen.std(0) / math.sqrt(600) + 1e-100).all()
    torch.testing.assert_close(seen_by.expected_power(levels, SPECTRUM), expected[..., 1])


def test_scaling_alone_is_no_residual() -> None:
    process, seen_by = VariancePreserving(), measurement(VariancePreserving())
    levels = seen_by.levels(Sampler(EvenGrid(5)))
    seen = seen_by.of_degraded(GaussianOracle(SPECTRUM, process), levels, gaussian(8), SeedStreams(range(8)))
    rows = compare(seen, seen, seen_by.expected_power(levels, SPECTRUM), levels, BANDS)
    assert {row["quantity"] for row in rows} == {"noise", "power"}


def wrong_by(factor: float, oracle: Estimator) -> Estimator:
    def ask(u: Tensor, level: Level) -> Estimate:
        estimate = oracle(u, level)
        return replace(estimate, noise=factor * estimate.noise)

    return ask


def along(process: Process, ask: Estimator, sampler: Sampler, start: Tensor) -> Tensor:
    draws = SeedStreams(range(len(start)))
    return measurement(process).of_trajectories(lambda watch: sampler(ask, process, start, draws, watch), ask)


@pytest.mark.parametrize("process", [Hot(), WARM], ids=["hot", "warm"])
@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_few_steps_and_a_wrong_network(process: Process, factor: float) -> None:
    # Euler's steps are linear, u_s = u_t + (A_s - A_t) x̂0 + (B_s - B_t) ε̂ with x̂0 = A S/V u and ε̂ = factor B/V u. From
    # z = ±1, every square is what it is on average from normal z, so that there is no chance in it.
    sampler = Sampler(PowerGrid(3), Euler())
    ask = wrong_by(factor, GaussianOracle(SPECTRUM, process))
    seen = along(process, ask, sampler, idct(noise(4, 1, 8, 8).sign()))
    levels = sampler.grid.levels(process)
    (signal, b), u, closed, expected = ([], []), torch.full((8, 8), 80.0, dtype=torch.float64), [], []
    for level in levels:
        signal.append(torch.exp(-frequencies(LIKE) * level.alpha**2 / 2))
        b.append(level.beta)
    for t in range(3):
        variance = signal[t] ** 2 * SPECTRUM[0] + b[t] ** 2
        belief = factor * b[t] / variance * u
        clean = signal[t] * SPECTRUM[0] / variance * u
        squares = torch.stack([belief, u, (1 - signal[t]) * clean]).square()
        closed.append(BANDS.mean(squares[:, None]).T)
        expected.append(BANDS.mean(variance[None]))
        u = u + (signal[t + 1] - signal[t]) * clean + (b[t + 1] - b[t]) * belief
    for image in seen:  # 1 - A loses digits at the last level, as (1 - A)² = 1e-10 there
        torch.testing.assert_close(image, torch.stack(closed), rtol=1e-6, atol=1e-14)
    truth = seen.new_ones(2, *seen.shape[1:])
    rows = compare(seen, truth, torch.stack(expected), levels[:3], BANDS)
    power = {(row["clock"], row["band"]): row["drift"] for row in rows if row["quantity"] == POWER}
    for t, level in enumerate(levels[:3]):
        for k, band in enumerate(BANDS.names):
            ratio = closed[t][k, 1] / expected[t][k]
            assert power[level.clock.item(), band] == pytest.approx(math.log(ratio), abs=1e-9)
    assert max(abs(drift) for drift in power.values()) > 1  # three steps are far too few


def test_a_wrong_network_on_true_images() -> None:
    oracle = GaussianOracle(SPECTRUM, WARM)
    levels = measurement(WARM).levels(Sampler(PowerGrid(4)))
    right, wrong = (
        measurement(WARM).of_degraded(ask, levels, gaussian(5), SeedStreams(range(5)))
        for ask in (oracle, wrong_by(1.1, oracle))
    )
    expected = measurement(WARM).expected_power(levels, SPECTRUM)
    rows = [row for row in compare(wrong, right, expected, levels, BANDS) if row["quantity"] == "noise"]
    assert [row["drift"] for row in rows] == pytest.approx([math.log(1.1)] * len(rows))
    assert all(row["trajectory_error"] == pytest.approx(row["truth_error"]) for row in rows)


def drifts(u0: Tensor, oracle: Estimator, steps: int) -> list[dict]:
    """Summary of Heun's trajectories, as many as u0, against u0."""
    sampler, count = Sampler(PowerGrid(steps), Heun()), len(u0)
    levels = measurement(WARM).levels(sampler)
    start = SeedStreams(range(count)).normal(1, 8, 8, dtype=torch.float64)
    ours = along(WARM, oracle, sampler, start)
    theirs = measurement(WARM).of_degraded(oracle, levels, u0, SeedStreams(range(count, 2 * count)))
    expected = measurement(WARM).expected_power(levels, second_moment([idct(u0)]))
    return summarise(compare(ours, theirs, expected, levels, BANDS))


IMAGES = dct(digits(40))
ORACLES = {
    "gaussian": (gaussian(160, seed=1), GaussianOracle(SPECTRUM, WARM)),
    "dataset": (IMAGES.repeat(4, 1, 1, 1), DatasetOracle(IMAGES, WARM)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_a_perfect_network_drifts_with_few_steps_only(name: str) -> None:
    many, few = (drifts(*ORACLES[name], steps) for steps in (96, 5))
    assert {(row["band"], row["quantity"]) for row in many} == {(b, q) for b in BANDS.names for q in QUANTITIES}
    # The levels of a trajectory err alike, so that rms is about |N(0, chance²)|: below 3 of it in 12 rows.
    assert all(row["rms"] < 3 * row["chance"] for row in many)
    assert all(row["rms"] > 5 * row["chance"] for row in few if row["band"] == "3")
    # A Gaussian oracle knows of no detail where blur has left nothing.
    assert {row["levels"] for row in many if row["quantity"] != "residual" or name == "dataset"} == {95}


def test_power_of_heavy_tailed_noise() -> None:
    # With D = 20, E z² = 20/18: its logarithm of 0.105 is some 15 standard errors.
    process = PFGMpp(20)
    levels = measurement(process).levels(Sampler(PowerGrid(2)))
    seen = measurement(process).of_degraded(
        GaussianOracle(SPECTRUM, process), levels, gaussian(4000), SeedStreams(range(4000))
    )
    rows = compare(seen, seen, measurement(process).expected_power(levels, SPECTRUM), levels, BANDS)
    row = next(row for row in rows if (row["clock"], row["band"], row["quantity"]) == (80, "all", POWER))
    assert row["truth_error"] < 0.01
    assert abs(row["truth"]) < 4 * row["truth_error"]
    assert {row["quantity"] for row in rows} == {"noise", "power"}  # nothing is blurred


def test_second_moment() -> None:
    images = digits(50)
    mean = dct(images).mean(0)
    torch.testing.assert_close(second_moment(images.float().split(7)), power_spectrum(images) + mean.square())


def test_summary() -> None:
    values = [(3.0, 1.0), (-4.0, 2.0)]
    rows = [{"band": "1", "quantity": "noise", "clock": 2, "drift": 9.0, "drift_error": 9.0}]  # where it starts
    rows += [{"band": "1", "quantity": "noise", "clock": 1, "drift": d, "drift_error": e} for d, e in values]
    expected = {"rms": math.sqrt(12.5), "chance": math.sqrt(2.5), "mean": -0.5, "levels": 2}
    assert summarise(rows) == [{"band": "1", "quantity": "noise", **expected}]


def test_refusals() -> None:
    with pytest.raises(UserError, match="ColdDiffusion has no noise"):
        measurement(ColdDiffusion()).levels(Sampler(EvenGrid(50, 50)))
    with pytest.raises(UserError, match="no finite variance"):
        measurement(PFGMpp(2)).levels(Sampler(PowerGrid(2)))
    with pytest.raises(UserError, match="bands is 40"):
        Bands(40, LIKE)


# ---------------------------------------------------------------------------- the command

# Two levels, the first low enough that the class is of some influence.
MODEL = [
    "--model.network.label_dim=10",
    "--model.sampler.grid.steps=2",
    "--model.sampler.grid.beta_max=0.5",
]
CONDITIONAL = [f"--config={DIGITS}", *(option for option in SMALL if option.startswith("--model")), *MODEL]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    options = ["--model.duration=1280", "--model.lr_ramp=320", "--model.lr=5e-3", "--trainer.accelerator=cpu"]
    here("fit", *SMALL, *MODEL, *options, f"--trainer.default_root_dir={folder}")
    return folder / "checkpoints" / "last.ckpt"


def run(ckpt: Path, outdir: Path, *options: str) -> dict:
    here("drift", *CONDITIONAL, f"--ckpt_path={ckpt}", f"--outdir={outdir}", "--accelerator=cpu", *options)
    return json.loads((outdir / "drift.json").read_text())


def first_noise(ckpt: Path, u: Tensor, classes: Sequence[int]) -> float:
    """ln ‖u - D‖/(B√N), mean over images, at the first level, from the network's first branch."""
    model, level = load_checkpoint(ckpt).model(), WARM.level(torch.tensor([0.5], dtype=torch.float64))
    level = replace(level, alpha=level.beta / 2)  # BNR 0.5, the configuration's
    with torch.no_grad():
        denoised = model.outputs(idct(u), level, one_hot(torch.tensor(classes), 10))[:, 0]
    return ((idct(u) - denoised).flatten(1).norm(dim=1) / (0.5 * 8)).log().mean().item()


def test_the_command(ckpt: Path, tmp_path: Path) -> None:
    found = run(ckpt, tmp_path / "a", "--num_images=6", "--batch_size=6", "--seed=1", "--bands=2")
    again = run(ckpt, tmp_path / "b", "--num_images=6", "--batch_size=4", "--seed=1", "--bands=2")
    for row, other in zip(found["rows"], again["rows"], strict=True):
        # Float32 networks are not bitwise the same in other batches.
        assert row == pytest.approx(other, abs=1e-4)
    assert len(found["rows"]) == 2 * 3 * 3
    assert (tmp_path / "a" / "drift.png").stat().st_size > 10_000
    totals = {row["quantity"]: row["rms"] for row in found["summary"] if row["band"] == "all"}
    assert [found[name] for name in ("drift", "power_drift", "residual_drift")] == [totals[q] for q in QUANTITIES]
    assert found["protocol"]["seeds"] == "6-11"
    assert found["protocol"]["nfe"] == 3

    images = Digits().train_images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(key(1, "drift", "images")))[:6]
    classes = images.labels[order].tolist()
    u0 = dct(dequantise(images.take(order), torch.float64))
    z = dct(SeedStreams([key(1, "drift", "noise", k) for k in range(6)]).normal(1, 8, 8, dtype=torch.float64))
    truth = torch.exp(-frequencies(LIKE) * 0.25**2 / 2) * u0 + 0.5 * z
    trajectory = 0.5 * dct(SeedStreams(range(6, 12)).normal(1, 8, 8, dtype=torch.float64))
    row = next(row for row in found["rows"] if (row["band"], row["quantity"]) == ("all", "noise"))
    assert row["beta"] == pytest.approx(0.5)
    for column, u in (("truth", truth), ("trajectory", trajectory)):
        assert row[column] == pytest.approx(first_noise(ckpt, u, classes), abs=1e-5)
        assert row[column] != pytest.approx(first_noise(ckpt, u, [(c + 1) % 10 for c in classes]), abs=1e-4)


def test_wrong_arguments_are_errors_of_one_line(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["drift", *CONDITIONAL, f"--ckpt_path={ckpt}", f"--outdir={tmp_path / 'out'}", "--accelerator=cpu"]
    for options, message in [
        (["--num_images=2000"], "train has 1797 images: lower it"),
        (["--num_images=1"], "must be at least 2"),
        (["--bands=0"], "bands is 0"),
    ]:
        assert main([*arguments, *options]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    assert main(arguments) == 2
    assert "pip install 'warm-lightning[plots]'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "drift.json").exists()


def test_estimates_that_are_not_finite_are_no_drift(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(ckpt, weights_only=True)
    checkpoint["state_dict"] = {n: torch.full_like(t, torch.nan) for n, t in checkpoint["state_dict"].items()}
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    where = [f"--ckpt_path={tmp_path / 'nan.ckpt'}", f"--outdir={tmp_path / 'out'}", "--accelerator=cpu"]
    assert "are not finite" in refusal(capsys, "drift", *CONDITIONAL, *where, "--num_images=2")
    assert not list((tmp_path / "out").iterdir())
