"""A full disk and killed processes: what was saved last stays usable, and nothing half-written is left.

A limit on the size of files stands for the full disk: a write beyond it fails in the same places.
"""

import ast
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import yaml
from processes import as_a_program, forkserver
from small import REPOSITORY, SMALL, here

from experiments.__main__ import main as experiments
from warm_lightning.cli import main
from warm_lightning.errors import UserError
from warm_lightning.records import whole_file, write_file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("run")
    here("fit", *SMALL, "--model.duration=64", f"--trainer.default_root_dir={folder}")
    return folder


def limited(program: Callable[[Sequence[str]], int], largest: int, *arguments: str) -> tuple[int | None, str]:
    """Run a program in a process that cannot write files of more bytes; gives its exit code and standard error."""
    receiving, sending = forkserver().Pipe(duplex=False)
    process = forkserver().Process(target=_limited, args=(sending, largest, program, arguments))
    process.start()
    sending.close()
    with receiving, os.fdopen(os.dup(receiving.fileno()), encoding="utf-8") as stream:
        messages = stream.read()
    process.join()
    return process.exitcode, messages


def _limited(
    sending: Connection, largest: int, program: Callable[[Sequence[str]], int], arguments: Sequence[str]
) -> None:
    as_a_program()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(sending.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)  # the stream there may be of a file, which a pipe is not
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.exit(program(arguments))


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their paths, without logs, which grow as long as there is space."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("largest", [60, 2_000, 500_000])  # no log, no config.yaml, no checkpoint
def test_a_training_that_cannot_write_loses_nothing(largest: int, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before = contents(folder)
    fit = ["fit", *SMALL, "--model.duration=128", f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    code, messages = limited(main, largest, *fit)
    assert code == 2, messages
    assert "Traceback" not in messages
    assert len([line for line in messages.splitlines() if line.startswith("warm fit: ")]) == 1
    after = contents(folder)
    assert after.keys() == before.keys()
    assert yaml.safe_load(after.pop("config.yaml"))["model"]
    assert {name: after[name] for name in after} == {name: before[name] for name in after}
    here(*fit)
    assert contents(folder).keys() == before.keys() | {"samples/samples-000000128.png"}


def test_a_test_that_cannot_write_keeps_its_earlier_results(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    test = ["test", *SMALL, f"--trainer.default_root_dir={folder}", "--scores.num_images=8"]
    here(*test)
    before = contents(folder)
    code, messages = limited(main, 60, *test, "--scores.first_seed=8")
    assert code == 2
    assert "Traceback" not in messages
    assert contents(folder) == before


def test_experiments_on_a_full_disk_end_in_one_line(tmp_path: Path) -> None:
    code, messages = limited(experiments, 60, "run", "compare", "--data=digits", "--cells=1", f"--out={tmp_path}")
    assert code == 2
    assert len(messages.splitlines()) == 1, messages
    assert "cannot be written" in messages
    assert not [path for path in tmp_path.rglob("*") if "unfinished" in path.name or path.suffix == ".json"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_killed_processes_leave_does_not_pile_up(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "name"
    for _ in range(2):
        child = os.fork()
        if child == 0:
            with whole_file(path, folder=kind == "folder") as temporary:
                (temporary / "half" if kind == "folder" else temporary).write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert [left.name for left in tmp_path.iterdir()] == [".name.unfinished"]
    with whole_file(path, folder=kind == "folder") as temporary:
        (temporary / "whole" if kind == "folder" else temporary).write_bytes(b"whole")
    assert [left.name for left in tmp_path.iterdir()] == ["name"]
    assert [left.name for left in path.iterdir()] == ["whole"] if kind == "folder" else path.read_bytes() == b"whole"


def test_several_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "name"

    def write(number: int) -> None:
        write_file(path, bytes([number]) * 100_000)
        content = path.read_bytes()
        assert len(content) == 100_000
        assert len(set(content)) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    assert [left.name for left in tmp_path.iterdir()] == ["name"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), FileNotFoundError("gone"), KeyError("bug")])
def test_a_failed_file_leaves_the_old_one(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "name"
    write_file(path, b"old")

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(UserError if isinstance(error, OSError) else KeyError):
        fail()
    assert {left.name: left.read_bytes() for left in tmp_path.iterdir()} == {"name": b"old"}


def test_every_file_is_written_by_whole_file() -> None:
    """Or into its temporary path, in the functions that are named here."""
    known = {"write_file", "write_folder", "save_checkpoint", "add_to_record", "atomic_file", "open_locked"}
    found = set()
    for file in (REPOSITORY / "warm_lightning").rglob("*.py"):
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for call in ast.walk(function):
                if isinstance(call, ast.Call):
                    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
                    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                    opened = name in ("open", "fdopen") and any(
                        mode[0] in "wax" or "+" in mode for mode in modes if mode
                    )
                    if opened or name in ("write_text", "write_bytes", "save_file"):
                        found.add(function.name)
    assert found == known - {"atomic_file"}
