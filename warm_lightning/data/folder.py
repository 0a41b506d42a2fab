"""Any folder or zip of images."""

from pathlib import Path
from typing import Any

from warm_lightning.data.base import ImageDataModule
from warm_lightning.data.decode import decode_images
from warm_lightning.data.image_set import ImageSet
from warm_lightning.data.layout import find_classes, find_labels, find_splits
from warm_lightning.data.readers import open_reader
from warm_lightning.errors import check


def read_split(
    path: str | Path, split: str, resolution: int | None = None, classes: tuple[str, ...] | None = None
) -> ImageSet | None:
    """Read a split of a folder or zip; None for a held-out split that does not exist.

    Args:
        path: the folder or zip.
        split: "train" or "held_out".
        resolution: height and width that the images must have; None for any.
        classes: names of the class folders; None for those of the training images.

    Raises:
        UserError: as `open_reader`, `find_splits`, `find_labels` and `decode_images` do.
    """
    with open_reader(path) as reader:
        splits = find_splits(reader)
        if split not in splits:
            return None
        if classes is None:
            classes = find_classes(reader, splits["train"])
        labels = find_labels(reader, splits[split], classes)
        images = decode_images(reader, [file.name for file in splits[split]], resolution)
    return ImageSet(images, labels, classes)


class ImageFolder(ImageDataModule):
    """Images (png, jpg, jpeg, webp, bmp) anywhere below a folder or in a zip, in the order of their names.

    First-level folders are classes; images in no folder have none. Where the first-level folders are `train`
    and one of `test`, `val`, `valid`, `validation` and `held_out`, these are the splits. A folder around
    everything is looked through.

    Args:
        path: the folder or zip.
        held_out_path: a folder or zip of held-out images, with the same class folders; instead of `path`'s.
        resolution: height and width that the images must have; by default any.
        **kwargs: those of `ImageDataModule`.
    """

    def __init__(
        self, path: str, held_out_path: str | None = None, resolution: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check(resolution is None or resolution >= 1, f"resolution must be at least 1, not {resolution}")
        self.path = path
        self.held_out_path = held_out_path
        self.required_resolution = resolution

    def load(self, split: str) -> ImageSet | None:
        """Read a split, and only that."""
        if split == "train" or self.held_out_path is None:
            return read_split(self.path, split, self.required_resolution)
        # The other source may be a plain folder, or have splits of its own.
        classes = self.train_images().class_names
        for its_split in ("held_out", "train"):
            found = read_split(self.held_out_path, its_split, self.required_resolution, classes)
            if found is not None:
                return found
        return None
