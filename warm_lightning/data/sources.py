"""Which reader a path is for."""

import stat
from dataclasses import dataclass
from pathlib import Path

from warm_lightning.data.decode import AS_IT_IS, Framing
from warm_lightning.data.image_set import ImageSet, read_images, store_images
from warm_lightning.data.listing import Listing, list_images
from warm_lightning.data.readers import (
    DATA_FILE,
    CIFARArchive,
    FolderReader,
    LMDBReader,
    Reader,
    ZipReader,
    cannot_read,
    holds_cifar,
    reason,
)
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


@dataclass(frozen=True)
class Source:
    """Somewhere that images are, and which: listing them may take long."""

    reader: Reader
    splits: dict[str, Listing]

    @classmethod
    def open(cls, path: str | Path, classes: tuple[str, ...] | None = None) -> "Source":
        """The source at a path, with the classes named or its own. Raises as `open_reader` and `list_images` do."""
        reader = open_reader(path)
        return cls(reader, list_images(reader, classes))

    def read(
        self, split: str, resolution: int | None = None, *, cache: bool = True, lmdb_framing: Framing = AS_IT_IS
    ) -> ImageSet | None:
        """Read a split; None for a held-out split that does not exist.

        Args:
            split: "train" or "held_out".
            resolution: height and width that the images must have; None for any.
            cache: whether to read all images into memory, instead of each when it is asked for.
            lmdb_framing: what is done to the images of an LMDB.

        Raises:
            UserError: see `read_images`.
        """
        listing = self.splits.get(split)
        if listing is None:
            return None
        framing = lmdb_framing if isinstance(self.reader, LMDBReader) else AS_IT_IS
        read = read_images if cache else store_images
        return ImageSet(read(self.reader, listing.names, resolution, framing), listing.labels, listing.class_names)


def read_split(path: str | Path, split: str, *, cache: bool = True) -> ImageSet | None:
    """Read a split of the source at a path. Raises as `Source.open` and `Source.read` do."""
    return Source.open(path).read(split, cache=cache)
