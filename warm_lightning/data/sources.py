"""Which reader a path is for."""

from pathlib import Path

from warm_lightning.data.cifar_archive import CIFARArchive, holds_cifar
from warm_lightning.data.lmdb_reader import DATA_FILE, LMDBReader
from warm_lightning.data.readers import FolderReader, Reader, ZipReader, cannot_read
from warm_lightning.errors import UserError


def open_reader(path: str | Path) -> Reader:
    """A reader for the folder, zip, LMDB or Python archive of CIFAR-10 at `path`.

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    path = Path(path).expanduser()
    try:
        path.stat()
        if path.is_dir():
            return _folder(path)
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
    if path.suffix == DATA_FILE.suffix:
        return LMDBReader(path)
    raise UserError(f"{path} is neither a folder nor a zip: unpack it into a folder or pack it as a zip")


def _folder(path: Path) -> Reader:
    if (path / DATA_FILE).exists():
        return LMDBReader(path)
    return CIFARArchive(path) if holds_cifar(path) else FolderReader(path)
