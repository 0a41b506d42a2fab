"""Operating-system processes of jobs, each of which holds the lock of its folder and writes to the log there.

This imports nothing that takes time, since the node of a cluster imports it before the process can start.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from warm_lightning.paths import INHERITED, folder_lock

LOG = "log.txt"


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
        with (self.folder / LOG).open("a", encoding="utf-8") as log, awaited_lock(self.folder) as lock:
            return subprocess.run(
                self.command,
                cwd=self.working_directory,
                env=os.environ | self.environment | {INHERITED: str(lock)},
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
def awaited_lock(folder: Path) -> Iterator[int]:
    """Hold the lock of a folder, see `folder_lock`, waiting until a process that outlived its runner ends."""
    waiting = f"waiting for a process of an earlier run, which is still at work in {folder}"
    with folder_lock(folder, before_waiting=lambda: tqdm.write(waiting)) as lock:
        yield lock
