"""The orthonormal 2-D DCT-II, its frequencies, and blur as a gain over them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch_dct
from torch import Tensor


@lru_cache(maxsize=64)
def _basis(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # torch-dct transforms by FFT, 30 times slower at image sizes than this matrix; it builds the matrix in
    # float64, so that the float32 basis is the rounded exact one.
    with torch.inference_mode(False):  # or training after a validation could not use it
        basis = torch_dct.dct(torch.eye(size, dtype=torch.float64), norm="ortho").T
        return basis.to(device=device, dtype=dtype)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Full float32 whatever precision the network has: no autocast, and no TF32 in matrix products and convolutions.

    Blur and scores are not the network's business.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def dct(x: Tensor) -> Tensor:
    """u = Vᵀx: orthonormal DCT-II over the last two dimensions, [..., H, W] → [..., H, W]."""
    rows, columns = (_basis(size, x.dtype, x.device) for size in x.shape[-2:])
    with full_precision(x.device):
        return rows @ x @ columns.T


def idct(u: Tensor) -> Tensor:
    """x = Vu: the inverse of `dct`."""
    rows, columns = (_basis(size, u.dtype, u.device) for size in u.shape[-2:])
    with full_precision(u.device):
        return rows.T @ u @ columns


@lru_cache(maxsize=64)
def _frequencies(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        rows = torch.arange(height, dtype=torch.float64) / height
        columns = torch.arange(width, dtype=torch.float64) / width
        squared = math.pi**2 * (rows[:, None] ** 2 + columns[None, :] ** 2)
        return squared.to(device=device, dtype=dtype)


def frequencies(like: Tensor) -> Tensor:
    """λ_ij = π²(i²/H² + j²/W²), the eigenvalues of the Laplacian in radians²/pixel², [H, W].

    Size, dtype and device are those of `like` [..., H, W].
    """
    return _frequencies(*like.shape[-2:], like.dtype, like.device)


def log_blur_mask(alpha: Tensor, like: Tensor) -> Tensor:
    """ln M_α = -λα²/2, the logarithm of the gain of a Gaussian blur (Eq. 4), [B, 1, H, W].

    Args:
        alpha: standard deviation of the blur in pixels, [B].
        like: any tensor [..., H, W] of the size, dtype and device wanted.
    """
    alpha = alpha.to(device=like.device, dtype=like.dtype)
    return -frequencies(like) * alpha.view(-1, 1, 1, 1).square() / 2


def power_spectrum(images: Tensor) -> Tensor:
    """S: variance over images of each DCT coefficient, [N, C, H, W] in [-1, 1] → [C, H, W].

    Float64, and two passes over blocks, so that the large common mean of a coefficient costs no accuracy.
    """
    blocks = images.split(1000)
    mean = sum((dct(b.double()).sum(0) for b in blocks), start=torch.zeros(())) / len(images)
    return sum(((dct(b.double()) - mean).square().sum(0) for b in blocks), start=torch.zeros(())) / len(images)
