"""The dead-leaves model: images of opaque shapes that hide each other, with the power spectrum of photographs.

Leaves of random size, place, angle and colour have fallen on each other for ever, and an image is what is seen from
above (Matheron 1968). If the density of the radii is r⁻³, images look alike at every scale, and their spectrum is
S = c/λˢ with s near 1, as in photographs (Ruderman 1997; Lee, Mumford & Huang 2001). Networks that learn from such
images learn to see (Baradad et al. 2021).

An image is painted from the front to the back at `SUPERSAMPLING` times its resolution, until nothing behind can be
seen, and then averaged. It is a pure function of its index and a seed: the random numbers are those of Philox, a
generator with a counter, and all arithmetic is exact or correctly rounded by IEEE 754, so that its bytes are the same
on every machine.

Image k belongs to class k mod 10: all its leaves have one of the five `SHAPES`, and the smallest have one of two
radii (`SIZES`). The radius of the largest is the width of the image.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from warm_lightning.cache import cached
from warm_lightning.data.decode import block_means
from warm_lightning.data.image_set import ImageSet
from warm_lightning.distributed import progress
from warm_lightning.types import Batch

VERSION = 1
"""The version of the recipe in this file: another one makes other images, and other scores."""

Array = np.ndarray[Any, Any]


# ---------------------------------------------------------------------- shapes, sizes and colours


class Shape(NamedTuple):
    """A shape whose area is that of the unit disc, π, so that leaves of all shapes hide equally much.

    Attributes:
        name: in the plural, for the names of classes.
        contains: whether points (u, v) lie in the shape, whose centre is the origin.
        reach: the greatest distance of its points from the centre.
    """

    name: str
    contains: Callable[[Array, Array], Array]
    reach: float


SQUARE = math.sqrt(math.pi) / 2  # half the side
TRIANGLE = math.sqrt(math.pi / math.sqrt(27))  # the inradius of an equilateral triangle
CROSS = math.sqrt(math.pi / 5) / 2  # half the side of each of its five squares

SHAPES = (
    Shape("discs", lambda u, v: u * u + v * v <= 1, 1.0),
    Shape("squares", lambda u, v: np.maximum(abs(u), abs(v)) <= SQUARE, math.sqrt(2) * SQUARE),
    Shape("triangles", lambda u, v: (v >= -TRIANGLE) & (math.sqrt(3) * abs(u) + v <= 2 * TRIANGLE), 2 * TRIANGLE),
    Shape("bars", lambda u, v: (abs(u) <= 2 * SQUARE) & (abs(v) <= SQUARE / 2), math.sqrt(4.25) * SQUARE),
    Shape(
        "crosses",
        lambda u, v: (np.maximum(abs(u), abs(v)) <= 3 * CROSS) & (np.minimum(abs(u), abs(v)) <= CROSS),
        math.sqrt(10) * CROSS,
    ),
)
SIZES = {"fine": 1.6, "coarse": 4.0}
"""The radius of the smallest leaves, in pixels at any resolution, because photographs have detail at every scale."""
CLASSES = tuple(f"{size} {shape.name}" for size in SIZES for shape in SHAPES)

LUMINANCE, RED_BLUE, GREEN = 0.9, 0.29, 0.08
"""Half the widths of the uniform laws of the three principal components of a leaf's colour, before clipping to [-1, 1].

