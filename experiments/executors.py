"""Where calls of `warm` run: processes of this machine, this process, or a SLURM cluster."""

import fcntl
import os
import shlex
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from tqdm import tqdm

from experiments.machine import describe
from experiments.restartable import Restartable
from experiments.schema import REPOSITORY
from warm_lightning.cli import main as warm
from warm_lightning.errors import UserError, check

LOG = "log.txt"
LOCK = ".lock"
WARM = [sys.executable, "-m", "warm_lightning.cli"]
TRAINER = ("fit", "test")
"""Commands of `warm` that run on all devices."""
TIMES = 1000
"""How often a SLURM job may run out of time: trainings are longer than most clusters' limits."""
SINGLE = {"SLURM_JOB_NAME": "interactive"}
"""In a SLURM job of this name Lightning starts its processes itself, instead of taking itself for one of several."""


class Executor(ABC):
    """Where calls of `warm` run."""

    @abstractmethod
    def call(self, arguments: list[str], folder: Path) -> int:
        """Run `warm` with its output in the folder's log; gives the exit code when it has ended."""

    @abstractmethod
    def cancel(self) -> None:
        """End what Ctrl-C does not reach."""


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
        """So many, with as many GPUs each as there are for all, of 1, 2, 4, …: others do not divide a batch."""
        count = torch.cuda.device_count()
        if count < 2:
            return cls(at_a_time)
        allowed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = allowed if len(allowed) == count else [str(number) for number in range(count)]
        gpus: Queue[str] = Queue()
        for turn in range(at_a_time):
            mine = names[turn % count :: at_a_time]
            gpus.put(",".join(mine[: 1 << len(mine).bit_length() - 1]))
        return cls(at_a_time, gpus)

    def call(self, arguments: list[str], folder: Path) -> int:
        threads = max(1, (os.cpu_count() or 1) // self.at_a_time)
        environment = {**os.environ, **SINGLE, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": str(threads)}
        seen = self.gpus.get() if self.gpus else None
        if seen is not None:
            environment["CUDA_VISIBLE_DEVICES"] = seen
        try:
            with (folder / LOG).open("a") as log, taken(folder) as lock:
                return subprocess.run(
                    [*WARM, *arguments],
                    cwd=REPOSITORY,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    check=False,
                    pass_fds=[lock],
                ).returncode
        finally:
            if self.gpus and seen is not None:
                self.gpus.put(seen)

    def cancel(self) -> None:
        """Ctrl-C reaches processes of this program's group itself."""


@contextmanager
def taken(folder: Path) -> Iterator[int]:
    """Nobody else in a folder: its lock, to be passed on to the process that works there.

    Such a process outlives a runner that is killed, and the lock with it: another runner waits for its end.
    """
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"waiting for a process of an earlier run, which is still at work in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


@dataclass(frozen=True)
class ThisProcess(Executor):
    """This process, one call after the other, without the seconds that importing takes; on one device."""

    def call(self, arguments: list[str], folder: Path) -> int:
        with ExitStack() as stack:
            log = stack.enter_context((folder / LOG).open("a"))
            for context in (chdir(REPOSITORY), redirect_stdout(log), redirect_stderr(log)):
                stack.enter_context(context)
            # For more devices Lightning would start this program again, which is not `warm`.
            code = warm([*arguments, *(["--trainer.devices=1"] if arguments[0] in TRAINER else [])])
        if code == 130:
            raise KeyboardInterrupt
        return code

    def cancel(self) -> None:
        """Ctrl-C has ended the call."""


@dataclass(frozen=True)
class Slurm(Executor):
    """Jobs of a SLURM cluster, by submitit; this program waits for them, on a login node for instance.

    Each is one task; Lightning starts a process for each of its GPUs. A training that runs out of time is put back into
    the queue, and goes on from its last checkpoint.

    Attributes:
        options: of submitit, such as slurm_partition, gpus_per_node, cpus_per_task or timeout_min.
        cluster: slurm, or local for processes on this machine.
        submitted: the jobs so far.

    Raises:
        UserError: for several tasks or nodes.
    """

    options: dict[str, Any] = field(default_factory=dict)
    cluster: str = "slurm"
    submitted: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("tasks_per_node", "slurm_ntasks_per_node", "nodes"):
            check(self.options.get(name, 1) == 1, f"--slurm: {name} must be 1, since a cell is one task on one machine")

    def call(self, arguments: list[str], folder: Path) -> int:
        import submitit

        names = {**SINGLE, "PYTHONPATH": python_path()}
        setting = ["env", *(f"{n}={v}" for n, v in names.items()), "flock", str(folder / LOCK)]  # see `taken`
        try:
            executor = submitit.AutoExecutor(folder / "submitit", cluster=self.cluster, slurm_max_num_timeout=TIMES)
            # There a job has to find this repository.
            setup = [*self.options.get("slurm_setup", []), f"export PYTHONPATH={shlex.quote(python_path())}"]
            given = {"name": folder.name, "timeout_min": 24 * 60} | self.options | {"slurm_setup": setup}
            executor.update_parameters(**given)
            whole, cwd = (*setting, *WARM, *arguments), str(REPOSITORY)
            again = arguments[0] == "fit"  # others would begin anew, and never end
            call = Restartable(whole, cwd) if again else partial(subprocess.call, whole, cwd=cwd)
            job = executor.submit(call)
        except (RuntimeError, NameError, AssertionError, ValueError, submitit.core.utils.FailedJobError) as error:
            raise UserError(f"--slurm: {' '.join(str(error).split())}") from error
        self.submitted.append(job)
        try:
            code = int(job.result())
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
            code = 1  # killed, or out of time
            write_log(folder, f"{error}\nif its time was over, raise timeout_min in --slurm\n")
        for text in (job.stdout(), job.stderr()):
            write_log(folder, text or "")
        return code

    def wants_gpus(self) -> bool:
        """Whether the options ask for any."""
        return any(word in name for name in self.options for word in ("gpu", "gres", "tres", "additional_parameters"))

    def cancel(self) -> None:
        for job in self.submitted:
            if not job.done():
                job.cancel()


def write_log(folder: Path, text: str) -> None:
    """Add to a folder's log."""
    with (folder / LOG).open("a") as log:
        log.write(text)


def python_path() -> str:
    """Where Python finds the repository's package, from anywhere."""
    return os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))


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


def machine(executor: Executor) -> dict[str, Any]:
    """What runs where, for the notes of jobs."""
    found = describe("cuda" if torch.cuda.is_available() else "cpu")
    device = found.get("gpu", f"{found['cores']} cores of {found['cpu']}")
    if isinstance(executor, Slurm):  # of which this machine is not one
        device = f"cluster {executor.cluster}, {executor.options}"
    return {
        "machine": device,
        "package_version": found["warm_lightning"],
        "torch_version": found["torch"],
        "git_commit": commit(),
    }
