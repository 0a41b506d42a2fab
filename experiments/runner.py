"""Jobs of an experiment: whether they are done, in which order they run, and where.

A job is a call of `warm` in a folder of its own. `Job` knows whether it is done, `run_all` starts each job when the one
that it needs has ended, and an `Executor` runs it: as a process of this machine, inside this process, or on a SLURM
cluster by submitit. A runner that was killed is started again by the same command, and goes on.

submitit could run the jobs of this machine, too, by its executors "local" and "debug". Tried with submitit 1.5.4, these
lose what is needed here:

* After Ctrl-C, which reaches all processes of the terminal, "local" kills its task within a second, and `warm fit`
  with it before it has saved the step in progress. The processes of this module are left to end by themselves.
* "local" sets CUDA_VISIBLE_DEVICES to 0, 1, …, whatever it was before, so that a job on a shared machine takes another
  one's GPU; it knows no GPU by its UUID.
* "local" adds two processes with 64 MB in all for each job, and looks for its end once a second. Its log is two files
  of a new name for each run, not log.txt in the job's folder.
* "debug" starts a debugger when a job raises an error, and does not write what the job prints to its log. It would
  replace a single call of the main function of `warm`.

A process that outlives a killed runner holds the lock of its folder in all cases.
"""

import json
import os
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import Executor as Pool
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from tqdm import tqdm

from warm_lightning.cli import main as warm
from warm_lightning.cli import reason
from warm_lightning.errors import UserError, check
from warm_lightning.records import machine, write_file
from warm_lightning.shipped import CHECKOUT

from .identity import BASE, is_same_job, job_identity
from .subprocesses import LOG, LoggedProcess, RestartableProcess, awaited_lock

NOTE = "job.json"


class Executor(ABC):
    """A place where calls of `warm` run."""

    @abstractmethod
    def run(self, arguments: list[str], folder: Path) -> int:
        """Run `warm` with its output in the log of a folder; returns the exit code when it has ended."""

    @abstractmethod
    def cancel(self) -> None:
        """End all calls that Ctrl-C does not end by itself."""


