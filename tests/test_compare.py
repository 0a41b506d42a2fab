"""`make compare` in miniature: run, resumed, changed and broken."""

import contextlib
import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest
import torch
import yaml
from small import REPOSITORY

from experiments import compare
from experiments.compare_report import yardsticks
from warm_lightning.cli import main as warm
from warm_lightning.errors import UserError

TINY = [
    "--model.network.model_channels=8",
    "--model.network.channel_mult=[1]",
    "--model.duration=64",
    "--samples.seeds=0-1",
    "--samples.trajectory=0",
]
PLAN = {
    "config": "configs/digits.yaml",
    "seed": 0,
    "images": {"short": 16, "full": 32},
    "trainings": {"hot": {"set": {"model.lr": 1e-3}}},
    "systems": [
        {"name": "Hot", "training": "hot", "set": {"model.sampler.grid.steps": 2}},
        {"name": "ES", "training": "hot", "method": "edm_es", "short": {"model.sampler.grid.steps": 2}},
    ],
}


def run(folder: Path, plan: dict, *options: str) -> int:
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return compare.main(["--out", str(folder), "--plan", str(folder / "plan.yaml"), "--jobs=1", *options, "--", *TINY])


def seconds(folder: Path) -> dict[str, float]:
    notes = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/*/job.json")}
    assert all(note["done"] for note in notes.values())
    return {name: note["seconds"] for name, note in notes.items()}


@dataclass
class Ended:
    returncode: int


class Serial:
    """A pool of one, this thread, in which Lightning may listen to signals."""

    def __init__(self, jobs: int) -> None: ...

    def submit(self, call: Callable[..., None], *arguments: object) -> Future[None]:
        future: Future[None] = Future()
        try:
            future.set_result(call(*arguments))
        except UserError as error:
            future.set_exception(error)
        return future

    def shutdown(self, cancel_futures: bool) -> None: ...


def in_this_process(command: list[str], stdout: TextIO, **_: object) -> Ended:
    """What `subprocess.run` would do, without the seconds that importing takes."""
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
        return Ended(warm(command[3:]))


def test_compare_runs_and_knows_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(compare.subprocess, "run", in_this_process)
    monkeypatch.setattr(compare, "ThreadPoolExecutor", Serial)
    assert run(tmp_path, PLAN) == 0
    table = (tmp_path / "compare.md").read_text()
    assert table in capsys.readouterr().out + "\n"
    found = json.loads((tmp_path / "compare.json").read_text())
    rows = {row["system"]: row for row in found["rows"]}
    assert set(rows) == {"Data, one half", "Gaussian with the data's moments", "Hot", "ES"}
    assert rows["Hot"]["nfe"] == 3
    assert rows["Hot"]["images_seen"] == 64
    assert rows["Hot"]["fd_digits"] != rows["ES"]["fd_digits"]
    assert all(word in table for word in ("command:", "seeds of the samples: 0-15", "machine:"))
    assert (tmp_path / "compare.png").stat().st_size > 1000
    first = seconds(tmp_path)

    # Again: nothing is run. A broken row is no row, and the exit code says so.
    broken = {**PLAN["systems"][1], "set": {"model.sampler.grid.steps": 0}, "short": {}}
    assert run(tmp_path, PLAN | {"systems": [PLAN["systems"][0], broken]}) == 1
    captured = capsys.readouterr()
    assert "ES" not in captured.out
    assert "compare: ES" in captured.err
    notes = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/*/job.json")}
    assert {name: note["seconds"] for name, note in notes.items() if note["done"]} == {
        name: first[name] for name in ("hot", "00-Hot")
    }


def test_what_is_made_of_what_has_changed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds of real runs: `warm` is replaced by something that leaves what it would."""
    ran = []

    def pretend(command: list[str], **_: object) -> Ended:
        options = dict(a.removeprefix("--").split("=", 1) for a in command[4:] if not a.startswith("--config"))
        folder = Path(options["trainer.default_root_dir"])
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").write_text(options["model.lr"])
        ran.append(folder.name)
        return Ended(0)

    monkeypatch.setattr(compare.subprocess, "run", pretend)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))

    def again(lr: float) -> list[str]:
        ran.clear()
        plan = PLAN | {"trainings": {"hot": {"set": {"model.lr": lr}}}}
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
        systems, seeds = compare.read_plan(tmp_path / "plan.yaml", tmp_path, full=False, extra=[])
        assert seeds == range(16)
        done, failed = compare.run(systems, jobs=2)
        assert (len(done), failed) == (2, [])
        return sorted(ran)

    assert again(1e-3) == ["00-Hot", "01-ES", "hot"]
    assert again(1e-3) == []
    stale = tmp_path / "trainings" / "hot" / "stale"
    stale.touch()
    assert again(2e-3) == ["00-Hot", "01-ES", "hot"]
    assert not stale.exists()
    note = tmp_path / "trainings" / "hot" / "job.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"done": False}))  # killed on the way
    assert again(2e-3) == ["hot"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--plan", "nowhere.yaml"], "nowhere.yaml"),
        (["--jobs=0"], "--jobs 0"),
        (["--", "model.lr=1"], "--name=value"),
        (["--", "--model.lr", "1"], "--name=value"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["--out", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_the_gaussian_is_much_farther_from_the_data_than_the_data() -> None:
    rows, images = yardsticks(512)
    data, gaussian = (row["fd_digits"] for row in rows)
    assert gaussian > 5 * data
    assert all(shown.shape == (512, 1, 8, 8) and shown.dtype == torch.uint8 for shown in images.values())
