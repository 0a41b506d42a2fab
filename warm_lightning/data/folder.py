"""Any folder or zip of images."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from warm_lightning.data.base import ImageDataModule
from warm_lightning.data.decode import AS_IT_IS, Framing
from warm_lightning.data.image_set import ImageSet
from warm_lightning.data.layout import Listing, list_images
from warm_lightning.data.lmdb_reader import LMDBReader
from warm_lightning.data.readers import Reader
from warm_lightning.data.sources import open_reader
from warm_lightning.data.stored import read_images, store_images
from warm_lightning.errors import check


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


class ImageFolder(ImageDataModule):
    """Images (png, jpg, jpeg, webp, bmp) anywhere below a folder or in a zip, in the order of their names.

    First-level folders are classes; images in no folder have none. Where the first-level folders are `train`
    and one of `test`, `val`, `valid`, `validation` and `held_out`, these are the splits. A folder around
    everything is looked through. With a `dataset.json`, which EDM's data sets have, the folders mean nothing:
    that file gives the classes, and there are no splits.

    Args:
        path: the folder or zip.
        held_out_path: a folder or zip of held-out images, with the same classes; instead of `path`'s.
        resolution: height and width that the images must have; by default any.
        cache: whether every process keeps all images in memory. That is fastest, and the default because most
            sets fit: 70,000 images of 64×64 are 0.86 GB. Without, the loader's workers decode each image when
            it is needed: training sees the same bits, and needs `num_workers`.
        **kwargs: those of `ImageDataModule`.
    """

    lmdb_framing: ClassVar[Framing] = AS_IT_IS
    """What is done to the images of an LMDB, which are of many sizes in LSUN."""

    def __init__(
        self,
        path: str,
        held_out_path: str | None = None,
        resolution: int | None = None,
        cache: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check(resolution is None or resolution >= 1, f"resolution must be at least 1, not {resolution}")
        self.path = path
        self.held_out_path = held_out_path
        self.required_resolution = resolution
        self.cache = cache

    @cached_property
    def source(self) -> Source:
        """What `path` leads to, listed once."""
        self.check_path()
        return Source.open(self.path)

    def check_path(self) -> None:
        """Raise UserError where nothing is at `path` and it is known how to come by it."""

    def prepare_data(self) -> None:
        """List what is at `path`, so that what is missing is said early."""
        _ = self.source

    def load(self, split: str) -> ImageSet | None:
        """Read a split, and only that."""
        source = self.source
        if split == "held_out" and self.held_out_path is not None:
            source = Source.open(self.held_out_path, source.splits["train"].class_names)
            # The other source may be a plain folder, or have splits of its own.
            split = "held_out" if "held_out" in source.splits else "train"
        return source.read(split, self.required_resolution, cache=self.cache, lmdb_framing=self.lmdb_framing)
