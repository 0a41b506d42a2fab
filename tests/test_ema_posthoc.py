"""Post-hoc EMA: the profiles against their definition, rebuilt averages against tracked ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import SMALL, here
from test_checkpoints import last, samples
from torch import nn

from warm_lightning import load_checkpoint
from warm_lightning.callbacks import PostHocEMA
from warm_lightning.checkpoints import EMA_PREFIX, SECTION, read_checkpoint, without_prefix
from warm_lightning.cli import main
from warm_lightning.ema import EMA as HalfLife
from warm_lightning.ema import PowerEMA, Profile, combination
from warm_lightning.errors import UserError

WIDTHS = [0.01, 0.05, 0.1, 0.25, PowerEMA.LARGEST]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("steps", [[64] * 400, [100, 50, 25, 325] * 40])
def test_profile_has_the_width_it_is_named_by(width: float, steps: list[int]) -> None:
    """The shares that weights get by the recursion, against the density: mean and standard deviation by definition."""
    average, seen, shares, times = PowerEMA(width), 0, np.zeros(0), []
    for batch in steps:
        seen += batch
        decay = average.decay(seen, batch)
        shares = np.append(shares * decay, 1 - decay)
        times.append(seen)
    edges = np.array([0, *times]) / seen
    # p integrates to τ^(γ+1); a step's share is p's integral over the step, exactly.
    np.testing.assert_allclose(shares, np.diff(edges ** (average.gamma + 1)), rtol=1e-9, atol=1e-12)
    grid = (np.arange(200_000) + 0.5) / 200_000
    p = (average.gamma + 1) * grid**average.gamma
    mean = (p * grid).mean()
    assert ((p * (grid - mean) ** 2).mean()) ** 0.5 == pytest.approx(width, rel=1e-5)  # the grid's error


def test_the_first_step_forgets_the_initialisation() -> None:
    average, network = nn.Linear(3, 3), nn.Linear(3, 3)
    PowerEMA(0.05).update(average, network, 64, 64)
    assert torch.equal(average.weight, network.weight)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3, float("nan")])
def test_impossible_widths(width: float) -> None:
    with pytest.raises(UserError, match="sigma_rel"):
        PowerEMA(width)


def test_half_life_is_as_before() -> None:
    assert HalfLife(1000, None).decay(5000, 500) == 0.5**0.5
    assert HalfLife(1000, 0.05).decay(5000, 500) == 0.25


STORED = [Profile(PowerEMA(width).gamma, images) for images in range(1000, 20_001, 1000) for width in (0.05, 0.1)]


@pytest.mark.parametrize("width", [0.04, 0.07, 0.1, 0.15, 0.2])
def test_combination_is_the_least_squares_solution(width: float) -> None:
    """By a second route: densities on a grid, the sum eliminated, and numpy's solver."""
    wanted = Profile(PowerEMA(width).gamma, 20_000)
    shares, left = combination(STORED, wanted)
    grid = (np.arange(20_000) + 0.5) / 20_000

    def density(p: Profile) -> np.ndarray:
        t = grid * 20_000 / p.images
        return np.where(t <= 1, (p.gamma + 1) * t**p.gamma / p.images, 0) * 20_000

    table, goal = np.stack([density(p) for p in STORED], 1), density(wanted)
    free = np.linalg.lstsq(table[:, 1:] - table[:, :1], goal - table[:, 0], rcond=None)[0]
    best = np.linalg.norm(table[:, 1:] @ free + table[:, 0] * (1 - free.sum()) - goal) / np.linalg.norm(goal)
    ours = np.linalg.norm(table @ shares - goal) / np.linalg.norm(goal)
    assert sum(shares) == pytest.approx(1, abs=1e-10)
    assert ours == pytest.approx(left, abs=2e-5)  # the grid's error
    assert ours <= best + 2e-5


