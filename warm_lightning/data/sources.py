"""Opening of a path as a source of images: the right reader, the list of its images, and its splits."""

import stat
from dataclasses import dataclass
from pathlib import Path

from warm_lightning.data.decode import UNCHANGED, CropResize
from warm_lightning.data.image_set import ImageSet, image_files, read_images
from warm_lightning.data.listing import DATASET_JSON, Listing, list_images
from warm_lightning.data.readers import (
    LMDB_FILE,
    CIFARArchive,
    FolderReader,
    LMDBReader,
    Reader,
    ZipReader,
    cannot_read,
    is_cifar_folder,
)
from warm_lightning.errors import UserError, check
from warm_lightning.paths import expand


def open_reader(path: str | Path) -> Reader:
    """Make a reader for the folder, zip, LMDB or Python archive of CIFAR-10 at `path`.

    Raises:
        UserError: there is none of these at `path`, or it cannot be read.
    """
    path = expand(path)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            return _folder_reader(path)
        magic = b""
        if stat.S_ISREG(kind):  # opening a pipe would block until something writes to it
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
    if stat.S_ISREG(kind) and path.suffix == LMDB_FILE.suffix:
        return _folder_reader(path.parent) if path.name == LMDB_FILE.name else LMDBReader(path)
    raise UserError(f"{path} is neither a folder nor a zip: unpack it into a folder or pack it as a zip")


def source_name(path: str | Path) -> str:
    """The text that identifies a source in a record: the name of a file without its folder, or the path of a folder."""
    path = expand(path)
    return str(path.resolve()) if path.is_dir() else path.name


def is_missing(path: str | Path) -> bool:
    """Whether there is nothing at a path; false if this cannot be determined, for example without permission."""
    try:
        expand(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # `open_reader` reports it
        return False
    return False


def _folder_reader(path: Path) -> Reader:
    if (path / LMDB_FILE).is_file():
        kind: type[LMDBReader | CIFARArchive] = LMDBReader
    elif is_cifar_folder(path):
        kind = CIFARArchive
    else:
        return FolderReader(path)
    metadata = path / DATASET_JSON
    check(not metadata.exists(), f"{metadata} lies beside an LMDB or CIFAR-10's archive, which need none: remove it")
    return kind(path)


@dataclass(frozen=True)
class Source:
    """A folder, zip, LMDB or archive with its list of images, which may take long to make.

    Attributes:
        reader: gives the files.
        splits: the images of "train", and of "held_out" if there is such a split.
    """

    reader: Reader
    splits: dict[str, Listing]

    @property
    def is_lmdb(self) -> bool:
        """Whether it is an LMDB."""
        return isinstance(self.reader, LMDBReader)

    @classmethod
    def open(cls, path: str | Path, classes: tuple[str, ...] | None = None) -> "Source":
        """Open the source at a path and list its images; raises as `open_reader` and `list_images` do.

        Args:
            path: the folder, zip, LMDB or archive.
            classes: the names of the classes if another source determines them; None for the source's own classes.
        """
        reader = open_reader(path)
        return cls(reader, list_images(reader, classes))

    def read(
        self, split: str, resolution: int | None = None, *, cache: bool = True, resize: CropResize = UNCHANGED
    ) -> ImageSet | None:
        """Read one split; None if there is no such split.

        Args:
            split: "train" or "held_out".
            resolution: height and width that the images must have; None for any.
            cache: whether to read all images into memory now, instead of each one when it is needed.
            resize: the cropping and resizing of each image.

        Raises:
            UserError: see `read_images` and `image_files`.
        """
        listing = self.splits.get(split)
        if listing is None:
            return None
        read = read_images if cache else image_files
        return ImageSet(read(self.reader, listing.names, resolution, resize), listing.labels, listing.class_names)
