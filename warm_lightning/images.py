"""The two forms of an image: uint8 on disk and in metrics, float in [-1, 1] in diffusion."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from warm_lightning.records import write_file


def quantise(x: Tensor) -> Tensor:
    """Convert float images in [-1, 1] to uint8; values outside are clamped. All code converts by this function."""
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def dequantise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 images to float in [-1, 1]."""
    return images.to(dtype) / 127.5 - 1


SMALLEST = 48  # pixels per side below which an image in a grid is enlarged


def grid(images: Tensor, columns: int) -> Tensor:
    """Arrange images, uint8 [N, C, H, W], in one picture, uint8 [3, height, width]; small images are enlarged."""
    from torchvision.utils import make_grid  # takes seconds to import, for which single images need not wait

    factor = max(1, SMALLEST // images.shape[-1])
    enlarged = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return make_grid(enlarged, nrow=columns, padding=2, pad_value=255)


def pil_image(image: Tensor) -> Image.Image:
    """Convert an image, uint8 [C, H, W], to an image of Pillow."""
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)


def png_bytes(image: Tensor) -> bytes:
    """The content of a PNG file of an image, uint8 [C, H, W]."""
    content = io.BytesIO()
    pil_image(image).save(content, format="PNG")
    return content.getvalue()


def write_png(path: Path, image: Tensor) -> None:
    """Write an image, uint8 [C, H, W], as a PNG file, which appears under its name only when it is whole.

    Raises:
        UserError: if the file cannot be written.
    """
    write_file(path, png_bytes(image))


def read_png(path: Path) -> Tensor:
    """Read a PNG file as uint8 [C, H, W]."""
    pixels = torch.from_numpy(np.array(Image.open(path)))
    return pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)
