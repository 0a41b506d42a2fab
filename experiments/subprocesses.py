"""Operating-system processes of jobs, each of which holds the lock of its folder and writes to the log there.

This imports nothing that takes time, since the node of a cluster imports it before the process can start.
"""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

LOG = "log.txt"
LOCK = ".lock"


@dataclass(frozen=True)
class LoggedProcess:
    """A process that holds the lock of a folder until it ends, with its output in the folder's log.

    Attributes:
        command: the program and its arguments.
        folder: with lock and log.
        working_directory: of the process.
        environment: variables that it has beside this process's.
    """

    command: tuple[str, ...]
    folder: Path
    working_directory: Path
    environment: dict[str, str]

    def __call__(self) -> int:
        """Run it; returns its exit code."""
        with (self.folder / LOG).open("a") as log, folder_lock(self.folder) as lock:
            return subprocess.run(
                self.command,
                cwd=self.working_directory,
                env=os.environ | self.environment,
                stdout=log,
                stderr=log,
                check=False,
                pass_fds=[lock],
            ).returncode


class RestartableProcess(LoggedProcess):
    """A process that may be ended at any time and started again, as `warm fit` may.

    submitit puts it back into the queue when its time is over, or when another job takes its place.
    """

    def checkpoint(self) -> Any:
        """Return what submitit is to submit then: the same process."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


@contextmanager
def folder_lock(folder: Path) -> Iterator[int]:
    """Hold the lock of a folder, waiting until no other process does; gives its file descriptor.

    A process to which the descriptor is passed on holds the lock until it ends, even if this runner is killed before:
    another runner then waits for it.
    """
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"waiting for a process of an earlier run, which is still at work in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()
