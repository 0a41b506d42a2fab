"""Where image files are stored: a folder or a zip, seen as a flat list of names."""

import os
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from warm_lightning.errors import UserError


class Reader(ABC):
    """Files by name, from any thread; names are relative to `path`, with "/" between folders."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def names(self) -> list[str]:
        """All files, sorted: the same list for a folder and for a zip of it."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of a file. Raises `UserError` where it cannot be read."""

    @abstractmethod
    def locate(self, name: str) -> str:
        """How to call a file in a message."""


class FolderReader(Reader):
    """Files below a folder; links to folders are followed."""

    def names(self) -> list[str]:
        def unreadable(error: OSError) -> NoReturn:
            raise cannot_read(error.filename, error) from error

        names = []
        for folder, _, files in os.walk(self.path, onerror=unreadable, followlinks=True):
            below = Path(folder).relative_to(self.path)
            names += [(below / file).as_posix() for file in files]
        return sorted(names)

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise cannot_read(self.locate(name), error) from error

    def locate(self, name: str) -> str:
        return f"{self.path / name}"


class ZipReader(Reader):
    """Members of an open zip, read in place."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        super().__init__(path)
        self._archive = archive
        # ZipFile counts its open members without a lock: two reads at once could close the file.
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        return sorted({info.filename for info in self._archive.infolist() if not info.is_dir()})

    def read(self, name: str) -> bytes:
        try:
            with self._lock:
                return self._archive.read(name)
        except Exception as error:  # bad CRC, bad stream, encryption, unknown compression, failing disk, …
            message = f"{self.locate(name)} cannot be read ({reason(error)}): make or download the zip again"
            raise UserError(message) from error

    def locate(self, name: str) -> str:
        return f"{name} in {self.path}"


@contextmanager
def open_reader(path: str | Path) -> Iterator[Reader]:
    """A reader for the folder or zip at `path`. Raises `UserError` where it is neither or unreadable."""
    path = Path(path).expanduser()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such file or folder: set `path` to a folder or zip of images") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    if path.is_dir():
        yield FolderReader(path)
    else:
        with _open_zip(path) as archive:
            yield ZipReader(path, archive)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        with path.open("rb") as file:
            magic = file.read(2)
    except OSError as error:
        raise cannot_read(path, error) from error
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory makes zipfile raise nearly anything
        if magic == b"PK":
            message = f"{path} is a truncated or corrupt zip ({reason(error)}): copy or download it again"
        else:
            message = f"{path} is neither a folder nor a zip: unpack it into a folder or pack it as a zip"
        raise UserError(message) from error


def cannot_read(where: str | Path, error: OSError) -> UserError:
    """The error for a file or folder that the operating system does not let us read."""
    return UserError(f"{where} cannot be read ({reason(error)}): check that it exists and its permissions")


def reason(error: Exception) -> str:
    """What an exception says, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
