"""CIFAR-10 (Krizhevsky 2009): 60,000 photographs of 32×32 pixels in 10 classes."""

from pathlib import Path
from typing import Any

import torch

from warm_lightning.data.base import ImageDataModule
from warm_lightning.data.edm_format import DATASET_JSON
from warm_lightning.data.folder import ImageFolder
from warm_lightning.data.image_set import ImageSet, check_rgb
from warm_lightning.data.readers import reason
from warm_lightning.errors import UserError


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
