"""The two forms of an image: uint8 on disk and in metrics, float in [-1, 1] in diffusion."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from warm_lightning.records import write_file


def quantise(x: Tensor) -> Tensor:
    """Float images in [-1, 1] → uint8, the one place where this happens; values outside are clamped."""
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def dequantise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images → float in [-1, 1]."""
    return images.to(dtype) / 127.5 - 1


SMALLEST = 48  # pixels a side below which an image in a grid is enlarged


def grid(images: Tensor, columns: int) -> Tensor:
    """uint8 [N, C, H, W] → one picture, uint8 [3, height, width]; small images are enlarged without blurring."""
    from torchvision.utils import make_grid  # takes seconds to import, for which single images need not wait

    factor = max(1, SMALLEST // images.shape[-1])
    enlarged = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return make_grid(enlarged, nrow=columns, padding=2, pad_value=255)


def write_png(path: Path, image: Tensor) -> None:
    """uint8 [C, H, W] → a PNG file, which appears under its name only when it is whole.

    Raises:
        UserError: if the file cannot be written.
    """
    pixels = image.permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(content, format="PNG")
    write_file(path, content.getvalue())


def read_png(path: Path) -> Tensor:
    """A PNG file → uint8 [C, H, W]."""
    pixels = torch.from_numpy(np.array(Image.open(path)))
    return pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)