The components are those of CIFAR-10's pixels, whose standard deviations along them are 0.83, 0.22 and 0.10.
"""
MIXING = np.array([[LUMINANCE, RED_BLUE, GREEN], [LUMINANCE, 0, -2 * GREEN], [LUMINANCE, -RED_BLUE, GREEN]])

# Multiples of 2⁻³⁰, since the last bits of a cosine differ between mathematical libraries.
COSINES = np.rint(np.cos(np.arange(450) * math.pi / 180) * 2**30) / 2**30
"""The cosines of whole degrees; those of 90 degrees later are minus the sines."""


# ---------------------------------------------------------------------- one image

SUPERSAMPLING = 4
TILE = 8  # pixels: each tile is painted with the leaves near it only
PAINTED_AT_ONCE = 32  # leaves
FIRST_LEAVES, MOST_LEAVES = 256, 8192  # leaves that are drawn at once, of which most fall beside the image


class Leaves(NamedTuple):
    """Some leaves, one behind the other; lengths are in pixels, and points (x, y) = (0, 0) … (N, N).

    Attributes:
        x: the centre, float32 [L].
        y: the centre, float32 [L].
        cosine: of the angle, divided by the radius, float32 [L].
        sine: of the angle, divided by the radius, float32 [L].
        reach: the greatest distance of a leaf's points from its centre, float32 [L].
        colour: uint8 [L, 3].
    """

    x: Array
    y: Array
    cosine: Array
    sine: Array
    reach: Array
    colour: Array


def draw_leaves(rng: np.random.Generator, count: int, resolution: int, shape: Shape, smallest: float) -> Leaves:
    """Draw leaves and keep those near the image, on average as many per area as anywhere.

    A leaf may be seen if its centre is less than its reach outside the image. Of leaves with centres in the square
    that this is for the largest leaves, those of radius r have a share in proportion to the area (N + 2·reach·r)².

    Args:
        rng: gives two uniform numbers for each leaf, and six more for each that is kept.
        count: number of leaves.
        resolution: N, in pixels, also the largest radius.
        shape: of all leaves.
        smallest: radius, in pixels.
    """
    u = rng.random((count, 2))
    radius = 1 / np.sqrt(smallest**-2 - u[:, 0] * (smallest**-2 - resolution**-2))  # by inversion of the law r⁻³
    width = resolution + 2 * shape.reach * radius
    kept = u[:, 1] * (resolution + 2 * shape.reach * resolution) ** 2 <= width * width
    radius, width = radius[kept], width[kept]
    reach = shape.reach * radius
    u = rng.random((len(radius), 6))
    degrees = (360 * u[:, 2]).astype(np.int64)
    red, green, blue = (sum(w * c for w, c in zip(row, 2 * u[:, 3:].T - 1, strict=True)) for row in MIXING)
    colour = np.rint(127.5 * (np.clip(np.stack([red, green, blue], axis=1), -1, 1) + 1)).astype(np.uint8)
    return Leaves(
        (u[:, 0] * width - reach).astype(np.float32),
        (u[:, 1] * width - reach).astype(np.float32),
        (COSINES[degrees] / radius).astype(np.float32),
        (-COSINES[degrees + 90] / radius).astype(np.float32),
        reach.astype(np.float32),
        colour,
    )


@lru_cache(maxsize=4)
def tiles(resolution: int) -> list[tuple[Array, float, float]]:
    """The tiles of an image: the indices of their points, int64 [P], and their centres x and y in pixels."""
    side, tile = resolution * SUPERSAMPLING, TILE * SUPERSAMPLING
    index = np.arange(side * side).reshape(side, side)
    corners = [(x, y) for y in range(0, side, tile) for x in range(0, side, tile)]
    half = TILE / 2
    return [
        (index[y : y + tile, x : x + tile].ravel(), x / SUPERSAMPLING + half, y / SUPERSAMPLING + half)
        for x, y in corners
    ]


def paint(index: int, resolution: int, seed: int = 0) -> Array:
    """Paint an image at `SUPERSAMPLING` times its resolution; see `draw_image`.

    Returns:
        uint8 [S·resolution, S·resolution, 3], with S = SUPERSAMPLING.
    """
    size, number = divmod(index % len(CLASSES), len(SHAPES))
    shape, smallest = SHAPES[number], list(SIZES.values())[size]
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, index]))
    side = resolution * SUPERSAMPLING
    points = np.arange(side, dtype=np.float32) / SUPERSAMPLING + np.float32(0.5 / SUPERSAMPLING)
    x, y = np.tile(points, side), np.repeat(points, side)
    painted = np.empty((side * side, 3), np.uint8)
    bare, count = tiles(resolution), FIRST_LEAVES
    while bare:
        leaves = draw_leaves(rng, count, resolution, shape, smallest)
        left = []
        for points_left, centre_x, centre_y in bare:
            where = points_left
            reach = leaves.reach + TILE / 2
            (near,) = np.nonzero((abs(leaves.x - centre_x) < reach) & (abs(leaves.y - centre_y) < reach))
            for start in range(0, len(near), PAINTED_AT_ONCE):
                some = near[start : start + PAINTED_AT_ONCE]
                dx, dy = x[where] - leaves.x[some, None], y[where] - leaves.y[some, None]
                cosine, sine = leaves.cosine[some, None], leaves.sine[some, None]
                covered = shape.contains(dx * cosine + dy * sine, dy * cosine - dx * sine)
                first = covered.argmax(axis=0)  # the leaf in front
                seen = covered[first, np.arange(len(where))]
                painted[where[seen]] = leaves.colour[some[first[seen]]]
                where = where[~seen]
                if not len(where):
                    break
            else:
                left.append((where, centre_x, centre_y))
        bare, count = left, min(2 * count, MOST_LEAVES)
    return painted.reshape(side, side, 3)


def draw_image(index: int, resolution: int, seed: int = 0) -> Array:
    """Draw an image.

    Args:
        index: 0 ≤ index < 2⁶⁴; its class is index mod 10.
        resolution: height and width.
        seed: ≥ 0, of all images.

    Returns:
        uint8 [3, resolution, resolution].
    """
    return block_means(paint(index, resolution, seed), SUPERSAMPLING)


# ---------------------------------------------------------------------- sets of images

RESOLUTIONS = (8, 16, 32, 64)
CHUNK = 1000
"""Images in a file of the cache: an interrupted drawing goes on after the last whole file."""
FIRST_HELD_OUT = CHUNK * 10**9
"""The index of the first held-out image; no training takes so many images."""


def leaves_classes(index: Tensor) -> Tensor:
    """The classes of images, int64 [N] → int64 [N]."""
    return index % len(CLASSES)


def read_leaves(resolution: int, first: int, count: int, seed: int = 0) -> ImageSet:
    """The images from index `first` on, from the cache, or drawn and stored there; shows progress.

    Args:
        resolution: height and width.
        first: a multiple of `CHUNK`.
        count: number of images.
        seed: of all images.

    Raises:
        UserError: the cache cannot be written.
    """

    def draw(start: int) -> dict[str, Tensor]:
        images = [draw_image(k, resolution, seed) for k in progress(range(start, start + CHUNK), f"image {start} …")]
        return {"images": torch.from_numpy(np.stack(images))}

    shapes = {"images": (CHUNK, 3, resolution, resolution)}
    chunks = [
        cached(f"leaves{resolution}-v{VERSION}-seed{seed}/{start}.pt", shapes, partial(draw, start))["images"]
        for start in progress(range(first, first + count, CHUNK), f"dead leaves of {resolution}×{resolution}")
    ]
    index = first + torch.arange(count)
    return ImageSet(torch.cat(chunks)[:count], leaves_classes(index), CLASSES)


class EndlessLeaves(Dataset[Batch]):
    """Dead leaves as a data set whose items are batches, image p at position p; each is drawn when it is needed.

    Args:
        resolution: height and width.
        seed: of all images.
    """

    def __init__(self, resolution: int, seed: int) -> None:
        self.resolution = resolution
        self.seed = seed

    def __getitem__(self, positions: range) -> Batch:
        """The images at these positions ≥ 0."""
        images = np.stack([draw_image(position, self.resolution, self.seed) for position in positions])
        index = torch.tensor(positions)
        return Batch(torch.from_numpy(images), leaves_classes(index), index)
