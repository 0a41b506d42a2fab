"""Any folder or zip of images."""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from warm_lightning.data.datamodule import ImageDataModule
from warm_lightning.data.decode import AS_IT_IS, Framing
from warm_lightning.data.image_set import ImageSet, check_rgb
from warm_lightning.data.listing import DATASET_JSON
from warm_lightning.data.readers import reason
from warm_lightning.data.sources import Source, is_missing
from warm_lightning.errors import UserError, check
from warm_lightning.rng import key


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


NUM_DIGITS = 1797


class Digits(ImageDataModule):
    """1,797 grey 8×8 images of digits in 10 classes, from scikit-learn's `load_digits`.

    Their 17 grey levels v in 0 … 16 become round(v·255/16).

    Args:
        held_out: how many images to keep from training, always the same ones; 0 … 1,796.
        **kwargs: those of `ImageDataModule`.
    """

    def __init__(self, *, held_out: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check(0 <= held_out < NUM_DIGITS, f"held_out must be from 0 to {NUM_DIGITS - 1}, not {held_out}")
        self.held_out = held_out

    def load(self, split: str) -> ImageSet | None:
        """Images of a split, in scikit-learn's order."""
        if split == "held_out" and self.held_out == 0:
            return None
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = torch.randperm(NUM_DIGITS, generator=torch.Generator().manual_seed(key(0, "digits")))
        kept = NUM_DIGITS - self.held_out
        index = (order[:kept] if split == "train" else order[kept:]).sort().values
        images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]
        return ImageSet(images[index], torch.from_numpy(digits.target)[index], tuple("0123456789"))


class FFHQ(ImageFolder):
    """RGB images of 64×64 without classes, in EDM's format.

    Args:
        path: the zip, or a folder, that `warm dataset` or EDM's tool has made; or any of 64×64 images.
        held_out_path: the same of held-out images.
        cache: see `ImageFolder`; in memory by default, 0.86 GB a process.
        **kwargs: those of `ImageDataModule`.
    """

    def __init__(self, path: str, held_out_path: str | None = None, cache: bool = True, **kwargs: Any) -> None:
        super().__init__(path, held_out_path, resolution=64, cache=cache, **kwargs)

    def check_path(self) -> None:
        """Say how to come by the images."""
        check(
            not is_missing(self.path),
            f"{self.path}: no such file: download FFHQ's images1024x1024 and make it with "
            f"`warm dataset images1024x1024 {self.path} --resolution 64`",
        )

    def load(self, split: str) -> ImageSet | None:
        """Read a split, and only that."""
        return check_rgb(super().load(split), f"{self.path}: FFHQ's images are RGB")


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


class CIFAR10(ImageDataModule):
    """50,000 training images, and 10,000 test images as the held-out ones; RGB, 32×32.

    Args:
        path: folder or zip with `train/<class>/*.png|jpg` and `test/<class>/*`, the archive for Python, or a zip in
            EDM's format of the training images; None for torchvision's files.
        root: folder for torchvision's files, which are downloaded where they are not there yet.
        held_out_path: test images beside a `path` in EDM's format, which has no splits.
        cache: see `ImageFolder`; in memory by default, 0.15 GB a process. torchvision's files always are.
        **kwargs: those of `ImageDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        root: str = "data",
        held_out_path: str | None = None,
        cache: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.root = root
        self.files = None if path is None else ImageFolder(path, held_out_path, resolution=32, cache=cache)

    def prepare_data(self) -> None:
        """Download to `root` where that is needed. Lightning calls this in one process only."""
        if self.files is not None:
            self.files.prepare_data()
            return
        from torchvision import datasets

        try:
            datasets.CIFAR10(Path(self.root).expanduser(), download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CIFAR-10 cannot be downloaded to {self.root} ({reason(error)}): put "
                f"{datasets.CIFAR10.filename} there, or set `path` to a folder or zip of its images"
            ) from error

    def load(self, split: str) -> ImageSet | None:
        """Read a split, and only that; in EDM's format the held-out one may not exist."""
        if self.files is None:
            return self._load_torchvision(split)
        found = self.files.load(split)
        if found is None and DATASET_JSON not in self.files.source.reader.names():
            raise UserError(f"{self.path} has no test images: it must hold the folders train and test")
        return check_rgb(found, f"{self.path}: CIFAR-10's images are RGB")

    def _load_torchvision(self, split: str) -> ImageSet:
        from torchvision import datasets

        try:
            data = datasets.CIFAR10(Path(self.root).expanduser(), train=split == "train")
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CIFAR-10 is not in {self.root} ({reason(error)}): call prepare_data() to download it, or "
                "set `path` to a folder or zip of its images"
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return ImageSet(images, torch.tensor(data.targets), tuple(data.classes))
