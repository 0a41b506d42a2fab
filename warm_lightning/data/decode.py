"""Decoding of one image file to a grey or RGB image of the right size; every error names the file."""

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from warm_lightning.data.readers import Reader
from warm_lightning.errors import UserError, check, error_text

# ---- crop and resize


Filter = Literal["area", "lanczos"]
Resize = Literal["none", "area", "lanczos"]
"""The filter by which images are resized; "none" where they are not."""
FILTERS = {"area": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}


def check_resize(resolution: int | None, resize: Resize) -> None:
    """Check the settings `resolution` and `resize` of a data set; raises UserError."""
    check(resolution is None or resolution >= 1, f"resolution must be at least 1, not {resolution}")
    has_size = resize == "none" or resolution is not None
    check(has_size, f"resize {resize} needs a size: set resolution, or resize to none")


@dataclass(frozen=True)
class CropResize:
    """The operation that makes images square and of one size.

    Attributes:
        crop: "center" cuts out the largest centred square; "stretch" keeps the whole image and changes its aspect
            ratio; "none" leaves the image, which must then be square.
        resolution: height and width to resample to; None keeps the size.
        filter: "lanczos" or "area", the mean over the area of each new pixel; both as Pillow computes them.
    """

    crop: Literal["none", "center", "stretch"] = "none"
    resolution: int | None = None
    filter: Filter = "lanczos"

    @property
    def words(self) -> str:
        """The operation in words, such as "area to 16×16"; "none" if it changes nothing."""
        crop = [] if self.crop == "none" else [f"{self.crop} crop" if self.crop == "center" else self.crop]
        resize = [] if self.resolution is None else [f"{self.filter} to {self.resolution}×{self.resolution}"]
        return ", ".join(crop + resize) or "none"

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the result, for an image of this width and height."""
        if self.crop == "stretch" and self.resolution is not None:
            return self.resolution, self.resolution
        if self.crop == "center":
            width = height = min(width, height)
        return (width, height) if self.resolution is None or width != height else (self.resolution, self.resolution)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Crop and resample an image."""
        width, height = image.size
        if width != height and self.crop == "center":
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        size = self.size(*image.size)
        if size == image.size:
            return image
        whole = image.width % size[0] == image.height % size[1] == 0
        if self.filter == "area" and whole:  # rounded once; `resize` rounds each direction, and is brighter by 1/4
            return image.reduce((image.width // size[0], image.height // size[1]))
        return image.resize(size, FILTERS[self.filter])


UNCHANGED = CropResize()

# ---- one image

GREY_MODES = {"1", "L", "LA", "La"}  # Pillow's names

HUGE_IMAGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@contextmanager
def huge_images_are_errors() -> Iterator[None]:
    """Turn Pillow's warning about a decompression bomb into an exception, inside the `with` block.

    All code that opens images runs in it. It changes global state, so it must not be entered in a thread.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # Pillow's other decoders are a needless risk: one runs Ghostscript
HIGH_DEPTH_MODES = ("I", "F")  # the names of Pillow's modes with more than 8 bits per channel begin so
PNG_DEPTH = 24  # index of the byte with a PNG's bits per channel: Pillow silently reduces 16-bit colours to 8 bits


def open_image(reader: Reader, name: str) -> Image.Image:
    """Open an image file, turned upright. Pixels are decoded only if the EXIF data says that the image is rotated.

    Raises:
        UserError: the file cannot be read, has more than 8 bits per channel, or is animated.
    """
    content = reader.read(name)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        high_depth = image.mode.startswith(HIGH_DEPTH_MODES) or (image.format == "PNG" and content[PNG_DEPTH] > 8)
        animated = image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False)
        # In other PNGs, Pillow would search for EXIF data behind the pixels, and so decode them.
        if "exif" in image.info and not high_depth and not animated:
            ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except HUGE_IMAGE as error:
        message = f"{reader.locate(name)} claims to be a huge image ({error_text(error)}): resize or remove it"
        raise UserError(message) from error
    except Exception as error:
        raise _undecodable(reader, name, error) from error
    check(not high_depth, f"{reader.locate(name)} has more than 8 bits per channel: convert it to 8 bits")
    check(not animated, f"{reader.locate(name)} is animated: extract the frames that you want as PNG files")
    return image


def _undecodable(reader: Reader, name: str, error: Exception) -> UserError:
    # Decoders raise almost any exception on damaged data: OSError, SyntaxError, struct.error, ValueError, …
    unknown = isinstance(error, Image.UnidentifiedImageError)
    text = f"not {', '.join(FORMATS)}" if unknown else error_text(error)
    return UserError(f"{reader.locate(name)} is not a readable image ({text}): replace or remove it")


def decode(reader: Reader, name: str, size: int, first: str, resize: CropResize = UNCHANGED) -> Image.Image:
    """Read one image in mode L or RGB, cropped and resized; transparency is dropped.

    Args:
        reader: where the file is.
        name: the file.
        size: width and height that it must have after cropping and resizing.
        first: the file that determined this size, for the error message.
        resize: the cropping and resizing.

    Raises:
        UserError: see `open_image`; or the image cannot be decoded or has another size.
    """
    image = open_image(reader, name)
    width, height = image.size  # known from the header in most cases, so that an image of wrong size is not decoded
    if resize.size(width, height) != (size, size):
        raise UserError(
            f"{reader.locate(name)} is {width}×{height} but {reader.locate(first)} makes it {size}×{size}: "
            + reader.advice.format(size=size)
        )
    return resize(decode_pixels(image, reader, name))


def decode_pixels(image: Image.Image, reader: Reader, name: str) -> Image.Image:
    """Decode an image that `open_image` has opened, to mode L or RGB; transparency is dropped.

    Args:
        image: what `open_image` returned.
        reader: where the file is.
        name: the file.

    Raises:
        UserError: the image cannot be decoded.
    """
    try:
        if image.mode in GREY_MODES:
            return image.convert("L")
        # Pillow warns about a palette with transparency unless it is converted to RGBA first
        opaque = image.convert("RGBA") if "transparency" in image.info else image
        return opaque.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(reader, name, error) from error


def as_array(image: Image.Image) -> np.ndarray:
    """Convert an image in mode L or RGB to uint8 [C, H, W]."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def block_means(pixels: np.ndarray, size: int) -> np.ndarray:
    """The means of blocks of size × size pixels, halves rounded up: uint8 [H, W, C] → uint8 [C, H/size, W/size]."""
    height, width, channels = pixels.shape
    blocks = pixels.reshape(height // size, size, width // size, size, channels)
    mean = (blocks.sum(axis=(1, 3), dtype=np.int64) + size * size // 2) // (size * size)
    return mean.astype(np.uint8).transpose(2, 0, 1)


# ---- size and channels of a set of files


def image_size(reader: Reader, name: str, resolution: int | None = None, resize: CropResize = UNCHANGED) -> int:
    """Height and width of one image after cropping and resizing; all other images must have this size, too.

    Args:
        reader: where the file is.
        name: the file, usually the first one of a set.
        resolution: height and width that the image must have after cropping and resizing; None for any.
        resize: the cropping and resizing.

    Raises:
        UserError: the image cannot be read, is not square or does not have the given resolution.
    """
    width, height = size = open_image(reader, name).size
    where = f"{reader.locate(name)} is {width}×{height}"
    width, height = resize.size(*size)
    advice = reader.advice.format(size=resolution or resize.resolution or "64")
    check(width == height, f"{where}: images must be square: {advice}")
    check(resolution in (None, width), f"{where} instead of {resolution}×{resolution}: {advice}")
    return width


def count_channels(reader: Reader, names: Iterable[str]) -> int:
    """Number of channels of a set of images: 1 if all are grey, otherwise 3. Opens files until one is not grey."""
    return 1 if all(open_image(reader, name).mode in GREY_MODES for name in names) else 3
