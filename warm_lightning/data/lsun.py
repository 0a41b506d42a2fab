"""LSUN (Yu et al. 2015): 126,227 photographs of churches, here 128×128."""

from typing import Any, ClassVar

from warm_lightning.data.decode import Framing
from warm_lightning.data.folder import ImageFolder
from warm_lightning.data.image_set import ImageSet, check_rgb
from warm_lightning.data.sources import is_missing
from warm_lightning.errors import check


class LSUNChurch(ImageFolder):
    """RGB images of 128×128 without classes, from LSUN's own LMDB or in EDM's format.

    Images of an LMDB, whose shorter side has 256 pixels, are cropped to their centre and resampled to 128 by
    Lanczos' filter whenever they are read. `warm dataset` does the same once and for all, to the same bits.

    Args:
        path: the folder `church_outdoor_train_lmdb`, or a zip or folder of 128×128 images.
        held_out_path: the same of held-out images, such as `church_outdoor_val_lmdb`.
        cache: see `ImageFolder`. Not in memory by default, where they would take 6.2 GB in every process.
        **kwargs: those of `ImageDataModule`.
    """

    lmdb_framing: ClassVar[Framing] = Framing("center", 128)

    def __init__(self, path: str, held_out_path: str | None = None, cache: bool = False, **kwargs: Any) -> None:
        super().__init__(path, held_out_path, resolution=128, cache=cache, **kwargs)

    def check_path(self) -> None:
        """Say how to come by the images."""
        check(
            not is_missing(self.path),
            f"{self.path}: no such folder: download LSUN's church_outdoor_train_lmdb.zip, unpack it, and give the "
            "folder church_outdoor_train_lmdb",
        )

    def load(self, split: str) -> ImageSet | None:
        """Read a split, and only that."""
        return check_rgb(super().load(split), f"{self.path}: LSUN's images are RGB")
