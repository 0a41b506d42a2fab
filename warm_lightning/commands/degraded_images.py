"""Images that may be noisy, from files or arrays, as floats."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from warm_lightning.data import ImageSet
from warm_lightning.data.image_set import store_images
from warm_lightning.data.listing import SUFFIXES
from warm_lightning.data.readers import FolderReader, LMDBReader, Reader, reason
from warm_lightning.data.sources import Source, expand
from warm_lightning.errors import UserError, check
from warm_lightning.images import dequantise

ARRAYS = (".npy", ".npz")
Split = Literal["train", "held_out"]
LARGEST = 10.0
"""Times the noise level that a number may be beyond [-1.1, 1.1]; more is another range."""


@dataclass(frozen=True)
class Pictures:
    """Images of one size with names.

    Attributes:
        path: where they come from.
        names: one an image, without suffix; numbers for arrays.
        images: uint8 files, or an array of them [N, C, H, W], or floats, 1 being white and -1 black.
        many: whether they are files of a folder or zip, whose names mean something.
        split: which of the splits of their source they are, if it has some.
    """

    path: str
    names: tuple[str, ...]
    images: ImageSet | Tensor
    many: bool
    split: Split | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        return f"{self.path}, split {self.split}" if self.split else self.path

    def take(self, index: Sequence[int]) -> Tensor:
        """Images by index, float64 [b, C, H, W] in [-1, 1] but for noise. Raises as `ImageSet.take` does."""
        where = torch.tensor(index)
        images = self.images.take(where) if isinstance(self.images, ImageSet) else self.images[where]
        return images.double() if images.is_floating_point() else dequantise(images, torch.float64)


def open_pictures(path: str, shape: tuple[int, int, int], noise: float, split: Split | None = None) -> Pictures:
    """The images of a folder or zip, one image file, or an array in a NumPy file.

    Args:
        path: of them.
        shape: C, H, W that they must have; grey images may become RGB.
        noise: their noise level, as far as is known.
        split: which images of a source that has splits; by default the held-out ones, which training has not seen.

    Raises:
        UserError: they are not there, damaged, or of another shape or range.
    """
    check(path != "", "the path of images is empty: give that of a folder, zip, image or NumPy file")
    file = expand(path)
    if file.suffix.lower() in ARRAYS:
        return _array(path, file, shape, noise)
    chosen: Split | None = None
    if file.suffix.lower() in SUFFIXES and file.is_file():
        reader: Reader = FolderReader(file.parent)
        names: Sequence[str] = [file.name]
    else:
        source = Source.open(path)
        if len(source.splits) > 1:
            chosen = split or "held_out"
        reader, names = source.reader, source.splits[chosen or "train"].names
    images = ImageSet(store_images(reader, names), torch.zeros(len(names), dtype=torch.int64), ())
    if images.shape[0] == 1 < shape[0]:
        images = images.as_rgb()
    found, wanted = _text(images.shape), _text(shape)
    check(images.shape == shape, f"{path}: the images are {found}, but the model's {wanted}: convert them")
    if isinstance(reader, LMDBReader):  # whose keys may be anything
        names = _numbers(len(names))
    stems = tuple(str(PurePosixPath(name).with_suffix("")) for name in names)
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    check(not twice, f"{path} has two images {twice[:1]} of different formats: rename one")
    return Pictures(path, stems, images, many=len(names) > 1, split=chosen)


def _array(path: str, file: Path, shape: tuple[int, int, int], noise: float) -> Pictures:
    content = _load(path, file)
    real = content.dtype.kind == "f"
    check(
        real or content.dtype == np.uint8,
        f"{path} holds numbers of type {content.dtype}: give uint8 images, or floats in [-1, 1]",
    )
    found, wanted = _text(content.shape), _text(shape)
    channels, height, width = shape
    one = channels > 1 and content.shape == shape
    check(not one, f"{path} is an array of {found}, one image or {channels} grey ones: give it four dimensions")
    if content.shape[1:] == (height, width):
        content = content[:, None]
    elif content.shape[1:] in ((height, width, channels), (height, width, 1)):
        content = content.transpose(0, 3, 1, 2)
    if content.shape[1:] == (1, height, width):
        content = content.repeat(channels, axis=1)
    check(
        content.shape[1:] == shape and len(content) > 0,
        f"{path} is an array of {found}, but the model's images are N × {wanted}, or channels last: convert them",
    )
    if real:  # of any precision and byte order
        content = content.astype(np.float32 if content.itemsize <= 4 else np.float64, copy=False)
        check(bool(np.isfinite(content).all()), f"{path} holds numbers that are not finite: remove those images")
        largest = np.abs(content).max()
        check(
            largest <= 1.1 + LARGEST * noise,
            f"{path} holds numbers up to {largest:.4g}, but images are in [-1, 1], with noise of {noise:g}: scale them",
        )
    images = torch.from_numpy(np.ascontiguousarray(content))
    return Pictures(path, _numbers(len(images)), images, many=False)


def _load(path: str, file: Path) -> np.ndarray:
    check(file.is_file(), f"{path}: no such file: give the path of a NumPy file, or of a folder or zip of images")
    try:
        content = np.load(file, allow_pickle=False)
        arrays = [content] if isinstance(content, np.ndarray) else [content[name] for name in content.files]
    except Exception as error:  # a damaged file raises nearly anything
        raise UserError(f"{path} is no array of images ({reason(error)}): write it with numpy.save") from error
    check(len(arrays) == 1, f"{path} has {len(arrays)} arrays: leave that of the images alone in it")
    return arrays[0]


def pair(images: Pictures, clean: Pictures) -> list[int]:
    """The index of the truth of each image: by name without suffix for folders and zips, otherwise by order.

    Raises:
        UserError: there are more of one than of the other, or an image has no truth.
    """
    check(
        len(images) == len(clean),
        f"{clean} has {len(clean)} images and {images} {len(images)}: give the truth of each",
    )
    if not (images.many and clean.many):
        return list(range(len(images)))
    place = {name: i for i, name in enumerate(clean.names)}
    missing = [name for name in images.names if name not in place]
    check(not missing, f"{clean} has no {missing[:1]}, which {images} has: name each truth as its image")
    return [place[name] for name in images.names]


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(f"{i:06d}" for i in range(count))


def _text(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
