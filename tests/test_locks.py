"""The lock of a run's folder: for fit, test and jobs of experiments, on one device or several."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from processes import start_warm
from small import SMALL, here, refusal, warm

from experiments.runner import LocalProcesses
from warm_lightning.errors import UserError
from warm_lightning.paths import INHERITED, folder_lock
from warm_lightning.trainer_cli import is_first_process

LONG = ["fit", *SMALL, "--model.duration=1e9", "--checkpoints.every=64", "--ckpt_path=last"]


@contextmanager
def training(folder: Path, *options: str) -> Iterator[ForkServerProcess]:
    """A training in another process, once it has written its first checkpoint, until it is killed."""
    process = start_warm(folder, *LONG, f"--trainer.default_root_dir={folder}", *options)
    try:
        while not (folder / "checkpoints" / "last.ckpt").exists():
            assert process.is_alive(), (folder / "output.txt").read_text()
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.join()


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SMALL, f"--trainer.default_root_dir={tmp_path}"]
    with training(tmp_path, "--data.num_workers=2") as process:
        for second in (["fit", *options, "--ckpt_path=last"], ["fit", *options], ["test", *options]):
            assert f"{tmp_path}: another process" in refusal(capsys, *second)
        here("validate", *options, "--data.held_out=100")  # which writes no results
        process.kill()
        process.join()
        # At once, although the workers of the killed process may not have noticed yet.
        here("fit", *options, "--model.duration=1", "--ckpt_path=last")
    here("test", *options)


def test_devices_of_one_run_do_not_refuse_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    devices = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]
    folder = f"--trainer.default_root_dir={tmp_path}"
    done = warm("fit", *SMALL, *devices, "--model.duration=64", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with folder_lock(tmp_path):  # which the first process finds before it starts the second
        more = ["--model.duration=96", "--ckpt_path=last", folder]
        assert "another process" in refusal(capsys, "fit", *SMALL, *devices, *more)


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),  # Lightning's own children
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),  # torchrun
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
    ],
)
def test_only_the_first_process_locks(
    variables: dict[str, str], first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first


def test_jobs_of_experiments_hold_the_same_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The runner's process may work in the folder that the runner has locked for it, and another may not."""
    options = [*SMALL, f"--trainer.default_root_dir={tmp_path}", "--model.duration=64"]
    one_core = LocalProcesses(os.cpu_count() or 1)  # the others have tests of their own to run
    assert one_core.run(["fit", *options], tmp_path) == 0, (tmp_path / "log.txt").read_text(encoding="utf-8")
    with folder_lock(tmp_path):
        assert "another process" in refusal(capsys, "test", *options)


def test_a_lock_can_be_passed_on_and_is_never_doubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder_lock(tmp_path) as lock:
        with pytest.raises(UserError, match="another process"), folder_lock(tmp_path):
            pass
        monkeypatch.setenv(INHERITED, "0")  # of another file
        with pytest.raises(UserError, match="another process"), folder_lock(tmp_path):
            pass
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(UserError, match="another process"), folder_lock(tmp_path):
        pass  # the child holds it
    child.communicate(b"\n")
    started, ready = os.pipe()
    with folder_lock(tmp_path):
        fork = os.fork()
        if not fork:
            os.write(ready, b".")
            time.sleep(60)
            os._exit(0)
        os.read(started, 1)
    try:
        with folder_lock(tmp_path):  # a fork that outlives the process does not hold it
            pass
    finally:
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)


def test_a_folder_that_cannot_be_locked_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match="cannot be locked"), folder_lock(tmp_path):
        pass
