"""Augmentation that the network is told of, so that it does not leak into samples."""

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
    """A random change of images, and the vector that describes it.

    Attributes:
        dim: length of the vector; zeros in it mean an image that was left as it is.
    """

    dim: int

    @abstractmethod
    def __call__(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] in [-1, 1] → changed images of that shape and dtype, and labels [B, dim]."""


class NonLeaky(Augmentation):
    """Flips, scaling, rotation, stretching and translation (Karras et al. 2022, Appendix F.2, Table 6).

    Every image is mirrored left to right with probability ½; each other transformation happens with
    probability `p`, in the order of `Transforms`. Images are resampled as in Karras et al. 2020 ("Training GANs
    with limited data", Appendix B), each but once, and continue beyond their edges as in a mirror. Images that
    are only flipped or turned by right angles are not resampled: their pixels keep their bits.

    An image takes the same draws whatever `p` is and whatever becomes of the others.

    Args:
        p: probability in [0, 1]; 0.12 for CIFAR-10 and 0.15 for FFHQ (EDM's recipe).

    Raises:
        UserError: for another p; when called, for images that are not square.
    """

    dim = 9

    def __init__(self, p: float) -> None:
        check(0 <= p <= 1, f"augmentation probability p is {p}: it must be between 0 and 1")
        self.p = p

    def __call__(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, H], float32 or float64 in [-1, 1] → changed images, which may leave that range, and
        labels [B, 9]; see `Transforms.labels`."""
        height, width = images.shape[-2:]
        check(height == width > 1, f"augmentation turns images, which must be square, not {height}×{width}")
        transforms = self.draw(draws, images.dtype)
        turned, angle = transforms.flip_and_turn(images)
        with full_precision(images.device):
            moved = resample(turned, *transforms.inverse(angle))
        changed = torch.where(transforms.moves(angle)[:, None, None, None], moved, turned)
        return changed, transforms.labels()

    def draw(self, draws: Draws, dtype: torch.dtype) -> "Transforms":
        """What is to happen to each image."""
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
    """What happens to each image of a batch, in this order and about the image's centre; all [B], 0 for nothing.

    x runs to the right and y down, as columns and rows do.

    Attributes:
        x_flip: 1 to mirror left to right.
        y_flip: 1 to mirror top to bottom.
        scale: w of an enlargement by 2^(0.2 w).
        turn: fraction of a full turn, counter-clockwise as displayed, in [-½, ½); θ = 2π turn.
        stretch: w of a stretch by 2^(0.2 w) along one axis and by its inverse across it.
        axis: r, angle of that axis in radians, from the x axis towards y.
        shift_x: w of a shift to the right by 0.125 w of the width.
        shift_y: w of a shift downwards by 0.125 w of the height.
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
        """[B, 9]: x-flip, y-flip, scale w, cos θ - 1, sin θ, stretch w cos r, w sin r, shift w in x and in y.

        They are the published ones, which leave one thing unsaid: (w, r) and (-w, r + π), of opposite effect,
        have the same w cos r and w sin r.
        """
        angle = 2 * math.pi * self.turn
        along, across = self.stretch * self.axis.cos(), self.stretch * self.axis.sin()
        turned = angle.cos() - 1, angle.sin()
        labels = (self.x_flip, self.y_flip, self.scale, *turned, along, across, self.shift_x, self.shift_y)
        return torch.stack(labels, dim=1)

    def flip_and_turn(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Flips, and the right angles nearest to the rotation, which move pixels and leave their values alone.

        Returns:
            images [B, C, H, H], and the angle by which they remain to be turned, [B] in [-π/4, π/4].
        """
        quarters = (4 * self.turn).round()
        angle = 2 * math.pi * (self.turn - quarters / 4)
        quarters = quarters.remainder(4)
        # A quarter turn swaps rows and columns and then mirrors top to bottom; flips before it are swapped too.
        swap = quarters.remainder(2) == 1
        columns = torch.where(swap, self.y_flip, self.x_flip) + (quarters >= 2)
        rows = torch.where(swap, self.x_flip, self.y_flip) + ((quarters == 1) | (quarters == 2))
        images = torch.where(swap[:, None, None, None], images.mT, images)
        images = torch.where(columns[:, None, None, None] == 1, images.flip(3), images)
        return torch.where(rows[:, None, None, None] == 1, images.flip(2), images), angle

    def moves(self, angle: Tensor) -> Tensor:
        """Whether anything is left to do after `flip_and_turn`, which returned `angle`; bool [B]."""
        left = torch.stack([self.scale, angle, self.stretch, self.shift_x, self.shift_y])
        return (left != 0).any(dim=0)

    def inverse(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Where what is left after `flip_and_turn` takes pixels from.

        Returns:
            linear [B, 2, 2] and shift [B, 2], the latter as a fraction of the size, such that what ends at
            (x, y) from the centre comes from linear @ ((x, y) - shift).
        """
        smaller = 2 ** (-0.2 * self.scale)
        cos, sin = smaller * angle.cos(), smaller * angle.sin()
        back = torch.stack([cos, -sin, sin, cos], dim=1).unflatten(1, (2, 2))
        along, across = 2 ** (-0.2 * self.stretch), 2 ** (0.2 * self.stretch)
        cos, sin = self.axis.cos(), self.axis.sin()
        mixed = (along - across) * cos * sin
        pressed = [along * cos**2 + across * sin**2, mixed, mixed, along * sin**2 + across * cos**2]
        linear = back @ torch.stack(pressed, dim=1).unflatten(1, (2, 2))
        return linear, 0.125 * torch.stack([self.shift_x, self.shift_y], dim=1)


# ---------------------------------------------------------------------- resampling
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
"""The orthogonal low-pass filter of the wavelet sym6 (Daubechies' least asymmetric one with 6 vanishing moments)."""

DELAY = sum(n * h for n, h in enumerate(SYM6)) / sum(SYM6)
"""The filter's centre of mass: pixel k is at position 2k + DELAY after upsampling."""


@lru_cache(maxsize=16)
def _upsampling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Upsampling by two of a row that goes on as in a mirror: [4 size - 3, size].

    Such a row has a period of 2 (size - 1) pixels, and so has what comes of it: a whole period and one more
    value stand for a row without end.
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
    """The transposed filter, which undoes upsampling: [size, 2 size + 10]."""
    matrix = torch.zeros(size, 2 * size + len(SYM6) - 2, dtype=torch.float64)
    for pixel in range(size):
        matrix[pixel, 2 * pixel : 2 * pixel + len(SYM6)] = torch.tensor(SYM6, dtype=torch.float64) / 2**0.5
    return matrix.to(device=device, dtype=dtype)


def resample(images: Tensor, linear: Tensor, shift: Tensor) -> Tensor:
    """An affine map of images, band-limited: upsampled by two, interpolated bilinearly, downsampled by two.

    Both filters are matrices here, a few rows more than the image has: faster than convolutions, and the
    mirrored continuation costs no margin that would have to be guessed.

    Args:
        images: [B, C, H, H].
        linear: inverse linear map about the centre, [B, 2, 2] on (x, y) = (column, row).
        shift: translation in units of H, [B, 2].

    Returns:
        [B, C, H, H]; the image itself, to rounding, for the identity and for shifts by whole pixels.
    """
    size = images.shape[-1]
    up, down = (make(size, images.dtype, images.device) for make in (_upsampling, _downsampling))
    centre = (size - 1) + DELAY  # among upsampled positions, which are half a pixel apart
    ends = torch.arange(down.shape[1], dtype=images.dtype, device=images.device) - centre
    x, y = ends - 2 * size * shift[:, :1], ends - 2 * size * shift[:, 1:]
    period = up.shape[0] - 1
    upsampled = up @ images @ up.T
    # [B, row, column, (x, y)]
    origin = linear[:, None, None, :, 0] * x[:, None, :, None] + linear[:, None, None, :, 1] * y[:, :, None, None]
    position = (origin + centre).remainder(period)
    sampled = F.grid_sample(upsampled, 2 * position / period - 1, padding_mode="border", align_corners=True)
    return down @ sampled @ down.T
