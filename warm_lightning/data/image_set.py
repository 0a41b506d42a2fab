"""A set of images."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from warm_lightning.data.stored import StoredImages
from warm_lightning.errors import check


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, in a fixed order.

    Attributes:
        images: uint8 [N, C, H, W] in memory, or the files that they are decoded from when they are asked for.
        labels: class indices, int64 [N]; zeros where there are no classes.
        class_names: the name of each class; empty where there are no classes.
    """

    images: Tensor | StoredImages
    labels: Tensor
    class_names: tuple[str, ...]

    @classmethod
    def without_classes(cls, images: Tensor) -> "ImageSet":
        """Images in memory, uint8 [N, C, H, W], that have none."""
        return cls(images, torch.zeros(len(images), dtype=torch.int64), ())

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, index: Tensor) -> Tensor:
        """Images by index, int64 [b] → uint8 [b, C, H, W], a copy. Raises as `StoredImages.take` does."""
        if isinstance(self.images, StoredImages):
            return self.images.take(index)
        # index_select copies whole images, and is many times as fast as indexing with brackets.
        return self.images.index_select(0, index)

    def all(self) -> Tensor:
        """All images in memory, uint8 [N, C, H, W]; not to be written to."""
        return self.images.take(torch.arange(len(self))) if isinstance(self.images, StoredImages) else self.images

    def as_rgb(self) -> "ImageSet":
        """Grey images with three equal channels."""
        images = self.images
        return replace(self, images=images.as_rgb() if isinstance(images, StoredImages) else images.repeat(1, 3, 1, 1))


def check_rgb(images: ImageSet | None, message: str) -> ImageSet | None:
    """The images; raises UserError if there are some and they are grey."""
    check(images is None or images.shape[0] == 3, f"{message}, not grey: check the path")
    return images