def test_a_stored_profile_is_itself() -> None:
    shares, left = combination(STORED, STORED[-1])
    np.testing.assert_allclose(shares, np.eye(len(STORED))[-1], atol=1e-9)
    assert left < 1e-7


@pytest.mark.parametrize(("width", "error"), [(0.05, 1e-9), (0.08, 2e-3), (0.12, 2e-3), (0.15, 4e-3)])
def test_rebuilt_is_as_tracked(width: float, error: float) -> None:
    """A weight that wanders (a fixed random walk plus a trend), relative to the spread of the average's own input."""
    rng = np.random.default_rng(0)
    path = np.cumsum(rng.normal(size=4000)) + np.linspace(0, 100, 4000)
    trackers = {w: PowerEMA(w) for w in (0.05, 0.1, width)}
    values = dict.fromkeys(trackers, 0.0)
    stored, kept = [], []
    for step, weight in enumerate(path, 1):
        for w, tracker in trackers.items():
            decay = tracker.decay(64 * step, 64)
            values[w] = decay * values[w] + (1 - decay) * weight
        if step % 100 == 0:
            stored += [Profile(trackers[w].gamma, 64 * step) for w in (0.05, 0.1)]
            kept += [values[w] for w in (0.05, 0.1)]
    shares, _ = combination(stored, Profile(trackers[width].gamma, 64 * 4000))
    assert abs(np.dot(shares, kept) - values[width]) < error * path.std()


# ---------------------------------------------------------------------- in training