# ---------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Job:
    """A call of `warm`, and the note in its folder that says whether it is done.

    Attributes:
        name: for progress and messages.
        arguments: the command and its options.
        folder: where it writes.
        result: path in the folder of a file without which it is not done.
        checkpoint: a file that it works with, if any; it runs again when that has changed.
        identity: returns all else that the result depends on, as plain data; called only if the job may be done, since
            it takes time.
        images: returns the file with the images that it works with, or None.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    result: str
    checkpoint: Path | None = None
    identity: Callable[[], dict[str, Any]] = field(default=dict, compare=False)
    images: Callable[[], Path | None] = field(default=lambda: None, compare=False)

    def done(self) -> bool:
        """Whether the job has run to its end with these options on these files."""
        note = self.note()
        return bool(note.get("done")) and (self.folder / self.result).exists() and self.is_noted(note)

    def run(self, executor: Executor, conditions: dict[str, Any]) -> None:
        """Run the job unless it is done.

        A job that was stopped goes on in its folder. If the folder holds something else, which had other options or
        files, that is renamed and the job begins anew.

        Args:
            executor: where it runs.
            conditions: further entries of the note, see `run_conditions`.

        Raises:
            UserError: it fails.
        """
        if self.done():
            return
        note = self.note()
        if not self.is_noted(note):
            self.set_aside()
            note = self.noted_identity()
        if note.get("done") or "seconds" not in note:  # the result was removed: the job is done once more
            note["seconds"] = 0.0
        note |= {**conditions, "done": False}
        self.write_note(note)
        began = time.perf_counter()
        try:
            code = executor.run(list(self.arguments), self.folder)
        finally:
            note["seconds"] = round(note["seconds"] + time.perf_counter() - began, 1)
            self.write_note(note)
        lines = (self.folder / LOG).read_text(encoding="utf-8").strip().splitlines()
        reason = f"exit code {code}, {lines[-1] if lines else 'no output'}" if code else f"without {self.result}"
        check(
            code == 0 and (self.folder / self.result).exists(),
            f"{self.name}: `warm {self.arguments[0]}` failed ({reason}); see {self.folder / LOG}",
        )
        self.write_note({**note, "done": True})

    def noted_identity(self) -> dict[str, Any]:
        """The entries that a note must have for the result to count, see `identity.job_identity`."""
        return job_identity(self.identity(), self.checkpoint, self.images())

    def is_noted(self, note: Mapping[str, Any]) -> bool:
        """Whether a note is of this job, see `identity.is_same_job`."""
        return is_same_job(note, self.noted_identity())

    def note(self) -> dict[str, Any]:
        """Read the note of earlier runs; empty if there was none."""
        path = self.folder / NOTE
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        except ValueError as error:
            raise UserError(f"{path}: is no JSON ({error}): delete the folder {self.folder}") from error

    def write_note(self, note: Mapping[str, Any]) -> None:
        """Write the note anew."""
        write_file(self.folder / NOTE, json.dumps(note, indent=2).encode())

    def set_aside(self) -> None:
        """Rename the folder, if it exists, as soon as no process works in it any more."""
        if not self.folder.exists():
            return
        number = 1
        while (place := self.folder.with_name(f"{self.folder.name}.replaced-{number}")).exists():
            number += 1
        with awaited_lock(self.folder):
            self.folder.rename(place)


def run_conditions(executor: Executor) -> dict[str, Any]:
    """The machine, versions and commit that jobs run with, for their notes."""
    known = machine("cuda" if torch.cuda.is_available() else "cpu")
    name = known.get("gpu", f"{known['cores']} cores of {known['cpu']}")
    if isinstance(executor, Slurm):  # this machine is not where jobs run
        name = f"cluster {executor.cluster}, {executor.options}"
    return {"machine": name} | {key: known[key] for key in ("package_version", "torch_version", "git_commit")}


# ---------------------------------------------------------------------- schedule


def run_all(
    jobs: Mapping[Job, Job | None], executor: Executor, at_a_time: int, conditions: dict[str, Any], title: str
) -> dict[Job, str]:
    """Run jobs, each when the one that it needs is done.

    Args:
        jobs: each with the job that it needs, which is one of them, or None.
        executor: where they run.
        at_a_time: the number of jobs that run at once.
        conditions: for the notes of all jobs, see `run_conditions`.
        title: of the progress bar.

    Returns:
        The reasons why jobs failed, by job. A job whose needed job failed is not tried, and not among them.
    """
    failures: dict[Job, str] = {}
    pool: Pool = MainThread() if isinstance(executor, ThisProcess) else ThreadPoolExecutor(at_a_time)
    bar = tqdm(total=len(jobs), desc=title, unit=" runs")

    def start(ready: Iterable[Job]) -> dict[Future[None], Job]:
        started = {}
        for job in ready:
            future = pool.submit(job.run, executor, conditions)
            future.add_done_callback(partial(show, job.name))
            started[future] = job
        return started

    def show(name: str, _: Future[None]) -> None:
        bar.set_postfix_str(name, refresh=False)
        bar.update()

    try:
        running = start(job for job, needed in jobs.items() if needed is None)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                following = [other for other, needed in jobs.items() if needed == job]
                error = future.exception()
                if error is None:
                    running |= start(following)
                    continue
                text = reason(error) if isinstance(error, UserError | OSError) else repr(error)
                failures[job] = text if isinstance(error, UserError) else f"{job.name}: {text}"
                bar.update(len(following))
                tqdm.write(f"failed: {failures[job]}")
    except KeyboardInterrupt:
        executor.cancel()
        raise
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the running jobs, which Ctrl-C has reached as well
        bar.close()
    return failures


class MainThread(Pool):
    """A pool that runs each call at once in the main thread, the only one in which Lightning can handle signals."""

    def submit(self, call: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments, **named))
        except Exception as error:  # as the other pool does
            future.set_exception(error)
        return future


# ---------------------------------------------------------------------- executors

TRAINER = ("fit", "test")
"""Commands of `warm` that run on all devices unless told otherwise."""
LIGHTNING_STARTS_PROCESSES = {"SLURM_JOB_NAME": "interactive"}
"""In a SLURM job of this name Lightning starts its processes itself, instead of taking itself for one of several."""
TIMEOUTS = 1000
"""The number of times that a SLURM job may run out of time: trainings last longer than most clusters allow."""


@dataclass(frozen=True)
class LocalProcesses(Executor):
    """Processes of the operating system on this machine, which share its cores and GPUs.

    Attributes:
        at_a_time: the number of processes at once.
        gpus: shares of the GPUs for CUDA_VISIBLE_DEVICES, of which each process takes one; None for all GPUs.
    """

    at_a_time: int
    gpus: Queue[str] | None = None

    @classmethod
    def sharing(cls, at_a_time: int) -> "LocalProcesses":
        """Processes that share the GPUs evenly, in shares of 1, 2, 4, … since other numbers do not divide a batch."""
        count = torch.cuda.device_count()
        if count < 2:
            return cls(at_a_time)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if len(visible) == count else [str(number) for number in range(count)]
        gpus: Queue[str] = Queue()
        for process in range(at_a_time):
            share = names[process % count :: at_a_time]
            gpus.put(",".join(share[: 1 << len(share).bit_length() - 1]))
        return cls(at_a_time, gpus)

    def run(self, arguments: list[str], folder: Path) -> int:
        threads = max(1, (os.cpu_count() or 1) // self.at_a_time)
        environment = {"OMP_NUM_THREADS": str(threads)}
        if not self.gpus:
            return warm_process(arguments, folder, environment)()
        share = self.gpus.get()
        try:
            return warm_process(arguments, folder, environment | {"CUDA_VISIBLE_DEVICES": share})()
        finally:
            self.gpus.put(share)

    def cancel(self) -> None:
        """Do nothing: Ctrl-C reaches the processes, which belong to this program's group."""


