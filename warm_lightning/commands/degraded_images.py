"""Input images of `warm restore` and `warm drift`, clean or degraded, from files or arrays."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from warm_lightning.data import ImageSet
from warm_lightning.data.image_set import image_files
from warm_lightning.data.listing import SUFFIXES
from warm_lightning.data.readers import FolderReader, LMDBReader, Reader
from warm_lightning.data.sources import Source
from warm_lightning.errors import UserError, check, error_text
from warm_lightning.images import dequantise
from warm_lightning.paths import expand
from warm_lightning.types import Split

ARRAYS = (".npy", ".npz")
MAX_DEVIATIONS = 10.0
"""How many noise levels a pixel may be outside of [-1.1, 1.1]; beyond, the images have another range of values."""


@dataclass(frozen=True)
class InputImages:
    """Images of one size with names.

    Attributes:
        path: the file or folder that they come from.
        names: one per image, without suffix; numbers for arrays.
        images: a set of files, or an array [N, C, H, W] of uint8 or of floats, where 1 is white and -1 is black.
        named: whether they are several files of a folder or zip, whose names identify them.
        split: the split of their source that they are, if it has splits.
    """

    path: str
    names: tuple[str, ...]
    images: ImageSet | Tensor
    named: bool
    split: Split | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        return f"{self.path}, split {self.split}" if self.split else self.path

    def take(self, index: Sequence[int]) -> Tensor:
        """The images with these indices, float64 [b, C, H, W]; raises as `ImageSet.take` does.

        They are as in the file: in [-1, 1], and beyond by the noise that they have.
        """
        indices = torch.tensor(index)
        images = self.images.take(indices) if isinstance(self.images, ImageSet) else self.images[indices]
        return images.double() if images.is_floating_point() else dequantise(images, torch.float64)


def open_input_images(path: str, shape: tuple[int, int, int], noise: float, split: Split | None = None) -> InputImages:
    """Open the images of a folder or zip, one image file, or an array in a NumPy file.

    Args:
        path: the folder, zip or file.
        shape: (C, H, W) that the images must have; grey image files become RGB if C is 3.
        noise: the noise level of the images, β; 0 for clean ones.
        split: the images to take if the source has splits; by default the held-out ones, which training has not seen.

    Raises:
        UserError: the images are missing, damaged, or of another shape or range of values.
    """
    check(path != "", "the path of images is empty: give that of a folder, zip, image or NumPy file")
    file = expand(path)
    if file.suffix.lower() in ARRAYS:
        return _open_array(path, file, shape, noise)
    chosen: Split | None = None
    if file.suffix.lower() in SUFFIXES and file.is_file():
        reader: Reader = FolderReader(file.parent)
        names: Sequence[str] = [file.name]
    else:
        source = Source.open(path)
        if len(source.splits) > 1:
            chosen = split or "held_out"
        reader, names = source.reader, source.splits[chosen or "train"].names
    images = ImageSet(image_files(reader, names), torch.zeros(len(names), dtype=torch.int64), ())
    if images.shape[0] == 1 < shape[0]:
        images = images.as_rgb()
    check(
        images.shape == shape,
        f"{path}: the images are {_text(images.shape)}, but the model's {_text(shape)}: convert them",
    )
    if isinstance(reader, LMDBReader):  # its keys may be any bytes
        names = _numbers(len(names))
    stems = tuple(str(PurePosixPath(name).with_suffix("")) for name in names)
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    check(not twice, f"{path} has two images {twice[:1]} of different formats: rename one")
    return InputImages(path, stems, images, named=len(names) > 1, split=chosen)


def _open_array(path: str, file: Path, shape: tuple[int, int, int], noise: float) -> InputImages:
    content = _load_array(path, file)
    is_float = content.dtype.kind == "f"
    check(
        is_float or content.dtype == np.uint8,
        f"{path} holds numbers of type {content.dtype}: give uint8 images, or floats in [-1, 1]",
    )
    array_shape = _text(content.shape)
    channels, height, width = shape
    ambiguous = channels > 1 and content.shape == shape
    check(
        not ambiguous,
        f"{path} is an array of {array_shape}, one image or {channels} grey ones: give it four dimensions",
    )
    if content.shape[1:] == (height, width):
        content = content[:, None]
    elif content.shape[1:] in ((height, width, channels), (height, width, 1)):
        content = content.transpose(0, 3, 1, 2)
    if content.shape[1:] == (1, height, width):
        content = content.repeat(channels, axis=1)
    check(
        content.shape[1:] == shape and len(content) > 0,
        f"{path} is an array of {array_shape}, but the model's images are N × {_text(shape)}, or channels last: "
        "convert them",
    )
    if is_float:  # of any precision and byte order
        content = content.astype(np.float32 if content.itemsize <= 4 else np.float64, copy=False)
        check(bool(np.isfinite(content).all()), f"{path} holds numbers that are not finite: remove those images")
        largest = np.abs(content).max()
        check(
            largest <= 1.1 + MAX_DEVIATIONS * noise,
            f"{path} holds numbers up to {largest:.4g}, but images are in [-1, 1], with noise of {noise:g}: scale them",
        )
    images = torch.from_numpy(np.ascontiguousarray(content))
    return InputImages(path, _numbers(len(images)), images, named=False)


def _load_array(path: str, file: Path) -> np.ndarray:
    check(file.is_file(), f"{path}: no such file: give the path of a NumPy file, or of a folder or zip of images")
    try:
        content = np.load(file, allow_pickle=False)
        arrays = [content] if isinstance(content, np.ndarray) else [content[name] for name in content.files]
    except Exception as error:  # NumPy raises almost any exception on a damaged file
        raise UserError(f"{path} is not an array of images ({error_text(error)}): write it with numpy.save") from error
    check(len(arrays) == 1, f"{path} has {len(arrays)} arrays: keep only the array of images")
    return arrays[0]


def pair(images: InputImages, clean: InputImages) -> list[int]:
    """The index of the clean image of each image: by name without suffix for folders and zips, otherwise by order.

    Raises:
        UserError: the numbers of images differ, or an image has no clean image.
    """
    check(
        len(images) == len(clean),
        f"{clean} has {len(clean)} images and {images} {len(images)}: give the clean image of each",
    )
    if not (images.named and clean.named):
        return list(range(len(images)))
    index = {name: i for i, name in enumerate(clean.names)}
    missing = [name for name in images.names if name not in index]
    check(
        not missing,
        f"{clean} has no {missing[:1]}, which {images} has: give each clean image the name of its degraded one",
    )
    return [index[name] for name in images.names]


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(f"{i:06d}" for i in range(count))


def _text(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
