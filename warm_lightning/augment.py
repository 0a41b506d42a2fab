"""Non-leaking augmentation: the network is conditioned on it, so that it does not appear in samples."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from warm_lightning.errors import check
from warm_lightning.rng import Draws
from warm_lightning.spectral import full_precision


class Augmentation(ABC):
    """A random transformation of images, with a vector that describes it for the network.

    Attributes:
        dim: length of the vector; all zeros mean an unchanged image.
    """

    dim: int

    @abstractmethod
    def __call__(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Transform images [B, C, H, W] in [-1, 1]; returns images of equal shape and dtype, and labels [B, dim]."""


class NonLeaky(Augmentation):
    """EDM's augmentation (Karras et al. 2022, Appendix F.2, Table 6): flips, scaling, rotation, stretch, translation.

    Every image is mirrored left to right with probability ½. Each other transformation happens with
    probability `p`, in the order of `Transforms`. Images are resampled as in Karras et al. 2020 ("Training GANs
    with limited data", Appendix B), only once for all transformations, and are mirrored at their edges. Images that
    are only flipped are not resampled: their pixels keep their bits. Half of the stretches are along the x axis.

    Pixels and labels are those of EDM to 1e-5, so that weights trained by EDM's code mean the same here.

    The draws for an image depend neither on `p` nor on the other images.

    Args:
        p: probability in [0, 1]; 0.12 for CIFAR-10 and 0.15 for FFHQ (EDM's recipe).

    Raises:
        UserError: p is not a probability; or, in a call, the images are not square.
    """

    dim = 9

    def __init__(self, p: float) -> None:
        check(0 <= p <= 1, f"augmentation probability p is {p}: it must be between 0 and 1")
        self.p = p

    def __call__(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Transform images [B, C, H, H], float32 or float64 in [-1, 1].

        Returns:
            The images, which may exceed the range, and labels [B, 9]; see `Transforms.labels`.
        """
        height, width = images.shape[-2:]
        check(height == width > 1, f"augmentation rotates images, so they must be square, not {height}×{width}")
        transforms = self.draw(draws, images.dtype)
        return transforms.apply(images), transforms.labels()

    def draw(self, draws: Draws, dtype: torch.dtype) -> "Transforms":
        """Draw the transformation of each image."""
        x_coin, y_coin, turn, axis, axis_coin, *chances = draws.uniform(10, dtype=dtype).unbind(1)
        y_flip, scale, rotation, stretch, translation = ((chance < self.p).to(dtype) for chance in chances)
        w = draws.normal(4, dtype=dtype)
        return Transforms(
            x_flip=(x_coin < 0.5).to(dtype),
            y_flip=y_flip * (y_coin < 0.5),
            scale=scale * w[:, 0],
            turn=rotation * (turn - 0.5),
            stretch=stretch * w[:, 1],
            axis=(axis_coin < 0.5) * (2 * math.pi) * (axis - 0.5),
            shift_x=translation * w[:, 2],
            shift_y=translation * w[:, 3],
        )


@dataclass(frozen=True)
class Transforms:
    """The transformation of each image of a batch, about the image's centre, in the order of the attributes.

    All attributes are [B], and 0 means no change. The x axis points to the right and y down, as columns and rows do.

    Attributes:
        x_flip: 1 to mirror left to right.
        y_flip: 1 to mirror top to bottom.
        scale: w; the image is enlarged by 2^(0.2 w).
        turn: fraction of a full turn, counter-clockwise as displayed, in [-½, ½); θ = 2π turn.
        stretch: w; the image is stretched by 2^(0.2 w) along an axis and by the inverse across it.
        axis: r, angle of this axis in radians, counter-clockwise as displayed, from the x axis; 0 with probability ½.
        shift_x: w; the image is shifted to the right by 0.125 w of its width.
        shift_y: w; the image is shifted down by 0.125 w of its height.
    """

    x_flip: Tensor
    y_flip: Tensor
    scale: Tensor
    turn: Tensor
    stretch: Tensor
    axis: Tensor
    shift_x: Tensor
    shift_y: Tensor

    def labels(self) -> Tensor:
        """The labels [B, 9]: x-flip, y-flip, scale w, cos θ - 1, sin θ, stretch w cos r, w sin r, shifts w in x and y.

        These are the published labels. They are ambiguous in one point: (w, r) and (-w, r + π) have opposite effects
        but equal w cos r and w sin r.
        """
        angle = 2 * math.pi * self.turn
        along, across = self.stretch * self.axis.cos(), self.stretch * self.axis.sin()
        turned = angle.cos() - 1, angle.sin()
        labels = (self.x_flip, self.y_flip, self.scale, *turned, along, across, self.shift_x, self.shift_y)
        return torch.stack(labels, dim=1)

    def apply(self, images: Tensor) -> Tensor:
        """Transform images [B, C, H, H]; those that are only flipped keep the bits of their pixels."""
        for flip, axis in ((self.x_flip, 3), (self.y_flip, 2)):
            images = torch.where(flip[:, None, None, None] == 1, images.flip(axis), images)
        moved = torch.stack([self.scale, self.turn, self.stretch, self.shift_x, self.shift_y]).ne(0).any(dim=0)
        with full_precision(images.device):
            return torch.where(moved[:, None, None, None], resample(images, *self.inverse()), images)

    def inverse(self) -> tuple[Tensor, Tensor]:
        """The inverse of the transformations other than flips, as an affine map of positions.

        Returns:
            linear [B, 2, 2] and shift [B, 2], the latter as a fraction of the size: the pixel at (x, y) from the
            centre is taken from linear @ ((x, y) - shift).
        """
        smaller, angle = 2 ** (-0.2 * self.scale), 2 * math.pi * self.turn
        cos, sin = smaller * angle.cos(), smaller * angle.sin()
        turn_back = torch.stack([cos, -sin, sin, cos], dim=1).unflatten(1, (2, 2))
        along, across = 2 ** (-0.2 * self.stretch), 2 ** (0.2 * self.stretch)
        cos, sin = self.axis.cos(), -self.axis.sin()  # y is down
        mixed = (along - across) * cos * sin
        unstretch = [along * cos**2 + across * sin**2, mixed, mixed, along * sin**2 + across * cos**2]
        linear = turn_back @ torch.stack(unstretch, dim=1).unflatten(1, (2, 2))
        return linear, 0.125 * torch.stack([self.shift_x, self.shift_y], dim=1)


# ---- resampling

SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
"""The orthogonal low-pass filter of the wavelet sym6 (Daubechies' least asymmetric one with 6 vanishing moments)."""

DELAY = 5.0
"""The position of the filter's centre: pixel k is taken to be at position 2k + DELAY after upsampling.

This is EDM's choice. The filter's centre of mass is at 5.098, so the point that stays in place is 0.049 pixels to the
left of the image's centre and as far above it. On plane waves of 40, 20 and 10 pixels, turned and scaled, the
root-mean-square error is at most 0.016, 0.031 and 0.055 with 5, and 0.0004, 0.002 and 0.012 with 5.098; on waves of 4
and 3 pixels, which this filter delays less, 0.09 and 0.21 with 5, and 0.18 and 0.35 with 5.098. Both are defensible,
and the published networks were trained with 5.
"""


@lru_cache(maxsize=16)
def _upsampling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix [4 size - 3, size] that upsamples by two a row of pixels which is mirrored at its ends.

    Such a row has a period of 2 (size - 1) pixels, and the result has the same period: one whole period and one more
    value represent the infinite row.
    """
    matrix = torch.zeros(4 * size - 3, size, dtype=torch.float64)
    for n in range(len(matrix)):
        for tap, h in enumerate(SYM6):
            if (n - tap) % 2 == 0:
                pixel = (n - tap) // 2 % (2 * size - 2)
                matrix[n, min(pixel, 2 * size - 2 - pixel)] += 2**0.5 * h
    return matrix.to(device=device, dtype=dtype)


@lru_cache(maxsize=16)
def _downsampling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix [size, 2 size + 10] of the transposed filter, which inverts the upsampling."""
    matrix = torch.zeros(size, 2 * size + len(SYM6) - 2, dtype=torch.float64)
    for pixel in range(size):
        matrix[pixel, 2 * pixel : 2 * pixel + len(SYM6)] = torch.tensor(SYM6, dtype=torch.float64) / 2**0.5
    return matrix.to(device=device, dtype=dtype)


def resample(images: Tensor, linear: Tensor, shift: Tensor) -> Tensor:
    """Apply an affine map to images: upsample by two, interpolate bilinearly, downsample by two.

    Both filters are applied as matrices, which is faster than convolutions, and with the exact mirrored continuation
    it needs no margin of a chosen width.

    Args:
        images: [B, C, H, H].
        linear: inverse linear map about the centre, [B, 2, 2] on (x, y) = (column, row).
        shift: translation in units of H, [B, 2].

    Returns:
        [B, C, H, H]; for the identity and for shifts by whole pixels, these are the pixels of the image up to rounding.
    """
    size = images.shape[-1]
    up, down = (make(size, images.dtype, images.device) for make in (_upsampling, _downsampling))
    centre = (size - 1) + DELAY  # among upsampled positions, which are half a pixel apart
    targets = torch.arange(down.shape[1], dtype=images.dtype, device=images.device) - centre
    x, y = targets - 2 * size * shift[:, :1], targets - 2 * size * shift[:, 1:]
    period = up.shape[0] - 1
    upsampled = up @ images @ up.T
    # [B, row, column, (x, y)]
    origin = linear[:, None, None, :, 0] * x[:, None, :, None] + linear[:, None, None, :, 1] * y[:, :, None, None]
    position = (origin + centre).remainder(period)
    sampled = F.grid_sample(upsampled, 2 * position / period - 1, padding_mode="border", align_corners=True)
    return down @ sampled @ down.T
