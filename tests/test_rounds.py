"""`warm test` in rounds: seeds, summary, going on after a kill, and two processes as one."""

import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small import DIGITS, PLAIN, SMALL, command, environment, here

from warm_lightning.callbacks import ScoreSamples
from warm_lightning.callbacks import scores as scores_module
from warm_lightning.callbacks.rounds import FILE
from warm_lightning.errors import UserError
from warm_lightning.metrics import Pixels
from warm_lightning.model import TestPlan as Plan  # not a test, whatever pytest thinks of its name

QUICK = ["--model.sampler.grid.steps=2", "--scores.companions=false"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    here("fit", *SMALL, "--model.duration=64", f"--trainer.default_root_dir={folder}", "--trainer.precision=64-true")
    return folder / "checkpoints" / "last.ckpt"


def options(trained: Path, folder: Path, *more: str) -> list[str]:
    where = [f"--trainer.default_root_dir={folder}", f"--ckpt_path={trained}", "--trainer.precision=64-true"]
    return ["test", *SMALL, *QUICK, *where, *more]


def scores(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size"), [(1797, 256, 1), (513, 256, 2), (50_000, 250, 8), (7, 3, 4), (9, 4, 9)]
)
def test_devices_share_the_seeds_of_a_round_in_as_many_batches_each(count, batch_size, world_size) -> None:
    plan = Plan([range(count), range(count, 2 * count)], batch_size)
    shares = [plan.batches(1, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in shares}) == 1
    assert max(len(batch) for batches in shares for batch in batches) <= batch_size
    for rank, batches in enumerate(shares):
        assert [seed for batch in batches for seed in batch] == list(range(count + rank, 2 * count, world_size))
    assert plan.label(1) == f"{count}-{2 * count - 1}"


def test_three_rounds_have_their_seeds_names_and_summary(trained, tmp_path, capsys) -> None:
    here(*options(trained, tmp_path / "three", "--scores.rounds=3", "--scores.first_seed=100"))
    three = scores(tmp_path / "three")
    protocol = three.pop("protocol")
    assert protocol["seeds"] == ["100-115", "116-131", "132-147"]
    assert (protocol["num_images"], protocol["rounds"], protocol["nfe"], protocol["weights"]) == (16, 3, 3, "ema")
    over = torch.tensor([three[f"fd_pixel_round{k}"] for k in (1, 2, 3)])
    assert three["fd_pixel_min"] == pytest.approx(over.min().item(), rel=1e-6)
    assert three["fd_pixel_std"] == pytest.approx(over.std().item(), rel=1e-4)
    assert "fd_pixel" not in three
    assert "best of 3" in capsys.readouterr().out
    # A round alone is the same round.
    here(*options(trained, tmp_path / "one", "--scores.first_seed=116"))
    one = scores(tmp_path / "one")
    assert one["protocol"]["seeds"] == "116-131"
    assert one["fd_pixel"] == three["fd_pixel_round2"]
    assert one["kid_pixel"] == three["kid_pixel_round2"]


def test_only_the_same_is_taken_over_and_what_differs_is_said(trained, tmp_path, capsys) -> None:
    here(*options(trained, tmp_path))
    first = scores(tmp_path)
    capsys.readouterr()
    here(*options(trained, tmp_path, "--scores.rounds=2"))
    assert "Scored before, and kept in" in (output := capsys.readouterr().out)
    assert "round 1 (seeds 0-15)" in output
    two = scores(tmp_path)
    assert two["fd_pixel_round1"] == first["fd_pixel"]
    assert set(json.loads((tmp_path / FILE).read_text())["rounds"]) == {"0-15", "16-31"}

    for change, name in (
        ("--scores.weights=raw", "weights, weights (sha256)"),
        ("--model.sampler.grid.rho=8", "sampler"),
        ("--scores.max_neighbours=10", "reference"),
        ("--scores.extractors=[{class_path: DigitsFeatures}]", "extractors, reference"),
    ):
        here(*options(trained, tmp_path, change))
        assert f"is of other {name}: all rounds are sampled" in capsys.readouterr().out
        here(*options(trained, tmp_path))
        capsys.readouterr()
    (tmp_path / FILE).write_text("{")
    here(*options(trained, tmp_path))
    assert "cannot be read: all rounds are sampled" in capsys.readouterr().out
    assert scores(tmp_path) == first


def test_killed_after_round_one_the_protocol_on_all_digits_goes_on_with_rounds_two_and_three(tmp_path) -> None:
    """The whole digits model and 1,797 images a round, as a user would: the kill is a SIGKILL of the program."""
    here("fit", *PLAIN, "--model.duration=64", f"--trainer.default_root_dir={tmp_path}")
    arguments = command(
        "test",
        *PLAIN,
        *QUICK,
        f"--trainer.default_root_dir={tmp_path}",
        "--scores.num_images=1797",
        "--scores.rounds=3",
    )
    with subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL) as process:
        while not (tmp_path / FILE).exists():
            assert process.poll() is None, "ended before the kill"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    kept = json.loads((tmp_path / FILE).read_text())["rounds"]
    assert list(kept) == ["0-1796"]
    assert not (tmp_path / "scores.json").exists()

    before = (tmp_path / FILE).stat().st_mtime
    done = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert "round 1 (seeds 0-1796)" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("Round 1 of 3 (")] == []
    found = scores(tmp_path)
    assert found["fd_pixel_round1"] == kept["0-1796"]["fd_pixel"]
    assert len({found[f"fd_pixel_round{k}"] for k in (1, 2, 3)}) == 3
    assert (tmp_path / FILE).stat().st_mtime > before


