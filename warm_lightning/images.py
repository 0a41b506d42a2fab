"""The two forms of an image: uint8 on disk and in metrics, float in [-1, 1] in diffusion."""

import torch
from torch import Tensor


def quantise(x: Tensor) -> Tensor:
    """Float images in [-1, 1] → uint8, the one place where this happens; values outside are clamped."""
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def dequantise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images → float in [-1, 1]."""
    return images.to(dtype) / 127.5 - 1
