"""Sets of images of one size: in memory, or as files that are decoded when they are needed."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from warm_lightning.data.decode import (
    UNCHANGED,
    CropResize,
    as_array,
    count_channels,
    decode,
    huge_images_are_errors,
    image_size,
)
from warm_lightning.data.readers import Reader
from warm_lightning.distributed import progress
from warm_lightning.errors import check
from warm_lightning.images import dequantise
from warm_lightning.rng import key

# ---- files


@dataclass(frozen=True)
class ImageFiles:
    """Image files of one size, which are decoded each time that they are needed, in any process.

    Attributes:
        reader: where the files are.
        names: the files, at least one.
        size: height and width of every image after cropping and resizing.
        channels: 1 or 3; grey images among RGB ones get three equal channels.
        resize: the cropping and resizing of each image.
    """

    reader: Reader
    names: tuple[str, ...]
    size: int
    channels: int
    resize: CropResize = UNCHANGED

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape (N, C, H, W)."""
        return len(self.names), self.channels, self.size, self.size

    def as_rgb(self) -> "ImageFiles":
        """These images with three channels."""
        return replace(self, channels=3)

    def decode(self, index: Sequence[int]) -> list[Image.Image]:
        """Decode the images with these indices, in mode L for one channel and RGB for three.

        Raises:
            UserError: a file cannot be read or decoded, has more than 8 bits per channel or another size.
        """
        mode = "L" if self.channels == 1 else "RGB"
        with huge_images_are_errors():
            images = [decode(self.reader, self.names[i], self.size, self.names[0], self.resize) for i in index]
        return [image if image.mode == mode else image.convert(mode) for image in images]

    def take(self, index: Tensor) -> Tensor:
        """Decode the images with these indices, int64 [b] → uint8 [b, C, H, W]; raises as `decode` does."""
        images = np.empty((len(index), *self.shape[1:]), np.uint8)
        for i, image in enumerate(self.decode(index.tolist())):
            images[i] = as_array(image)
        return torch.from_numpy(images)


def image_files(
    reader: Reader, names: Sequence[str], resolution: int | None = None, resize: CropResize = UNCHANGED
) -> ImageFiles:
    """Make a set of image files that are decoded when they are needed; finds out their size and channels.

    Args:
        reader: where the files are.
        names: the files, at least one.
        resolution: height and width that they must have after cropping and resizing; None for that of the first file.
        resize: the cropping and resizing of each image.

    Raises:
        UserError: see `image_size`.
    """
    with huge_images_are_errors():
        size = image_size(reader, names[0], resolution, resize)
        channels = count_channels(reader, progress(names, f"looking for colour in {reader.path.name}"))
        return ImageFiles(reader, tuple(names), size, channels, resize)


def read_images(
    reader: Reader, names: Sequence[str], resolution: int | None = None, resize: CropResize = UNCHANGED
) -> Tensor:
    """Read image files into one tensor in memory; shows progress if that takes over a second.

    Args:
        reader: where the files are.
        names: the files, at least one.
        resolution: height and width that they must have after cropping and resizing; None for that of the first file.
        resize: the cropping and resizing of each image.

    Returns:
        uint8 [N, C, H, W], C = 1 if all images are grey and otherwise 3. Transparency is dropped.

    Raises:
        UserError: see `image_size` and `ImageFiles.decode`.
    """
    with huge_images_are_errors():
        size = image_size(reader, names[0], resolution, resize)
        images = np.empty((len(names), 1, size, size), np.uint8)
        positions = progress(range(len(names)), f"reading {reader.path.name}")
        for i, image in zip(positions, _decode_all(reader, names, size, resize), strict=True):
            if len(image) > images.shape[1]:  # the first image with colour
                images = np.repeat(images, 3, axis=1)
            images[i] = image
    return torch.from_numpy(images)


DECODED_AT_ONCE = 64  # images in a task of a thread


def _decode_all(reader: Reader, names: Sequence[str], size: int, resize: CropResize) -> Iterator[np.ndarray]:
    def decode_chunk(chunk: Sequence[str]) -> list[np.ndarray]:
        return [as_array(decode(reader, name, size, names[0], resize)) for name in chunk]

    chunks = [names[i : i + DECODED_AT_ONCE] for i in range(0, len(names), DECODED_AT_ONCE)]
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        # Decoding releases the GIL, but the code before and after it does not: on two cores, threads give 2.0 times
        # the speed on 128-pixel PNGs and 0.6 times on 32-pixel ones.
        for images in pool.map(decode_chunk, chunks) if size >= 64 else map(decode_chunk, chunks):
            yield from images
    finally:
        pool.shutdown(cancel_futures=True)


# ---- images with classes


@dataclass(frozen=True)
class ImageSet:
    """Images of one size with their classes, in a fixed order.

    Attributes:
        images: uint8 [N, C, H, W] in memory, or the files that are decoded when they are needed.
        labels: class indices, int64 [N]; zeros if there are no classes.
        class_names: the name of each class; empty if there are no classes.
    """

    images: Tensor | ImageFiles
    labels: Tensor
    class_names: tuple[str, ...]

    @classmethod
    def without_classes(cls, images: Tensor) -> "ImageSet":
        """Make a set without classes of images in memory, uint8 [N, C, H, W]."""
        return cls(images, torch.zeros(len(images), dtype=torch.int64), ())

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, index: Tensor) -> Tensor:
        """The images with these indices, int64 [b] → uint8 [b, C, H, W], a copy; raises as `ImageFiles.take` does."""
        if isinstance(self.images, ImageFiles):
            return self.images.take(index)
        # index_select copies whole images, which is many times as fast as indexing with brackets.
        return self.images.index_select(0, index)

    def as_tensor(self) -> Tensor:
        """All images in one tensor, uint8 [N, C, H, W]; do not write to it."""
        return self.images.take(torch.arange(len(self))) if isinstance(self.images, ImageFiles) else self.images

    def pixels_hash(self) -> str:
        """A hash of the images' number, shape, pixels and order; reads all of them."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for index in progress(torch.arange(len(self)).split(READ_AT_ONCE), "hash of the images"):
            digest.update(self.take(index).numpy().tobytes())
        return digest.hexdigest()

    def as_rgb(self) -> "ImageSet":
        """These grey images with three equal channels."""
        images = self.images
        return replace(self, images=images.as_rgb() if isinstance(images, ImageFiles) else images.repeat(1, 3, 1, 1))


def check_rgb(images: ImageSet | None, message: str) -> ImageSet | None:
    """Check that a set of images, if there is one, is RGB; returns it.

    Raises:
        UserError: the images are grey; its message begins with `message`.
    """
    check(images is None or images.shape[0] == 3, f"{message}, not grey: check the path")
    return images


READ_AT_ONCE = 500  # images in a batch


def dequantised_batches(images: ImageSet, title: str) -> Iterator[Tensor]:
    """Read all images once, in batches float32 [b, C, H, W] in [-1, 1]; shows progress under this title."""
    for index in progress(torch.arange(len(images)).split(READ_AT_ONCE), title):
        yield dequantise(images.take(index), torch.float32)


def random_order(count: int, seed: int) -> Tensor:
    """A random order of `count` images that depends on the seed only, int64 [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(key(seed, "order")))