RUN = ["fit", *SMALL, "--posthoc_ema.sigma_rel=[0.05,0.1,0.08]", "--posthoc_ema.every=128", "--ckpt_path=last"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 steps with snapshots every 4."""
    folder = tmp_path_factory.mktemp("run")
    here(*RUN, "--model.duration=1280", "--model.lr_ramp=0", f"--trainer.default_root_dir={folder}")
    return folder


def snapshot(folder: Path, images: int, width: float) -> Path:
    return folder / "posthoc" / f"images-{images:09d}-sigma-{width:g}.safetensors"


def test_resumed_is_the_same_to_the_bit(run: Path, tmp_path: Path) -> None:
    for duration in (480, 1280):
        here(*RUN, f"--model.duration={duration}", "--model.lr_ramp=0", f"--trainer.default_root_dir={tmp_path}")
    for images in (128, 512, 1280):
        for width in (0.05, 0.1, 0.08):
            assert snapshot(run, images, width).read_bytes() == snapshot(tmp_path, images, width).read_bytes()
    assert len(list((run / "posthoc").iterdir())) == 3 * 10


def test_a_stored_width_is_rebuilt_exactly(run: Path, tmp_path: Path) -> None:
    here("ema", str(run), str(tmp_path / "out.ckpt"), "0.1")
    rebuilt = without_prefix(read_checkpoint(tmp_path / "out.ckpt")["state_dict"], EMA_PREFIX)
    for name, tensor in load_file(snapshot(run, 1280, 0.1)).items():
        torch.testing.assert_close(rebuilt[name], tensor, rtol=1e-6, atol=1e-9)  # one rounding to float32
    said = read_checkpoint(tmp_path / "out.ckpt")[SECTION]
    assert said["images_seen"] == 1280
    assert said["source"]["sigma_rel"] == 0.1
    assert samples(load_checkpoint(tmp_path / "out.ckpt")).isfinite().all()


@pytest.mark.parametrize("images", [1280, 640])
def test_another_width_is_as_if_it_had_been_tracked(images: int, run: Path, tmp_path: Path) -> None:
    """Rebuilt from 0.05 and 0.1 alone, against the one tracked on the way, on a real training run."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "posthoc").mkdir()
    for path in [
        last(run),
        *(run / "posthoc").glob("*-0.05.safetensors"),
        *(run / "posthoc").glob("*-0.1.safetensors"),
    ]:
        (tmp_path / path.relative_to(run)).write_bytes(path.read_bytes())
    here("ema", str(tmp_path), str(tmp_path / "out.ckpt"), "0.08", f"--images={images}")
    rebuilt = without_prefix(read_checkpoint(tmp_path / "out.ckpt")["state_dict"], EMA_PREFIX)
    tracked, nearest = load_file(snapshot(run, images, 0.08)), load_file(snapshot(run, images, 0.1))
    error = sum((rebuilt[name] - tensor).square().sum() for name, tensor in tracked.items()) ** 0.5
    unlike = sum((nearest[name] - tensor).square().sum() for name, tensor in tracked.items()) ** 0.5
    # With 10 (or 5) snapshots the profile is met to about 1 %; the tracked width must be told from its neighbour.
    assert error < 0.05 * unlike


def test_without_it_nothing_is_kept(tmp_path: Path) -> None:
    here("fit", *SMALL, "--model.duration=32", f"--trainer.default_root_dir={tmp_path}")
    assert not (tmp_path / "posthoc").exists()
    assert not read_checkpoint(last(tmp_path))["callbacks"]["PostHocEMA"]["averages"]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warm")]
    return line


def test_widths_that_cannot_be_reconstructed_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.ckpt")
    assert "--posthoc_ema.sigma_rel" in refusal(capsys, "ema", str(tmp_path), out, "0.1")
    assert "--images 100" in refusal(capsys, "ema", str(run), out, "0.1", "--images=100")
    assert "--images 100.5:" in refusal(capsys, "ema", str(run), out, "0.1", "--images=100.5")
    assert "--images 1280.5:" in refusal(capsys, "ema", str(run), out, "0.1", "--images=1280.5")
    assert "sigma_rel is 0.9" in refusal(capsys, "ema", str(run), out, "0.9")
    (tmp_path / "posthoc").mkdir()
    odd = tmp_path / "posthoc" / snapshot(run, 128, 0.1).name
    odd.write_bytes(b"nothing")
    assert odd.name in refusal(capsys, "ema", str(tmp_path), out, "0.1")
    save_file({"a": torch.zeros(1)}, odd, {"average": '{"sigma_rel": 0.1, "images_seen": 128}'})
    (tmp_path / "checkpoints").mkdir()
    last(tmp_path).write_bytes(last(run).read_bytes())
    assert "another network" in refusal(capsys, "ema", str(tmp_path), out, "0.1")
    assert not Path(out).exists()


def test_a_runs_own_checkpoint_is_not_replaced(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = last(run).read_bytes()
    assert "already exists" in refusal(capsys, "ema", str(run), str(last(run)), "0.1")
    assert last(run).read_bytes() == before
    assert ".ckpt" in refusal(capsys, "ema", str(run), str(tmp_path / "out.yaml"), "0.1")


@pytest.mark.parametrize("widths", ["[]", "[0.05]", "[0.05,0.2]"])
def test_a_run_goes_on_with_the_widths_it_began_with(
    widths: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["fit", *SMALL, f"--trainer.default_root_dir={tmp_path}", "--ckpt_path=last"]
    here(*same, "--posthoc_ema.sigma_rel=[0.05,0.1]", "--model.duration=32")
    line = refusal(capsys, *same, f"--posthoc_ema.sigma_rel={widths}", "--model.duration=64")
    assert "[0.05, 0.1]" in line


def test_snapshots_of_an_abandoned_training_are_set_aside(run: Path, tmp_path: Path) -> None:
    # Started again in a folder whose checkpoints are gone: nothing of the first training may be averaged.
    (tmp_path / "posthoc").mkdir()
    for images in (128, 512):
        shutil.copy(snapshot(run, images, 0.05), tmp_path / "posthoc")
    PostHocEMA().set_aside(tmp_path / "posthoc", 128)
    kept = [path.name for path in sorted((tmp_path / "posthoc").iterdir())]
    assert kept == [snapshot(run, 128, 0.05).name, snapshot(run, 512, 0.05).with_suffix(".abandoned").name]