@dataclass(frozen=True)
class ThisProcess(Executor):
    """Calls inside this process, one after the other on one device, which saves the seconds that imports take."""

    def run(self, arguments: list[str], folder: Path) -> int:
        # For more devices Lightning would start this program again, which is not `warm`.
        one_device = ["--trainer.devices=1"] if arguments[0] in TRAINER else []
        with (
            (folder / LOG).open("a", encoding="utf-8") as log,
            chdir(BASE),
            redirect_stdout(log),
            redirect_stderr(log),
        ):
            code = warm([*arguments, *one_device])
        if code == 130:
            raise KeyboardInterrupt
        return code

    def cancel(self) -> None:
        """Do nothing: Ctrl-C has ended the call."""


@dataclass(frozen=True)
class Slurm(Executor):
    """Jobs of a SLURM cluster, by submitit; this program waits for them, for instance on a login node.

    Each job is one task, and Lightning starts a process for each of its GPUs. A training that runs out of time is put
    back into the queue, and goes on from its last checkpoint.

    Attributes:
        options: of submitit, such as slurm_partition, gpus_per_node, cpus_per_task or timeout_min.
        cluster: slurm, or local for processes of submitit on this machine.
        submitted: the jobs that were submitted.

    Raises:
        UserError: submitit is not installed, or the options ask for several tasks or nodes.
    """

    options: dict[str, Any] = field(default_factory=dict)
    cluster: str = "slurm"
    submitted: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        if find_spec("submitit") is None:
            raise UserError("--slurm needs submitit: pip install 'warm-lightning[experiments]'")
        for name in ("tasks_per_node", "slurm_ntasks_per_node", "nodes"):
            check(self.options.get(name, 1) == 1, f"--slurm: {name} must be 1, since a cell is one task on one machine")

    def run(self, arguments: list[str], folder: Path) -> int:
        import submitit

        process = warm_process(arguments, folder, {}, restartable=arguments[0] == "fit")  # others would begin anew
        try:
            executor = submitit.AutoExecutor(folder / "submitit", cluster=self.cluster, slurm_max_num_timeout=TIMEOUTS)
            # The job has to find this repository.
            setup = [*self.options.get("slurm_setup", []), f"export PYTHONPATH={shlex.quote(python_path())}"]
            given = {"name": folder.name, "timeout_min": 24 * 60} | self.options | {"slurm_setup": setup}
            executor.update_parameters(**given)
            job = executor.submit(process)
        except (RuntimeError, NameError, AssertionError, ValueError, submitit.core.utils.FailedJobError) as error:
            raise UserError(f"--slurm: {' '.join(str(error).split())}") from error
        self.submitted.append(job)
        try:
            return int(job.result())
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
            with (folder / LOG).open("a", encoding="utf-8") as log:  # it was killed or ran out of time
                log.write(f"{job.stderr() or ''}{error}\nif its time was over, raise timeout_min in --slurm\n")
            return 1

    def wants_gpus(self) -> bool:
        """Whether the options ask for GPUs."""
        return any(word in name for name in self.options for word in ("gpu", "gres", "tres", "additional_parameters"))

    def cancel(self) -> None:
        for job in self.submitted:
            if not job.done():
                job.cancel()


def warm_process(
    arguments: list[str], folder: Path, environment: dict[str, str], restartable: bool = False
) -> LoggedProcess:
    """The process of a call of `warm`; see `LoggedProcess` and `RestartableProcess`."""
    command = (sys.executable, "-m", "warm_lightning.cli", *arguments)
    environment = {**LIGHTNING_STARTS_PROCESSES, "PYTHONPATH": python_path(), **environment}
    return (RestartableProcess if restartable else LoggedProcess)(command, folder, BASE, environment)


def python_path() -> str:
    """The value of PYTHONPATH with which Python finds the repository's packages, if they are not installed."""
    return os.pathsep.join(str(path) for path in (CHECKOUT, os.environ.get("PYTHONPATH")) if path)
