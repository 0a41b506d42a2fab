"""Calls of `warm`, each in a folder of its own with a note of what was asked for and whether it is done."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from tqdm import tqdm

from experiments.machine import describe
from warm_lightning.cli import main as warm
from warm_lightning.errors import UserError, check
from warm_lightning.pictures import write_file

REPOSITORY = Path(__file__).resolve().parent.parent
NOTE = "job.json"
LOG = "log.txt"


class Executor(ABC):
    """Where calls of `warm` run."""

    @abstractmethod
    def call(self, arguments: list[str], folder: Path) -> int:
        """Run `warm` with its output in the folder's log; gives the exit code when it has ended."""


@dataclass(frozen=True)
class Processes(Executor):
    """Processes on this machine, which share its cores and GPUs.

    Attributes:
        at_a_time: how many of them.
        gpus: what each sees of the GPUs, by turns; None for all of them.
    """

    at_a_time: int
    gpus: Queue[str] | None = None

    @classmethod
    def sharing(cls, at_a_time: int) -> "Processes":
        """So many, with as many GPUs each as there are for all."""
        count = torch.cuda.device_count()
        if count < 2 or at_a_time == 1:
            return cls(at_a_time)
        gpus: Queue[str] = Queue()
        for turn in range(at_a_time):
            gpus.put(",".join(map(str, range(turn % count, count, at_a_time))))
        return cls(at_a_time, gpus)

    def call(self, arguments: list[str], folder: Path) -> int:
        threads = max(1, (os.cpu_count() or 1) // self.at_a_time)
        environment = environ() | {"OMP_NUM_THREADS": str(threads)}
        seen = self.gpus.get() if self.gpus else None
        if seen is not None:
            environment["CUDA_VISIBLE_DEVICES"] = seen
        command = [sys.executable, "-m", "warm_lightning.cli", *arguments]
        try:
            with (folder / LOG).open("a") as log, taken(folder) as lock:
                return subprocess.run(
                    command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, check=False, pass_fds=[lock]
                ).returncode
        finally:
            if self.gpus and seen is not None:
                self.gpus.put(seen)


@contextmanager
def taken(folder: Path) -> Iterator[int]:
    """Nobody else in a folder: its lock, to be passed on to the process that works there.

    Such a process outlives a runner that is killed, and the lock with it: another runner waits for its end.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"waiting for a process of an earlier run, which is still at work in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


@dataclass(frozen=True)
class ThisProcess(Executor):
    """This process, one call after the other: for tests, without the seconds that importing takes."""

    def call(self, arguments: list[str], folder: Path) -> int:
        with ExitStack() as stack:
            log = stack.enter_context((folder / LOG).open("a"))
            for context in (chdir(REPOSITORY), redirect_stdout(log), redirect_stderr(log)):
                stack.enter_context(context)
            return warm(arguments)


@dataclass(frozen=True)
class Slurm(Executor):
    """Jobs of a SLURM cluster, by submitit; this program waits for them, on a login node for instance.

    Attributes:
        options: of submitit, such as slurm_partition, gpus_per_node, cpus_per_task or timeout_min.
        cluster: slurm, or local for processes on this machine.
    """

    options: dict[str, Any] = field(default_factory=dict)
    cluster: str = "slurm"

    def call(self, arguments: list[str], folder: Path) -> int:
        import submitit

        try:
            executor = submitit.AutoExecutor(folder / "submitit", cluster=self.cluster)
            executor.update_parameters(**{"name": folder.name, "timeout_min": 24 * 60} | self.options)
        except (RuntimeError, NameError, AssertionError, ValueError) as error:
            raise UserError(f"--slurm: {' '.join(str(error).split())}") from error
        job = executor.submit(subprocess.call, [sys.executable, "-m", "warm_lightning.cli", *arguments], env=environ())
        try:
            code = int(job.result())
        except submitit.core.utils.UncompletedJobError as error:  # killed, or out of time
            code = 1
            write_log(folder, str(error))
        for text in (job.stdout(), job.stderr()):
            write_log(folder, text or "")
        return code


def write_log(folder: Path, text: str) -> None:
    """Add to a folder's log."""
    with (folder / LOG).open("a") as log:
        log.write(text)


def environ() -> dict[str, str]:
    """This process's environment, in which the repository's package is found from anywhere."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def commit() -> str:
    """The commit of this repository, with a + where files differ from it; "unknown" outside of git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def digest(path: Path) -> str | None:
    """SHA-256 of a file; None if it is not there."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Job:
    """A call of `warm`.

    Attributes:
        name: for people.
        arguments: the command and its options.
        folder: where it writes.
        needs: a file that it works with, if any: it runs again when that has changed.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    needs: Path | None = None

    def note(self) -> dict[str, Any]:
        """What is known of earlier runs."""
        path = self.folder / NOTE
        try:
            return dict(json.loads(path.read_text())) if path.exists() else {}
        except ValueError as error:
            raise UserError(f"{path}: is no JSON ({error}): delete the folder {self.folder}") from error

    def wanted(self) -> dict[str, Any]:
        """What a run's note must say for it to count."""
        return {"arguments": list(self.arguments), "needs": digest(self.needs) if self.needs else None}

    def done(self) -> bool:
        """Whether it has run with these options, on that file, to its end."""
        note = self.note()
        return bool(note.get("done")) and all(note.get(name) == value for name, value in self.wanted().items())

    def run(self, executor: Executor, about: dict[str, Any]) -> None:
        """Run it, unless that was done before; on from where it was stopped, or anew where options have changed.

        Args:
            executor: where.
            about: what else to note, such as the commit.

        Raises:
            UserError: if it fails.
        """
        if self.done():
            return
        note, wanted = self.note(), self.wanted()
        if any(note.get(name) != value for name, value in wanted.items()):
            shutil.rmtree(self.folder, ignore_errors=True)
            note = {**wanted, "seconds": 0.0}
        note |= {**about, "done": False}
        self.write(note)
        began = time.perf_counter()
        try:
            code = executor.call(list(self.arguments), self.folder)
        finally:
            note["seconds"] = round(note["seconds"] + time.perf_counter() - began, 1)
            self.write(note)
        self.write({**note, "done": code == 0})
        lines = (self.folder / LOG).read_text().strip().splitlines()
        reason = lines[-1] if lines else "no output"
        check(code == 0, f"{self.name}: `warm {self.arguments[0]}` failed ({reason}); see {self.folder / LOG}")

    def write(self, note: dict[str, Any]) -> None:
        """Keep the note."""
        write_file(self.folder / NOTE, json.dumps(note, indent=2).encode())


def machine(executor: Executor) -> dict[str, Any]:
    """What runs where, for the notes."""
    found = describe("cuda" if torch.cuda.is_available() else "cpu")
    device = found.get("gpu", f"{found['cores']} cores of {found['cpu']}")
    elsewhere = {"cluster": executor.cluster} if isinstance(executor, Slurm) else {}
    return {
        "device": device,
        "package_version": found["warm_lightning"],
        "torch_version": found["torch"],
        "git_commit": commit(),
        **elsewhere,
    }


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    return str(timedelta(seconds=round(seconds)))
