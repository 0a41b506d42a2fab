"""A set of images."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from warm_lightning.data.decode import AS_IT_IS, Framing, as_array, bombs_are_errors, decode, find_channels, find_size
from warm_lightning.data.readers import Reader
from warm_lightning.distributed import place
from warm_lightning.errors import check
from warm_lightning.images import dequantise
from warm_lightning.rng import key

DECODED_AT_ONCE = 64


@dataclass(frozen=True)
class StoredImages:
    """Images of one size that are decoded whenever they are asked for, by whichever process asks.

    Attributes:
        reader: where the files are.
        names: the files, at least one.
        size: height and width of every image, framed.
        channels: 1 or 3; grey images among RGB ones have three equal channels.
        framing: what is done to each image.
    """

    reader: Reader
    names: tuple[str, ...]
    size: int
    channels: int
    framing: Framing = AS_IT_IS

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, C, H, W."""
        return len(self.names), self.channels, self.size, self.size

    def as_rgb(self) -> "StoredImages":
        """The same with three channels."""
        return replace(self, channels=3)

    def pictures(self, index: Sequence[int]) -> list[Image.Image]:
        """Images by index, in mode L or RGB as there are channels.

        Raises:
            UserError: a file cannot be read or decoded, has more than 8 bits a channel or another size.
        """
        mode = "L" if self.channels == 1 else "RGB"
        with bombs_are_errors():
            found = [decode(self.reader, self.names[i], self.size, self.names[0], self.framing) for i in index]
        return [image if image.mode == mode else image.convert(mode) for image in found]

    def take(self, index: Tensor) -> Tensor:
        """Images by index, int64 [b] → uint8 [b, C, H, W]. Raises as `pictures` does."""
        images = np.empty((len(index), *self.shape[1:]), np.uint8)
        for i, image in enumerate(self.pictures(index.tolist())):
            images[i] = as_array(image)
        return torch.from_numpy(images)


def store_images(
    reader: Reader, names: Sequence[str], resolution: int | None = None, framing: Framing = AS_IT_IS
) -> StoredImages:
    """Image files that stay where they are.

    Args:
        reader: where the files are.
        names: the files, at least one.
        resolution: height and width that they must have, framed; None accepts the first one's.
        framing: what is done to each image.

    Raises:
        UserError: see `find_size`.
    """
    with bombs_are_errors():
        size = find_size(reader, names[0], resolution, framing)
        with _progress(reader, "looking for colour in", names) as progress:
            channels = find_channels(reader, progress)
        return StoredImages(reader, tuple(names), size, channels, framing)


def read_images(
    reader: Reader, names: Sequence[str], resolution: int | None = None, framing: Framing = AS_IT_IS
) -> Tensor:
    """The same as one tensor in memory; shows progress when it takes over a second.

    Returns:
        uint8 [N, C, H, W], C = 1 where all are grey and otherwise 3. Transparency is dropped.

    Raises:
        UserError: see `StoredImages.pictures`.
    """
    with bombs_are_errors():
        size = find_size(reader, names[0], resolution, framing)
        images = np.empty((len(names), 1, size, size), np.uint8)
        with _progress(reader, "reading", names) as progress:
            for i, image in enumerate(_decode_all(reader, names, size, framing)):
                if len(image) > images.shape[1]:
                    images = np.repeat(images, 3, axis=1)
                images[i] = image
                progress.update()
    return torch.from_numpy(images)


def _progress(reader: Reader, doing: str, names: Sequence[str]) -> "tqdm[str]":
    return tqdm(names, desc=f"{doing} {reader.path.name}", unit="img", delay=1, disable=place()[0] > 0)


def _decode_all(reader: Reader, names: Sequence[str], size: int, framing: Framing) -> Iterator[np.ndarray]:
    def decode_chunk(chunk: Sequence[str]) -> list[np.ndarray]:
        return [as_array(decode(reader, name, size, names[0], framing)) for name in chunk]

    chunks = [names[i : i + DECODED_AT_ONCE] for i in range(0, len(names), DECODED_AT_ONCE)]
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        # Decoding releases the GIL, all around it does not: on two cores, threads give 2.0 times the speed
        # on 128-pixel PNGs and 0.6 times on 32-pixel ones.
        for images in pool.map(decode_chunk, chunks) if size >= 64 else map(decode_chunk, chunks):
            yield from images
    finally:
        pool.shutdown(cancel_futures=True)


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


READ_AT_ONCE = 500  # images read at once


def all_images(images: ImageSet, what: str) -> Iterator[Tensor]:
    """All images once, in batches [b, C, H, W] in [-1, 1], with a progress bar for long work."""
    for chunk in tqdm(
        torch.arange(len(images)).split(READ_AT_ONCE), desc=what, unit="×500 images", delay=2, leave=False
    ):
        yield dequantise(images.take(chunk), torch.float32)


def random_order(count: int, seed: int) -> Tensor:
    """An order of `count` images, int64, that is random but the same each time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(key(seed, "order")))
