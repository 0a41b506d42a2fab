"""An image file → a grey or RGB picture of the right size, or an error that names the file."""

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from warm_lightning.data.readers import Reader, reason
from warm_lightning.errors import UserError, check

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
)  # Pillow's other decoders are a risk for no use: one runs Ghostscript
GREY_MODES = {"1", "L", "LA", "La"}
DEEP_MODES = ("I", "F")  # how the names of modes with more than 8 bits a channel begin
PNG_DEPTH = 24  # where a PNG has its bits a channel, always: Pillow silently reduces 16 bits of colours to 8
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
ADVICE = "make a data set of them with `warm dataset SRC DST.zip --resolution {size} --crop center`"


@dataclass(frozen=True)
class Framing:
    """How images become square and of one size.

    Attributes:
        crop: "center" keeps the largest centred square, "stretch" all of an image, "none" demands squares.
        resolution: pixels a side to resample to, by Pillow's Lanczos filter; None leaves the size.
    """

    crop: Literal["none", "center", "stretch"] = "none"
    resolution: int | None = None

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image will have."""
        if self.crop == "stretch" and self.resolution is not None:
            return self.resolution, self.resolution
        if self.crop == "center":
            width = height = min(width, height)
        return (width, height) if self.resolution is None or width != height else (self.resolution, self.resolution)

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, square and resampled."""
        width, height = image.size
        if width != height and self.crop != "stretch":
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        size = self.size(*image.size)
        return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


AS_IT_IS = Framing()


def find_size(reader: Reader, name: str, resolution: int | None = None, framing: Framing = AS_IT_IS) -> int:
    """Height and width that the first image gives to all.

    Raises:
        UserError: it cannot be read, is not square or has another than this resolution.
    """
    width, height = found = open_image(reader, name).size
    where = f"{reader.locate(name)} is {width}×{height}"
    width, height = framing.size(*found)
    advice = ADVICE.format(size=resolution or framing.resolution or "64")
    check(width == height, f"{where}: images must be square: {advice}")
    check(resolution in (None, width), f"{where} instead of {resolution}×{resolution}: {advice}")
    return width


def find_channels(reader: Reader, names: Iterable[str]) -> int:
    """1 where all images are grey, otherwise 3: looks into the files until one is not grey."""
    return 1 if all(open_image(reader, name).mode in GREY_MODES for name in names) else 3


def decode(reader: Reader, name: str, size: int, first: str, framing: Framing = AS_IT_IS) -> Image.Image:
    """One image in mode L or RGB; transparency is dropped.

    Args:
        reader: where the file is.
        name: the file.
        size: width and height that it must have, framed.
        first: the file that has set the size.
        framing: what is done to the image.

    Raises:
        UserError: see `open_image`; it cannot be decoded or has another size.
    """
    image = open_image(reader, name)
    width, height = image.size  # mostly from the header: an image of another size is not decoded
    if framing.size(width, height) != (size, size):
        raise UserError(
            f"{reader.locate(name)} is {width}×{height} but {reader.locate(first)} makes it {size}×{size}: "
            + ADVICE.format(size=size)
        )
    try:
        if image.mode in GREY_MODES:
            plain = image.convert("L")
        else:  # Pillow warns about a palette with transparency unless it goes by way of RGBA
            opaque = image.convert("RGBA") if "transparency" in image.info else image
            plain = opaque.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(reader, name, error) from error
    return framing(plain)


def as_array(image: Image.Image) -> np.ndarray:
    """uint8 [C, H, W] of an image in mode L or RGB."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@contextmanager
def bombs_are_errors() -> Iterator[None]:
    """Around everything that opens images: what Pillow only warns of is refused. Not to be entered by threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def open_image(reader: Reader, name: str) -> Image.Image:
    """An image, upright. Only its header is decoded unless the camera was turned.

    Raises:
        UserError: it cannot be read, has more than 8 bits a channel, or is animated.
    """
    content = reader.read(name)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        deep = image.mode.startswith(DEEP_MODES) or (image.format == "PNG" and content[PNG_DEPTH] > 8)
        animated = image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False)
        if "exif" in image.info and not deep and not animated:  # Pillow looks for it behind the pixels of other PNGs
            ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except BOMBS as error:
        message = f"{reader.locate(name)} claims to be a huge image ({reason(error)}): resize or remove it"
        raise UserError(message) from error
    except Exception as error:
        raise _undecodable(reader, name, error) from error
    check(not deep, f"{reader.locate(name)} has more than 8 bits a channel: convert it to 8 bits")
    check(not animated, f"{reader.locate(name)} is animated: extract the frames that you want as PNG files")
    return image


def _undecodable(reader: Reader, name: str, error: Exception) -> UserError:
    # Decoders raise nearly anything on damaged data: OSError, SyntaxError, struct.error, ValueError, …
    unknown = isinstance(error, Image.UnidentifiedImageError)
    text = f"not {', '.join(FORMATS)}" if unknown else reason(error)
    return UserError(f"{reader.locate(name)} is not a readable image ({text}): replace or remove it")