def test_two_processes_score_as_one(trained, tmp_path) -> None:
    """17 seeds a round, so that one process has one more; round 1 is there already, and both must skip it."""
    more = ["--scores.num_images=17", "--scores.rounds=3", "--scores.batch_size=4"]
    here(*options(trained, tmp_path / "one", *more))
    two = tmp_path / "two"
    two.mkdir()
    (two / FILE).write_text((tmp_path / "one" / FILE).read_text())
    stored = json.loads((two / FILE).read_text())
    stored["rounds"] = {"0-16": stored["rounds"]["0-16"]}
    (two / FILE).write_text(json.dumps(stored))
    spread = [*more, "--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]
    done = subprocess.run(
        command(*options(trained, two, *spread)),
        cwd=tmp_path,
        env=environment(MASTER_PORT=str(free_port())),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "round 1 (seeds 0-16)" in done.stdout
    ours, expected = scores(two), scores(tmp_path / "one")
    for name in ("fd_pixel_round2", "fd_pixel_round3", "kid_pixel_round2", "memorisation_pixel_round3", "fd_pixel_min"):
        # Float64 sums in another order, and square roots of what should be 0, with fewer images than features.
        assert ours[name] == pytest.approx(expected[name], rel=1e-7, abs=1e-12)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"max_neighbours": 3}, "max_neighbours is 3"),
        ({"extractors": [Pixels(), Pixels()]}, "the same names, fd_pixel, fd_pixel"),
        ({"reference_stats": ["a.npz", "b.npz"]}, "2 files for 1 extractors"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        ScoreSamples(**{"extractors": [Pixels()], **options})


def test_statistics_take_the_place_of_the_data(trained, tmp_path, monkeypatch) -> None:
    here(*options(trained, tmp_path / "data"))
    expected = scores(tmp_path / "data")
    names = [name for name in expected if name != "protocol"]
    path, moments = tmp_path / "stats.npz", tmp_path / "moments.npz"
    here("reference-stats", str(DIGITS), str(path), "--extractor=Pixels", "--device=cpu", "--memorisation=true")
    with np.load(path) as file:
        np.savez(moments, mu=file["mu"], sigma=file["sigma"])
    with monkeypatch.context() as patch:
        patch.setattr(scores_module, "measure", None)  # no pass over the data
        here(*options(trained, tmp_path / "file", f"--scores.reference_stats={path}"))
        here(*options(trained, tmp_path / "moments", f"--scores.reference_stats={moments}"))
    found = scores(tmp_path / "file")
    assert found["protocol"]["reference"][0].startswith("Digits: 1797 training images, from stats.npz")
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}
    found = scores(tmp_path / "moments")
    assert set(found) == {"fd_pixel", "protocol"}
    assert found["fd_pixel"] == expected["fd_pixel"]
    # With companions, the data give what the moments do not.
    here(*options(trained, tmp_path / "both", f"--scores.reference_stats=[{moments}]", "--scores.companions=true"))
    found = scores(tmp_path / "both")
    assert {"fd_pixel_gaussian", "recall_pixel_halves"} <= set(found)
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}
