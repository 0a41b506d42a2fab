"""Scores from distances to nearest neighbours in a feature space."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2**25  # distances held at once: 128 MiB in float32
RESOLUTION = 2.0**-18  # of |x|² + |y|²: squared distances below are rounding error


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, Eqs. 1–2).

    The manifold of a set is the union of balls around its members, each as large as the distance to the
    member's k-th nearest neighbour. Precision is the fraction of samples in the reference's manifold,
    recall that of the reference in the samples' manifold.

    Args:
        samples: float32 [S, F], S > k.
        reference: float32 [R, F], R > k.
        k: which neighbour.

    Returns:
        precision and recall, each in [0, 1].
    """
    return _covered(samples, reference, k), _covered(reference, samples, k)


def memorisation(samples: Tensor, training: Tensor, unseen: float) -> float:
    """Mean distance of samples to their nearest training image, over that of images that were not trained on.

    1 for new images of the data's distribution, clearly below 1 for copies, 0 for exact ones; above 1 for
    samples far from all data; not a number where those others are, all of them, copies themselves.

    Args:
        samples: float32 [S, F].
        training: float32 [N, F].
        unseen: `unseen_distance` for the same training images.
    """
    return _mean_distance(samples, training) / unseen if unseen else math.nan


def unseen_distance(training: Tensor, held_out: Tensor | None, limit: int) -> float:
    """Mean distance to the nearest training image of images that were not trained on.

    These are the held-out images or, without any, each training image in its turn, its nearest neighbour
    being among the others: a training set as dense as the whole, but for one image. (A half of the data
    held against the other would be half as dense, and would see only half of the copies.)

    Args:
        training: float32 [N, F].
        held_out: float32 [H, F].
        limit: how many distances to average, those of the first images.
    """
    if held_out is None:
        return _mean_distance(training[:limit], training, 2)
    return _mean_distance(held_out[:limit], training)


def nearest_distances(queries: Tensor, points: Tensor, k: int = 1) -> Tensor:
    """Euclidean distance of each query to its k-th nearest point; a query that is a point is its own first.

    Args:
        queries: float32 [Q, F].
        points: float32 [P, F], P ≥ k.
        k: from 1.

    Returns:
        float32 [Q].
    """
    found = [squared.topk(k, largest=False).indices[:, -1] for squared in _squared_distances(queries, points)]
    # From the difference: the products that find a neighbour do not resolve how near it is.
    blocks = zip(_blocks(queries, points), found, strict=True)
    return torch.cat([(block - points[index]).norm(dim=1) for block, index in blocks])


def _mean_distance(queries: Tensor, points: Tensor, k: int = 1) -> float:
    return nearest_distances(queries, points, k).double().mean().item()


def _covered(queries: Tensor, points: Tensor, k: int) -> float:
    radii = nearest_distances(points, points, k + 1).square()
    inside = [(squared <= radii).any(dim=1) for squared in _squared_distances(queries, points)]
    return torch.cat(inside).double().mean().item()


def _squared_distances(queries: Tensor, points: Tensor) -> Iterator[Tensor]:
    """Blocks [q, P] of |x − y|² = |x|² + |y|² − 2x·y, with the points' mean as origin to lose few digits."""
    origin = points.mean(dim=0)
    points = points - origin
    squares = points.square().sum(dim=1)
    for block in _blocks(queries, points):
        x = block - origin
        scale = x.square().sum(dim=1, keepdim=True) + squares
        squared = torch.addmm(scale, x, points.T, alpha=-2)
        yield squared.where(squared > RESOLUTION * scale, 0)


def _blocks(queries: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    return queries.split(max(1, BLOCK // len(points)))
