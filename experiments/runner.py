"""Where calls of `warm` run: processes of this machine, this process, or a SLURM cluster."""

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import Executor as Pool
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from tqdm import tqdm

from experiments.identity import REPOSITORY, digest, fingerprint
from warm_lightning.cli import main as warm
from warm_lightning.errors import UserError, check
from warm_lightning.records import machine, write_file

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


def circumstances(executor: Executor) -> dict[str, Any]:
    """The machine, versions and commit that jobs run with, for their notes."""
    here = machine("cuda" if torch.cuda.is_available() else "cpu")
    device = here.get("gpu", f"{here['cores']} cores of {here['cpu']}")
    if isinstance(executor, Slurm):  # whose machines are others than this one
        device = f"cluster {executor.cluster}, {executor.options}"
    return {"machine": device} | {name: here[name] for name in ("package_version", "torch_version", "git_commit")}


NOTE = "job.json"


@dataclass(frozen=True)
class Job:
    """A call of `warm`.

    Attributes:
        name: for people.
        arguments: the command and its options.
        folder: where it writes.
        makes: a file in the folder without which it is not done.
        needs: a file that it works with, if any: it runs again when that has changed.
        meaning: gives JSON of all else that its result depends on; asked only of what may be done, since it takes time.
        images: gives the file with the images that it works with, if they are in one.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    makes: str
    needs: Path | None = None
    meaning: Callable[[], str] = field(default=lambda: "{}", compare=False)
    images: Callable[[], Path | None] = field(default=lambda: None, compare=False)

    def note(self) -> dict[str, Any]:
        """What is known of earlier runs."""
        path = self.folder / NOTE
        try:
            return dict(json.loads(path.read_text())) if path.exists() else {}
        except ValueError as error:
            raise UserError(f"{path}: is no JSON ({error}): delete the folder {self.folder}") from error

    def wanted(self) -> dict[str, Any]:
        """What a run's note must say for it to count."""
        wanted = {"meaning": json.loads(self.meaning())}
        if self.needs:
            wanted["needs"] = digest(self.needs)
        if images := self.images():
            wanted["images"] = fingerprint(images)
        return wanted

    def same(self, note: dict[str, Any]) -> bool:
        """Whether a note is of this job. What it worked with may have been removed since, to save space."""
        wanted = self.wanted()
        for name in ("needs", "images"):  # of which the training's name and the file's, in its meaning, are left
            if wanted.get(name, "there") is None:
                wanted.pop(name)
        return all(note.get(name) == value for name, value in wanted.items())

    def done(self) -> bool:
        """Whether it has run with these options, on those files, to its end."""
        note = self.note()
        return bool(note.get("done")) and (self.folder / self.makes).exists() and self.same(note)

    def run(self, executor: Executor, about: dict[str, Any]) -> None:
        """Run it, unless that was done before; on from where it was stopped, or anew where what was asked has changed.

        What was found in the folder then is kept beside it.

        Args:
            executor: where.
            about: what else to note, such as the commit.

        Raises:
            UserError: if it fails.
        """
        if self.done():
            return
        note = self.note()
        if not self.same(note):
            self.set_aside()
            note = self.wanted()
        if note.get("done") or "seconds" not in note:  # what was done is gone, and done once more
            note["seconds"] = 0.0
        note |= {**about, "done": False}
        self.write(note)
        began = time.perf_counter()
        try:
            code = executor.call(list(self.arguments), self.folder)
        finally:
            note["seconds"] = round(note["seconds"] + time.perf_counter() - began, 1)
            self.write(note)
        lines = (self.folder / LOG).read_text().strip().splitlines()
        reason = f"exit code {code}, {lines[-1] if lines else 'no output'}"
        made = (self.folder / self.makes).exists()
        check(
            code == 0 and made,
            f"{self.name}: `warm {self.arguments[0]}` failed ({reason if code else f'without {self.makes}'}); see "
            f"{self.folder / LOG}",
        )
        self.write({**note, "done": True})

    def set_aside(self) -> None:
        """Rename a folder that holds something else, when nobody works in it any more."""
        if not self.folder.exists():
            return
        number = 1
        while (place := self.folder.with_name(f"{self.folder.name}.replaced-{number}")).exists():
            number += 1
        with taken(self.folder):
            self.folder.rename(place)

    def write(self, note: dict[str, Any]) -> None:
        """Keep the note."""
        write_file(self.folder / NOTE, json.dumps(note, indent=2).encode())


class Serial(Pool):
    """A pool of one: this thread, in which Lightning may listen to signals."""

    def submit(self, call: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments, **named))
        except Exception as error:  # as a thread would
            future.set_exception(error)
        return future


def run_all(
    jobs: Mapping[Job, Job | None], executor: Executor, at_a_time: int, about: dict[str, Any], title: str
) -> dict[Job, str]:
    """Run jobs, each when the one it needs is done.

    Args:
        jobs: each with the job it needs, itself one of them, or None.
        executor: where they run.
        at_a_time: how many at once.
        about: what to note of all of them.
        title: of the progress bar.

    Returns:
        Why some failed, by job; what needs them is not tried.
    """
    failed: dict[Job, str] = {}
    pool: Pool = Serial() if isinstance(executor, ThisProcess) else ThreadPoolExecutor(at_a_time)
    bar = tqdm(total=len(jobs), desc=title, unit=" runs")

    def start(ready: Iterable[Job]) -> dict[Future[None], Job]:
        started = {}
        for job in ready:
            future = pool.submit(job.run, executor, about)
            future.add_done_callback(partial(show, job.name))
            started[future] = job
        return started

    def show(name: str, _: Future[None]) -> None:
        bar.set_postfix_str(name, refresh=False)
        bar.update()

    try:
        waiting = start(job for job, needed in jobs.items() if needed is None)
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                following = [child for child, needed in jobs.items() if needed == job]
                error = future.exception()
                if error is None:
                    waiting |= start(following)
                    continue
                failed[job] = str(error) if isinstance(error, UserError) else f"{job.name}: {error!r}"
                bar.update(len(following))
                tqdm.write(f"failed: {failed[job]}")
    except KeyboardInterrupt:
        executor.cancel()
        raise
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, which the running ones have had too
        bar.close()
    return failed


@dataclass(frozen=True)
class Restartable:
    """A process that may be ended at any time and started again, as `warm fit` may.

    submitit puts such a job back into the queue when its time is over, or when another one takes its place.

    Attributes:
        command: of the process.
        cwd: its working directory.
    """

    command: tuple[str, ...]
    cwd: str

    def __call__(self) -> int:
        """Run it; gives its exit code."""
        return subprocess.call(self.command, cwd=self.cwd)

    def checkpoint(self) -> Any:
        """What submitit is to submit then: the same."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)
