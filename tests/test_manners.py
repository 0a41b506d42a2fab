"""Tests of mistakes in a training: each is one line at the start, and nothing is lost or left half-done."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler
from processes import warm_on_two
from small import REPOSITORY, SMALL, command, environment, fit, here, last, refusal

from warm_lightning.callbacks import Checkpoints
from warm_lightning.callbacks.expectations import duration_text
from warm_lightning.checkpoints import read_checkpoint
from warm_lightning.cli import main
from warm_lightning.config import resolved_config
from warm_lightning.data.datamodule import VALIDATION_IMAGES
from warm_lightning.errors import UserError
from warm_lightning.metrics import Pixels
from warm_lightning.records import write_file
from warm_lightning.strategies import check_precision

# ---------------------------------------------------------------------- a step is batch_size images, in order


class GradientsOfTwo(GradientAccumulationScheduler):
    """Lightning's callback, with steps on two batches from the start."""

    def __init__(self) -> None:
        super().__init__({0: 2})


class LargerBatches(BatchSizeFinder):
    """Lightning's callback with one trial of one step."""

    def __init__(self) -> None:
        super().__init__(steps_per_trial=1, max_trials=1)


class BatchesSkipped(Callback):
    """A callback of anybody's that changes the order of the images."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        batch.positions.add_(32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trainer.accumulate_grad_batches=2", "--trainer.limit_train_batches=3"], "limit_train_batches"),
        (["--trainer.limit_train_batches=0.5"], "limit_train_batches"),
        (["--trainer.overfit_batches=1"], "overfit_batches"),
        (["--trainer.use_distributed_sampler=true"], "use_distributed_sampler"),
        (["--trainer.callbacks+=test_manners.GradientsOfTwo"], "accumulate_grad_batches"),
        (["--trainer.callbacks+=test_manners.LargerBatches"], "batch_size"),
        (["--trainer.callbacks+=test_manners.BatchesSkipped"], "order of the images"),
    ],
)
def test_a_step_is_batch_size_images(options: list[str], words: str, tmp_path: Path, capsys) -> None:
    assert words in refusal(capsys, *fit(tmp_path, *options))
    assert not last(tmp_path).exists()


@pytest.mark.parametrize("option", ["--optimizer=SGD", "--optimizer.lr=0.1", "--lr_scheduler=StepLR"])
def test_options_without_effect_are_refused(option: str, tmp_path: Path, capsys) -> None:
    assert "model.lr" in refusal(capsys, *fit(tmp_path, option))


def test_a_loss_that_is_lost_ends_the_training_and_not_its_checkpoint(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("warm_lightning.module.NONFINITE_STEPS", 4)
    monkeypatch.setattr("warm_lightning.module.LOST_STEPS", 1)
    diverging = ["--model.lr=1e30", "--model.lr_ramp=0", "--checkpoints.every=32"]
    assert "lower model.lr" in refusal(capsys, *fit(tmp_path, *diverging))
    section = read_checkpoint(last(tmp_path))["warm_lightning"]
    assert section["images_seen"] < 160  # steps after the loss was lost are not saved


class LastGradientLost(Callback):
    """Makes one gradient of the last step infinite."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if pl_module.images_seen == 288:
            next(pl_module.network.parameters()).grad.view(-1)[0] = torch.inf


def test_a_single_gradient_that_is_lost_costs_no_checkpoint(tmp_path: Path) -> None:
    here(*fit(tmp_path, "--trainer.callbacks+=test_manners.LastGradientLost", "--checkpoints.keep_every=320"))
    for name in ("last.ckpt", "images-000000320.ckpt"):
        section = read_checkpoint(tmp_path / "checkpoints" / name)["warm_lightning"]
        assert (section["images_seen"], section["nonfinite_gradients"]) == (320, 1)


# ---------------------------------------------------------------------- nothing is lost


class Slow(Callback):
    """Makes each step last 0.6 seconds."""

    def on_train_batch_start(self, *args: Any) -> None:
        time.sleep(0.6)


def test_the_limit_of_time_counts_from_each_start(tmp_path: Path) -> None:
    options = ["--trainer.callbacks+=test_manners.Slow", "--trainer.max_time=00:00:00:01", "--ckpt_path=last"]
    here(*fit(tmp_path, *options))
    first = read_checkpoint(last(tmp_path))["warm_lightning"]["images_seen"]
    here(*fit(tmp_path, *options))
    assert read_checkpoint(last(tmp_path))["warm_lightning"]["images_seen"] > first


class Order(Callback):
    """Notes what is done in which order, with the images that the last checkpoint has seen."""

    notes: ClassVar[list[tuple[str, int]]] = []

    def __init__(self) -> None:
        self.notes.clear()

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        path = last(Path(trainer.default_root_dir))
        self.notes.append(("validation", read_checkpoint(path)["warm_lightning"]["images_seen"]))


