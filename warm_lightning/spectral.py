"""The orthonormal 2-D DCT-II, its frequencies, and blur as a gain over them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, reduce

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
    """Compute in full float32: no autocast, and no TF32 in matrix products and convolutions.

    For blur and scores, which must not depend on the precision of the network.
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
    """The orthonormal DCT-II u = Vᵀx over the last two dimensions, [..., H, W] → [..., H, W]."""
    rows, columns = (_basis(size, x.dtype, x.device) for size in x.shape[-2:])
    with full_precision(x.device):
        return rows @ x @ columns.T


def idct(u: Tensor) -> Tensor:
    """The inverse x = Vu of `dct`, [..., H, W] → [..., H, W]."""
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
    """The frequencies λ_ij = π²(i²/H² + j²/W²), eigenvalues of the Laplacian in radians²/pixel², [H, W].

    Args:
        like: any tensor [..., H, W] of the size, dtype and device wanted.
    """
    return _frequencies(*like.shape[-2:], like.dtype, like.device)


def positive_frequencies(like: Tensor) -> Tensor:
    """The frequencies λ with that of the constant image, 0, raised to the lowest above it, so that powers are finite.

    See `frequencies`; an image of one pixel has λ = 1.
    """
    largest = max(like.shape[-2:])
    return frequencies(like).clamp(min=(math.pi / largest) ** 2 if largest > 1 else 1.0)


def second_moment(images: Iterable[Tensor]) -> Tensor:
    """The second moment of each DCT coefficient, its variance and the square of its mean, float64 [C, H, W].

    Args:
        images: in batches [b, C, H, W] in [-1, 1].
    """
    count, total = 0, torch.zeros(())
    for batch in images:
        count, total = count + len(batch), total + dct(batch.double().cpu()).square().sum(0)
    return total / count


def band_index(like: Tensor, count: int) -> Tensor:
    """The number of the band of each frequency of images [..., H, W], int64 [H, W].

    The `count` bands have equal width in √λ, from 0 to the highest frequency. They are for tables that have no room for
    every ring.
    """
    radius = frequencies(like.double()).sqrt()
    share = count * radius / radius.max()
    return (share + 1e-9).long().clamp(max=count - 1)  # all frequencies on an edge belong to the higher band


def log_blur_mask(alpha: Tensor, like: Tensor) -> Tensor:
    """The logarithm of the gain of a Gaussian blur, ln M_α = -λα²/2, [B, 1, H, W].

    M_α is the mask of Eq. 4, which the paper does not print; it is heat dissipation exp(-λτ) at τ = α²/2 (Rissanen et
    al. 2023; Hoogeboom & Salimans 2022).

    Args:
        alpha: standard deviation of the blur in pixels, [B].
        like: any tensor [..., H, W] of the size, dtype and device wanted.
    """
    alpha = alpha.to(device=like.device, dtype=like.dtype)
    return log_blur(frequencies(like), alpha.view(-1, 1, 1, 1))


def log_blur(frequency: Tensor, alpha: Tensor) -> Tensor:
    """ln M_α = -λα²/2 for any frequencies λ and blur levels α that broadcast; for an image see `log_blur_mask`."""
    return -frequency * alpha.square() / 2


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of DCT coefficients, for K blocks of images that can be merged later.

    Attributes:
        count: number of images, or their weight, float64 [K].
        mean: of each coefficient, float64 [K, C, H, W].
        squares: sum over images of the squared deviation from that mean, float64 [K, C, H, W].
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, images: Tensor) -> "Moments":
        """The moments of one block of images in [-1, 1], [N, C, H, W]."""
        u = dct(images.double())
        mean = u.mean(dim=0, keepdim=True)
        return cls(torch.tensor([float(len(u))]).to(u), mean, (u - mean).square().sum(dim=0, keepdim=True))

    @classmethod
    def cat(cls, parts: Sequence["Moments"]) -> "Moments":
        """The blocks of several moments, in their order."""
        columns = zip(*((part.count, part.mean, part.squares) for part in parts), strict=True)
        return cls(*map(torch.cat, columns))

    def merged(self) -> "Moments":
        """All blocks merged into one (Chan, Golub and LeVeque 1979); a large mean costs no accuracy."""
        count, share = self.count.sum(dim=0, keepdim=True), (self.count / self.count.sum()).view(-1, 1, 1, 1)
        mean = (share * self.mean).sum(dim=0, keepdim=True)
        between = count * (share * (self.mean - mean).square()).sum(dim=0, keepdim=True)
        return Moments(count, mean, self.squares.sum(dim=0, keepdim=True) + between)

    def weighted(self, weights: Tensor) -> "Moments":
        """The blocks with each counted as many times as its weight says, float64 [K]; for resampling."""
        return Moments(weights * self.count, self.mean, weights.view(-1, 1, 1, 1) * self.squares)

    def variance(self) -> Tensor:
        """The variance of each coefficient over the images of all blocks, [C, H, W]."""
        whole = self.merged()
        return (whole.squares / whole.count)[0]


def power_spectrum(images: Tensor | Iterable[Tensor]) -> Tensor:
    """The power spectrum S: the variance over images of each DCT coefficient, float64 [C, H, W].

    Args:
        images: in [-1, 1], [N, C, H, W]; or batches of such, of which one is in memory at a time.
    """
    batches = images.split(1000) if isinstance(images, Tensor) else images
    return reduce(lambda a, b: Moments.cat([a, b]).merged(), map(Moments.of, batches)).variance()
