"""FFHQ (Karras et al. 2019): 70,000 photographs of faces, here 64×64."""

from typing import Any

from warm_lightning.data.folder import ImageFolder
from warm_lightning.data.image_set import ImageSet, check_rgb
from warm_lightning.data.sources import is_missing
from warm_lightning.errors import check


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