def test_what_takes_long_begins_after_a_checkpoint(tmp_path: Path, monkeypatch) -> None:
    """With no interval in images that is reached, scores and the last validation find a fresh checkpoint."""
    seen = []
    monkeypatch.setattr(
        "warm_lightning.callbacks.scores.ScoreSamples.prepare",
        lambda self, module: seen.append(read_checkpoint(last(tmp_path))["warm_lightning"]["images_seen"]) or 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        main(fit(tmp_path, "--scores.every=160", "--scores.every_num_images=16"))
    assert seen == [160]
    monkeypatch.undo()
    # The scores that were not finished come first, as the training goes on.
    order = ["--trainer.callbacks+=test_manners.Order", "--ckpt_path=last", "--checkpoints.monitor=first"]
    whole = "--trainer.limit_val_batches=1.0"
    here(*fit(tmp_path, *order, whole, "--scores.every=160", "--scores.every_num_images=16"))
    assert {images for _, images in Order.notes} == {320}
    assert len(Order.notes) == -(-VALIDATION_IMAGES // 32)
    assert (tmp_path / "checkpoints" / "best-fd16_pixel.ckpt").is_file()


def test_checkpoints_come_by_time(tmp_path: Path, monkeypatch) -> None:
    """By a clock that advances four minutes whenever it is read: after each step, at the start and with a saving."""
    saved, clock, save = [], count(0, 240), Checkpoints.save

    def noted(self: Checkpoints, trainer: Any, names: list[str]) -> None:
        saved.extend((name, trainer.lightning_module.images_seen) for name in names)
        save(self, trainer, names)

    monkeypatch.setattr(Checkpoints, "save", noted)
    monkeypatch.setattr("warm_lightning.callbacks.checkpoints.time", SimpleNamespace(monotonic=lambda: next(clock)))
    here(*fit(tmp_path, "--model.duration=256"))
    # More than ten minutes are twelve: three steps after the start or a saving. The last one is before validation.
    assert saved == [("last.ckpt", seen) for seen in (96, 192, 256, 256)]


def test_a_trial_leaves_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    here(*fit(folder, "--trainer.fast_dev_run=true"))
    assert not folder.exists()


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_score_while_they_train(recipe: Path) -> None:
    config = resolved_config([f"--config={recipe}"])
    scores = config["scores"]
    assert 0 < scores["every"] <= config["model"]["duration"] / 2
    assert config["checkpoints"]["monitor"] == "first"
    # Samples cost a third of a training image for each network call: a quarter of the training at most.
    calls = 2 * config["model"]["sampler"]["grid"]["init_args"]["steps"]
    assert scores["every_num_images"] * calls / 3 < scores["every"] / 4


def test_a_training_says_what_it_will_do_and_how_long_it_takes(tmp_path: Path, capsys, monkeypatch) -> None:
    """By a clock that advances a second whenever it is read."""
    seconds = count(0, 1)
    monkeypatch.setattr("warm_lightning.callbacks.expectations.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr("warm_lightning.callbacks.expectations.Expectations.AFTER", 2.0)
    here(*fit(tmp_path, "--scores.every=160", "--scores.every_num_images=16"))
    said = capsys.readouterr().out
    assert "Training from 0 to 320 images; scores of 16 samples every 160 images; last.ckpt every 12,800 images" in said
    assert " or 10 minutes; no held-out images: validation uses 1,000 training images." in said
    # The clock is read twice in the first step and once in the second, which therefore takes two seconds.
    assert "About 16 images/s: 16 s of training to go" in said
    assert "; about 23 s for 32 samples of ScoreSamples" in said  # 32 samples of 35 calls, at 3·16 calls a second


def test_durations_are_in_the_unit_that_suits_them() -> None:
    assert [duration_text(s) for s in (40, 720, 12_600, 181_440)] == ["40 s", "12 min", "3.5 h", "2.1 days"]


# ---------------------------------------------------------------------- one line, before anything costly


class Broken(Callback):
    """A callback that cannot be made."""

    def __init__(self) -> None:
        raise KeyError("a setting of its own")


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.strategy=ddp_spawn", "--trainer.accelerator=cpu", "--trainer.devices=2"],
        ["--trainer.strategy=ddp_fork", "--trainer.accelerator=cpu", "--trainer.devices=2"],
        ["--trainer.strategy=no_such_strategy"],
        ["--trainer.accelerator=abacus"],
        ["--trainer.barebones=true"],
        ["--trainer.precision=transformer-engine"],
        ["--trainer.logger=lightning.pytorch.loggers.NeptuneLogger"],
        ["--trainer.callbacks+=test_manners.Broken"],
        ["--seed_everything=-1"],
        ["--trainer.plugins=no_such_plugin"],
    ],
    ids=lambda options: options[0].removeprefix("--trainer."),
)
def test_what_cannot_be_made_is_one_line(options: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    assert refusal(capsys, *fit(tmp_path, *options))
    assert not last(tmp_path).exists()


def test_a_bug_keeps_its_traceback(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WARM_TRACEBACK", "1")
    with pytest.raises(UserError) as raised:
        main(fit(tmp_path, "--trainer.callbacks+=test_manners.Broken"))
    assert "a setting of its own" in str(raised.value)
    assert raised.value.__cause__ is not None


def test_files_that_only_a_later_command_needs_are_missed_at_the_start(tmp_path: Path, capsys, monkeypatch) -> None:
    def unavailable(self: Pixels) -> None:
        raise UserError("no weights")

    monkeypatch.setattr(Pixels, "prepare", unavailable)
    assert "no weights" in refusal(capsys, *fit(tmp_path, "--scores.every=0"))
    monkeypatch.undo()
    missing = f"--scores.reference_stats={tmp_path / 'none.npz'}"
    assert "none.npz" in refusal(capsys, *fit(tmp_path, missing))


def test_a_run_is_tested_with_its_own_configuration(tmp_path: Path, capsys) -> None:
    here(*fit(tmp_path, "--model.network.model_channels=16"))
    before = set(tmp_path.iterdir())
    other = refusal(capsys, "test", *SMALL, f"--trainer.default_root_dir={tmp_path}")
    assert f"warm test {tmp_path}" in other
    assert f"{tmp_path / 'config.yaml'}" in other
    assert set(tmp_path.iterdir()) == before  # no event file
    here("test", str(tmp_path), "--scores.num_images=16")
    assert json.loads((tmp_path / "scores.json").read_text())["protocol"]["images_seen"] == 320
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"scores.json", "rounds.json"}
    assert "config.yaml" in refusal(capsys, "test", str(tmp_path / "checkpoints"))


def test_training_states_of_edm_are_named(tmp_path: Path, capsys) -> None:
    state = tmp_path / "training-state-000512.pt"
    torch.save({"net": torch.zeros(1)}, state)
    for arguments in (
        ["convert-edm", str(state), str(tmp_path / "out.ckpt")],
        ["generate", f"--ckpt_path={state}", "--seeds=0", f"--outdir={tmp_path}"],
    ):
        assert "network-snapshot-*.pkl" in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    "program",
    [
        command("--help"),
        command("describe", f"--config={REPOSITORY / 'configs' / 'digits.yaml'}"),
        [sys.executable, "-m", "experiments", "list"],
    ],
    ids=["warm", "a command", "experiments"],
)
def test_a_reader_may_stop_early(program: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            program, cwd=REPOSITORY, env=environment(), stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 141  # as a shell reports a program that wrote to a closed pipe
    assert not done.stderr


class FailsOnOne(Callback):
    """A mistake that only one process meets."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2 and trainer.global_rank == int(os.environ["FAILS_ON"]):
            raise UserError("this process has no more room")


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_device_is_one_line_on_each(rank: int, tmp_path: Path) -> None:
    options = ["--trainer.callbacks+=test_manners.FailsOnOne", "--trainer.strategy=ddp"]
    two = ["--trainer.devices=2", "--trainer.accelerator=cpu"]
    extra = {"FAILS_ON": str(rank), "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    done = subprocess.run(
        command(*fit(tmp_path, *options, *two)),
        env=environment(**extra),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("warm")]
    assert sum("no more room" in line for line in lines) == 1
    assert len(lines) <= 2
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_the_ranks_of_one_command_share_its_run(tmp_path: Path) -> None:
    """Several processes of one training are not refused as several trainings."""
    warm_on_two(tmp_path / "out", *fit(tmp_path / "run"))
    assert last(tmp_path / "run").is_file()


def test_a_slow_precision_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.warns(UserWarning, match="32-true"):
        check_precision("bf16-mixed", torch.device("cpu"))


# ---------------------------------------------------------------------- numbers and labels are true


@pytest.mark.parametrize(
    "option",
    [
        "--model.duration=.inf",
        "--model.lr=.inf",
        "--model.lr_ramp=.inf",
        "--model.betas=[1.5,0.9]",
        "--model.eps=-1",
        "--scores.every=.inf",
        "--checkpoints.every=.inf",
        "--trainer.min_steps=20",
        "--trainer.min_epochs=1",
    ],
)
def test_a_training_ends_as_its_settings_say_or_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    name = option.partition("=")[0].rpartition(".")[2].removeprefix("--")
    line = refusal(capsys, *fit(tmp_path), option)
    assert name in line
    assert "WARM_TRACEBACK" not in line
    assert not last(tmp_path).exists()


def test_what_is_said_is_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The number of images to train on, where max_steps ends it before, and the images that a loss is of."""
    here(*fit(tmp_path, "--trainer.max_steps=2"))
    assert "Training from 0 to 64 images" in capsys.readouterr().out
    assert read_checkpoint(last(tmp_path))["warm_lightning"]["images_seen"] == 64
    folder = f"--trainer.default_root_dir={tmp_path}"
    for options, text in (
        (["--trainer.limit_val_batches=1.0"], f"on {VALIDATION_IMAGES:,} training images, since none are held out"),
        (["--trainer.limit_val_batches=2"], f"on trainer.limit_val_batches 2 of {VALIDATION_IMAGES:,} training images"),
        (["--trainer.limit_val_batches=1.0", "--data.held_out=40"], "on 40 held-out images"),
    ):
        here("validate", *SMALL, folder, *options)
        assert text in capsys.readouterr().out


def test_the_best_is_the_best_of_its_own_score(tmp_path: Path) -> None:
    """A training that goes on with another score does not compare it with values of the first."""
    scored = ["--scores.every=160", "--scores.every_num_images=16"]
    here(*fit(tmp_path, "--model.duration=160", *scored, "--checkpoints.monitor=kid16_pixel"))
    here(*fit(tmp_path, "--ckpt_path=last", *scored, "--checkpoints.monitor=fd16_pixel"))  # a hundred times as large
    names = {"best-kid16_pixel.ckpt": 160, "best-fd16_pixel.ckpt": 320}
    for name, images_seen in names.items():
        assert read_checkpoint(tmp_path / "checkpoints" / name)["warm_lightning"]["images_seen"] == images_seen


# ---------------------------------------------------------------------- numbers, streams, workers and memory


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--trainer.accumulate_grad_batches=0", "accumulate_grad_batches"),
        ("--samples.seeds=0-3999999999", "10,000,000"),
    ],
)
def test_numbers_that_cannot_be_are_one_line(option: str, word: str, tmp_path: Path, capsys) -> None:
    assert word in refusal(capsys, *fit(tmp_path, option))


