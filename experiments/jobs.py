"""Calls of `warm`, each in a folder of its own with a note of what was asked for and whether it is done."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from experiments.executors import LOG, Executor, taken
from warm_lightning.errors import UserError, check
from warm_lightning.pictures import write_file

NOTE = "job.json"
PART = 1 << 20


def digest(path: Path) -> str | None:
    """SHA-256 of a file; None if it is not there."""
    if not path.is_file():
        return None
    known = path.stat()
    return _digest(path, known.st_mtime_ns, known.st_size)


@cache
def _digest(path: Path, changed: int, size: int) -> str:
    # Checkpoints are gigabytes, and several jobs ask for each.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str | None:
    """Size, beginning and end of a file, which may be of many gigabytes; None if it is not there.

    The end of a zip lists checksums of what is in it.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        size = file.seek(0, 2)
        parts = []
        for start in (0, max(0, size - PART)):
            file.seek(start)
            parts.append(file.read(PART))
    return f"{size}-{hashlib.sha256(b''.join(parts)).hexdigest()[:16]}"


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
