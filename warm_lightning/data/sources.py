"""Which reader a path is for."""

import stat
from pathlib import Path

from warm_lightning.data.cifar_archive import CIFARArchive, holds_cifar
from warm_lightning.data.lmdb_reader import DATA_FILE, LMDBReader
from warm_lightning.data.readers import FolderReader, Reader, ZipReader, cannot_read, reason
from warm_lightning.errors import UserError


def open_reader(path: str | Path) -> Reader:
    """A reader for the folder, zip, LMDB or Python archive of CIFAR-10 at `path`.

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    path = expand(path)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            return _folder(path)
        magic = b""
        if stat.S_ISREG(kind):  # opening a pipe would wait for a writer
            with path.open("rb") as file:
                magic = file.read(2)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such file or folder: give the path of a folder or zip of images") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    if magic == b"PK":
        return ZipReader(path)
    if magic == b"\x1f\x8b":
        return CIFARArchive(path)
    if stat.S_ISREG(kind) and path.suffix == DATA_FILE.suffix:
        return LMDBReader(path)
    raise UserError(f"{path} is neither a folder nor a zip: unpack it into a folder or pack it as a zip")


def expand(path: str | Path) -> Path:
    """A path without `~`. Raises UserError where it can be none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # no such user
        raise UserError(f"{path}: {reason(error)} Give the whole path of a folder or zip of images") from error


def known_as(path: str | Path) -> str:
    """What tells a place from others: a file's name, wherever it is, and the whole path of a folder."""
    path = expand(path)
    return str(path.resolve()) if path.is_dir() else path.name


def is_missing(path: str | Path) -> bool:
    """Whether there is nothing at a path, as far as one may know."""
    try:
        expand(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # `open_reader` will say what it is
        return False
    return False


def _folder(path: Path) -> Reader:
    if (path / DATA_FILE).is_file():
        return LMDBReader(path)
    return CIFARArchive(path) if holds_cifar(path) else FolderReader(path)
