"""Where image files are stored, seen as a flat list of names."""

import os
import stat
import threading
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NoReturn

from warm_lightning.errors import UserError, check

MAX_FILE = 256 * 2**20
"""Bytes of one file, unpacked, that are read at most: more is an accident or an attack, and no image."""


class Reader(ABC):
    """Files by name, from any thread; names are relative to `path`, with "/" between folders.

    Nothing is ever unpacked to disk. A reader may be used after a fork, and is pickled as its path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type["Reader"], tuple[Path]]:
        return type(self), (self.path,)

    @abstractmethod
    def names(self) -> list[str]:
        """All files, sorted: the same list for a folder and for a zip of it."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of a file. Raises `UserError` where it cannot be read or is larger than `MAX_FILE`."""

    def locate(self, name: str) -> str:
        """How to call a file in a message."""
        return f"{name} in {self.path}"

    def check_size(self, name: str, size: int) -> None:
        """Raise `UserError` for a file of more than `MAX_FILE` bytes."""
        megabytes = f"{size / 2**20:.0f} MB, more than the {MAX_FILE >> 20} MB"
        check(size <= MAX_FILE, f"{self.locate(name)} holds {megabytes} that a file may: remove it")


class FolderReader(Reader):
    """Files below a folder; links to folders are followed."""

    def names(self) -> list[str]:
        def unreadable(error: OSError) -> NoReturn:
            raise cannot_read(error.filename, error) from error

        names = []
        around: dict[str, frozenset[tuple[int, int]]] = {str(self.path): frozenset()}  # folders that a folder is in
        for folder, folders, files in os.walk(self.path, onerror=unreadable, followlinks=True):
            try:
                status = os.stat(folder)
            except OSError as error:
                unreadable(error)
            above, this = around.pop(folder), (status.st_dev, status.st_ino)
            check(this not in above, f"{folder} is a link to a folder that it is in: remove it")
            around |= {os.path.join(folder, name): above | {this} for name in folders}
            below = Path(folder).relative_to(self.path)
            names += [(below / file).as_posix() for file in files]
        return sorted(names)

    def read(self, name: str) -> bytes:
        try:
            with open(self.path / name, "rb", opener=_open_at_once) as file:
                regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                check(regular, f"{self.locate(name)} is a pipe or device, no file: remove it")
                content = file.read(MAX_FILE + 1)
        except OSError as error:
            raise cannot_read(self.locate(name), error) from error
        self.check_size(name, len(content))
        return content

    def locate(self, name: str) -> str:
        return f"{self.path / name}"


class ZipReader(Reader):
    """Members of a zip, read in place.

    Raises:
        UserError: it is no zip, is damaged, or has a member that points out of it or is there twice.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # ZipFile counts its open members without a lock: two reads at once could close the file.
        self._lock = threading.Lock()
        self._archive, self._owner = _open_zip(path), os.getpid()
        known = set()
        for name in self._archive.namelist():
            check(name not in known, f"{path} has two members {name!r}: leave only the right one")
            known.add(name)
            parts = name.replace("\\", "/").split("/")
            if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
                raise UserError(f"{path} has a member {name!r}, which points out of the zip: do not trust this file")

    def names(self) -> list[str]:
        return sorted(info.filename for info in self._archive.infolist() if not info.is_dir())

    def read(self, name: str) -> bytes:
        with self._lock:
            if self._owner != os.getpid():  # processes that forked share the position in an open file
                self._archive, self._owner = _open_zip(self.path), os.getpid()
            info = self._archive.getinfo(name)
            self.check_size(name, info.file_size)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{self.locate(name)} is compressed by another method than deflate: pack the zip again")
            try:
                with self._archive.open(info) as member:
                    # Without a number, zipfile unpacks all there is, whatever the directory has declared.
                    return member.read(info.file_size + 1)
            except Exception as error:  # bad CRC, bad stream, encryption, unknown compression, failing disk, …
                message = f"{self.locate(name)} cannot be read ({reason(error)}): make or download the zip again"
                raise UserError(message) from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for a writer


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory makes zipfile raise nearly anything
        message = f"{path} is a truncated or corrupt zip ({reason(error)}): copy or download it again"
        raise UserError(message) from error


def cannot_read(where: str | Path, error: OSError) -> UserError:
    """The error for a file or folder that the operating system does not let us read."""
    return UserError(f"{where} cannot be read ({reason(error)}): check that it exists and its permissions")


def reason(error: Exception) -> str:
    """What an exception says, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