def test_a_score_that_does_not_exist_is_missed_at_the_start(tmp_path: Path, capsys) -> None:
    options = ["--checkpoints.monitor=no_such", "--scores.every=160", "--scores.every_num_images=16"]
    assert "fd16_pixel" in refusal(capsys, *fit(tmp_path, *options))
    assert not last(tmp_path).exists()


def test_streams_that_are_closed_are_no_files() -> None:
    """The first files that a program without standard streams opens do not get the text for these streams."""
    child = os.fork()
    if not child:
        for number in range(3):
            os.close(number)
        sys.stdin = sys.stdout = sys.stderr = None  # as Python starts then
        code = main(["--version"])
        os._exit(code or os.open(os.devnull, os.O_RDONLY) < 3)
    assert os.waitpid(child, 0)[1] == 0


def test_a_result_may_have_the_longest_name(tmp_path: Path) -> None:
    for name in ("ü" * 127 + "x", "x" * 255):
        write_file(tmp_path / name, b"result")
        assert (tmp_path / name).read_bytes() == b"result"
    assert len(list(tmp_path.iterdir())) == 2


class Unread(Callback):
    """Closes the reader of this process's output after the second step, and then has something to say."""

    reader = -1

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            os.close(Unread.reader)
        print("step", batch_idx, flush=True)


def test_a_training_goes_on_without_a_reader(tmp_path: Path) -> None:
    Unread.reader, writer = os.pipe()
    with os.fdopen(writer, "w") as output, redirect_stdout(output):
        here(*fit(tmp_path, "--trainer.callbacks+=test_manners.Unread"))
    assert read_checkpoint(last(tmp_path))["warm_lightning"]["images_seen"] == 320


class WorkerKilled(Callback):
    """Kills a worker of the data."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            time.sleep(60)  # until PyTorch notices


def test_a_worker_that_dies_is_one_line(tmp_path: Path, capsys) -> None:
    options = ["--trainer.callbacks+=test_manners.WorkerKilled", "--data.num_workers=1"]
    assert "Lower data.num_workers" in refusal(capsys, *fit(tmp_path, *options))


@pytest.mark.parametrize("work", [lambda: [0] * 2**60, lambda: torch.empty(2**50)], ids=["Python", "PyTorch"])
def test_a_full_memory_is_one_line(work: Any, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warm_lightning.cli.run", lambda command, arguments: work())
    assert "the memory is full" in refusal(capsys, "describe")
