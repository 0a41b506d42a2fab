"""Tests of a run as one training: it goes on as such, is not written over, and says when it has ended."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback
from small import fit, here, last, refusal

from warm_lightning.checkpoints import read_checkpoint
from warm_lightning.cli import main


def seen(checkpoint: Path) -> int:
    """The number of images of a checkpoint."""
    return read_checkpoint(checkpoint)["warm_lightning"]["images_seen"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 320 images, with checkpoints of 128 and 256."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    here(*fit(folder, "--checkpoints.keep_every=128"))
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


class Signalled(Callback):
    """Sends this process a signal in its third step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_a_training_lets_it_save_its_step(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNAL", str(int(number)))
    options = ["--trainer.callbacks+=test_one_run.Signalled", "--ckpt_path=last"]
    before = signal.signal(number, signal.default_int_handler)  # the tests may run where it is ignored
    try:
        assert main(fit(tmp_path, *options)) == 128 + number
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert seen(last(tmp_path)) == 96
    here(*fit(tmp_path, "--ckpt_path=last"))
    assert seen(last(tmp_path)) == 320


def test_a_signal_that_is_ignored_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nohup starts a program."""
    monkeypatch.setenv("SIGNAL", str(int(signal.SIGHUP)))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        here(*fit(tmp_path, "--trainer.callbacks+=test_one_run.Signalled"))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert seen(last(tmp_path)) == 320


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--model.process.path.bnr=2", "model.process.init_args.path.init_args.bnr is 0.5 there and 2.0 here"),
        ("--model.process=Hot", "model.process.class_path"),
        ("--model.preconditioning.sigma_data=0.1", "sigma_data"),
        ("--model.seed=5", "model.seed is 0 there and 5 here"),
        ("--model.label_dropout=0.1", "model.label_dropout"),
        ("--model.clock_law.mean=0", "model.clock_law"),
        ("--data.xflip=true", "xflip"),
        ("--data.held_out=100", "number of images 1797 there, 1697 here"),
    ],
)
def test_another_training_does_not_go_on_in_a_run(option: str, word: str, run: Path, capsys) -> None:
    before = last(run).read_bytes(), (run / "config.yaml").read_bytes()
    assert word in refusal(capsys, *fit(run, "--ckpt_path=last", "--model.duration=384", option))
    assert (last(run).read_bytes(), (run / "config.yaml").read_bytes()) == before


def test_what_may_change_within_a_run(run: Path) -> None:
    options = ["--model.lr=1e-4", "--model.network.dropout=0.1", "--model.sampler.grid.steps=5", "--data.batch_size=64"]
    here(*fit(run, "--ckpt_path=last", "--model.duration=384", *options))
    assert seen(last(run)) == 384


def test_a_run_that_has_ended_says_so_and_keeps_its_settings(run: Path, capsys) -> None:
    """Such as by a loop over learning rates that forgets to give each training its folder."""
    before = (run / "config.yaml").read_bytes()
    assert "model.lr is 0.0015 there and 0.01 here" in refusal(capsys, *fit(run, "--ckpt_path=last", "--model.lr=0.01"))
    here(*fit(run, "--ckpt_path=last", "--model.duration=160"))
    assert "Nothing to train: 320 images seen of 160" in capsys.readouterr().out
    assert (run / "config.yaml").read_bytes() == before


def test_steps_that_are_made_already_count_for_their_limit(run: Path, capsys) -> None:
    """The run has made 10 steps of 32 images; steps of another size make no difference to their number."""
    here(*fit(run, "--ckpt_path=last", "--model.duration=640", "--data.batch_size=16", "--trainer.max_steps=12"))
    assert "Training from 320 to 352 images" in capsys.readouterr().out
    assert seen(last(run)) == 352


def test_a_run_goes_on_from_what_is_left_of_its_checkpoints(run: Path, capsys) -> None:
    last(run).unlink()
    assert "already holds a run" in refusal(capsys, *fit(run))
    here(*fit(run, "--ckpt_path=last"))
    assert "Training from 256 to 320 images" in capsys.readouterr().out


def test_a_later_checkpoint_is_not_written_over(run: Path, tmp_path: Path, capsys) -> None:
    earlier = f"--ckpt_path={run / 'checkpoints' / 'images-000000128.ckpt'}"
    assert "320, which would be lost" in refusal(capsys, *fit(run, earlier))
    here(*fit(tmp_path / "branch", earlier, "--model.duration=160"))
    last(run).write_bytes(last(run).read_bytes()[:1000])  # of a damaged one nothing can be lost
    here(*fit(run, earlier, "--model.duration=160"))
    assert seen(last(run)) == seen(last(tmp_path / "branch")) == 160


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_copied_run_is_not_taken_for_the_first(command: str, run: Path, trained: Path, capsys) -> None:
    """Its configuration names the folder that it had."""
    before = last(trained).read_bytes()
    words = [command, f"--config={run / 'config.yaml'}", "--ckpt_path=last"]
    assert f"add --trainer.default_root_dir={run}" in refusal(capsys, *words)
    if command == "fit":
        here("fit", str(run), "--model.duration=352")
        assert seen(last(run)) == 352
    assert last(trained).read_bytes() == before


def test_results_are_not_written_over(run: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warm_lightning.commands.shared.Source", None)  # before any image is read
    statistics = shutil.copy(last(run), run / "reference.npz")
    for words in (
        ["score", "a", "b", "--extractor=Pixels", f"--out={last(run)}"],
        ["compare", "a", "b", "--reference=c", "--extractor=Pixels", f"--out={last(run)}"],
        ["reference-stats", "a", str(statistics)],
    ):
        assert "already exists" in refusal(capsys, *words)


@pytest.mark.parametrize("name", ["checkpoints", "samples", "posthoc"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_part_of_the_run_that_cannot_be_written_is_missed_at_the_start(
    kind: str, name: str, tmp_path: Path, capsys
) -> None:
    """Such as a link to a disk that is not there."""
    part = tmp_path / name
    part.touch() if kind == "file" else part.symlink_to(tmp_path / "none" / "such")
    assert f"{part}: cannot be written to" in refusal(capsys, *fit(tmp_path))
    assert not (tmp_path / "config.yaml").exists()


def test_generated_images_are_not_sampled_again(run: Path, tmp_path: Path, capsys) -> None:
    """A call that was interrupted goes on where it was; what it has written is whole."""
    generate = ["generate", f"--ckpt_path={last(run)}", "--seeds=0-5", f"--outdir={tmp_path / 'out'}"]
    here(*generate)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    missing, empty, *kept = sorted(written)
    missing.unlink()
    empty.write_bytes(b"")
    here(*generate, "--batch_size=1")
    assert "4 images of these settings were there already" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    assert all(path.stat().st_mtime_ns == written[path] for path in kept)


@pytest.mark.parametrize("name", [".", "/"])
def test_what_is_no_name_is_refused(name: str, run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "not a name" in refusal(capsys, "export", str(last(run)), name)
