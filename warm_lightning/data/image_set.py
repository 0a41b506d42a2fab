"""A set of images in memory."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, in a fixed order.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: class indices, int64 [N]; zeros where there are no classes.
        class_names: the name of each class; empty where there are no classes.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, index: Tensor) -> Tensor:
        """Images by index, int64 [b] → uint8 [b, C, H, W], a copy."""
        # index_select copies whole images, and is many times as fast as indexing with brackets.
        return self.images.index_select(0, index)
