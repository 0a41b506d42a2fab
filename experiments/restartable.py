"""What a SLURM job of a training does: a process, which is started again where the job ran out of time."""

import subprocess
from dataclasses import dataclass
from typing import Any


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
