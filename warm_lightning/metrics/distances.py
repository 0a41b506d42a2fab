"""Distances between sets of features: Fréchet, kernel and nearest neighbours; and the score of class probabilities.

Sums over images are dictionaries of tensors that can be added over batches and over processes, and subtracted.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from warm_lightning.rng import key

SUBSETS = 100
"""Random subsets that a kernel distance is averaged over."""
SUBSET_SIZE = 1000
"""Images in each of them, where there are as many."""
BLOCK = 2**25
"""Squared distances held at once: 128 MiB in float32."""
RESOLUTION = 2.0**-18
"""The share of |x|² + |y|² below which a squared distance is a rounding error."""


# ---------------------------------------------------------------------- Fréchet distance


@dataclass(frozen=True)
class Normal:
    """A normal distribution over F features.

    Attributes:
        mean: μ, float64 [F].
        covariance: Σ, float64 [F, F].
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def from_sums(cls, sums: Mapping[str, Tensor]) -> "Normal":
        """Mean and covariance (divided by N − 1) of N ≥ 2 images, from their `moment_sums`."""
        count = sums["count"]
        mean = sums["features"] / count
        scatter = sums["products"] - count * torch.outer(mean, mean)
        return cls(mean, scatter / (count - 1))

    def trace(self) -> Tensor:
        """tr Σ, []."""
        return self.covariance.trace()

    def covariance_norm(self) -> Tensor:
        """‖Σ‖, the root of the sum of all squares, []."""
        return self.covariance.norm()

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues Λ, ascending, float64 [F], and eigenvectors Q, float64 [F, F], of Σ = Q Λ Qᵀ."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return values, vectors

    @cached_property
    def root(self) -> Tensor:
        """The factor Q √Λ of Σ, float64 [F, F].

        Eigenvalues below the rounding error of the largest are set to 0. Where Σ has not full rank (fewer
        images than features, or features that never fire) they are rounding errors, and their square
        roots would be of the order of 10⁻⁸ each instead of 10⁻¹⁶.
        """
        values, vectors = self.spectrum
        floor = values[-1] * len(values) * torch.finfo(values.dtype).eps
        return vectors * values.where(values > floor, 0).sqrt()


@dataclass(frozen=True)
class ThinNormal:
    """The normal distribution of N < F images' features, in the form of a factor of Σ instead of the F×F matrix.

    Attributes:
        mean: μ, float64 [F].
        root: the factor of Σ = root rootᵀ, float64 [F, N]: the centred features over √(N − 1).
    """

    mean: Tensor
    root: Tensor

    @classmethod
    def from_features(cls, features: Tensor) -> "ThinNormal":
        """Mean and covariance (divided by N − 1) of the features [N, F] of N ≥ 2 images."""
        features = features.double()
        mean = features.mean(dim=0)
        return cls(mean, (features - mean).T / math.sqrt(len(features) - 1))

    @property
    def covariance(self) -> Tensor:
        """Σ, float64 [F, F], made anew each time."""
        return self.root @ self.root.T

    def trace(self) -> Tensor:
        """tr Σ, []."""
        return self.root.square().sum()

    def covariance_norm(self) -> Tensor:
        """‖Σ‖, the root of the sum of all squares, [], without Σ itself."""
        return (self.root.T @ self.root).norm()


def moment_sums(features: Tensor) -> dict[str, Tensor]:
    """Sums over images from which `Normal.from_sums` gets mean and covariance, in float64.

    They are the states of torchmetrics' FrechetInceptionDistance, for one set of images.

    Args:
        features: [B, F].

    Returns:
        "count" [], "features" [F] and "products" [F, F], the sum of outer products.
    """
    features = features.double()
    count = features.new_tensor(float(len(features)))
    return {"count": count, "features": features.sum(dim=0), "products": features.T @ features}


def frechet_distance(a: Normal | ThinNormal, b: Normal | ThinNormal) -> float:
    """The squared Fréchet distance of two normal distributions (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6).

    It is d² = |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^½).

    tr (Σ_a Σ_b)^½ is the sum of the singular values of root_aᵀ root_b. That is accurate to 10⁻⁸ of d² also without
    full rank, where the eigenvalues of Σ_a Σ_b, which torchmetrics uses, and scipy's sqrtm are wrong by
    10⁻⁷ for distant sets and by several per cent for close ones. For fewer images than features no F×F matrix is
    needed: with thin factors of N and M columns the product is [N, M].
    """
    cross = torch.linalg.svdvals(a.root.T @ b.root).sum()
    distance = (a.mean - b.mean).square().sum() + a.trace() + b.trace() - 2 * cross
    return max(0.0, distance.item())  # rounding can leave -1e-14 for a set and itself


def frechet_memory(features: int, counts: Sequence[int]) -> int:
    """About the bytes that Fréchet distances between sets of images take at the highest, for F features.

    A set of n < F images keeps its features in float32 and their factor; one of more images has sums of products, a
    covariance and its eigenvectors, each F×F, which are then multiplied and decomposed. Measured on pixels of 32×32,
    with all that scoring does beside it: 10 to 15 % less than this. Small sets take more: 500 of 64×64 1.3 GB, not 0.5.

    Args:
        features: F.
        counts: number of images of each set; those that are not kept one by one count as F.
    """
    kept = sum(20 * n * features if n < features else 24 * features**2 for n in counts)
    return kept + 64 * min(features, max(counts)) ** 2


# ---------------------------------------------------------------------- class score


def class_sums(logits: Tensor, index: Tensor, splits: int) -> dict[str, Tensor]:
    """Sums over images from which `class_score` is computed, in float64.

    Args:
        logits: [B, K].
        index: numbers of the images, int64 [B]; image i is in split i mod `splits`.
        splits: S.

    Returns:
        "counts" [S], "probabilities" [S, K], and "information" [S], the sum of Σ_y p(y|x) ln p(y|x).
    """
    split = index.to(logits.device) % splits
    logs = logits.double().log_softmax(dim=1)
    zeros = logs.new_zeros(splits, logits.shape[1])
    return {
        "counts": zeros[:, 0].index_add(0, split, torch.ones_like(logs[:, 0])),
        "probabilities": zeros.index_add(0, split, logs.exp()),
        "information": zeros[:, 0].index_add(0, split, (logs.exp() * logs).sum(dim=1)),
    }


def class_score(sums: Mapping[str, Tensor]) -> tuple[float, float]:
    """The Inception score exp E KL(p(y|x) ‖ p(y)) (Salimans et al. 2016) from `class_sums`, 1 to the number of classes.

    It equals torchmetrics' InceptionScore, which cuts a random order of the images into splits instead.

    Returns:
        The mean over splits, and their standard deviation, not a number for a single split. Published scores are means
        over 10 splits, which are lower than the score of all images at once.
    """
    filled = sums["counts"] > 0
    counts = sums["counts"][filled]
    marginals = sums["probabilities"][filled] / counts[:, None]
    entropies = torch.special.xlogy(marginals, marginals).sum(dim=1)
    scores = (sums["information"][filled] / counts - entropies).exp()
    return scores.mean().item(), scores.std().item() if len(scores) > 1 else math.nan


# ---------------------------------------------------------------------- kernel distance


def kernel_distance(samples: Tensor, reference: Tensor, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation, over random subsets, of the unbiased squared MMD (Bińkowski et al. 2018, sec. 4).

    The kernel is (x·y/F + 1)³; each of 100 subsets has 1,000 images of either set or, where there are fewer, as many
    as the smaller set has. That is torchmetrics' KernelInceptionDistance with its defaults, but summed in float64, and
    with subsets that are a function of `seed` and of the sets' sizes: two models are compared on the same ones.

    Args:
        samples: [S, F], S ≥ 2.
        reference: [R, F], R ≥ 2.
        seed: of the subsets.
    """
    size = subset_size(len(samples), len(reference))
    generator = torch.Generator().manual_seed(key(seed, "kernel distance"))
    sets = reference, samples
    chosen = [torch.zeros(SUBSETS, len(x), dtype=torch.float64, device=x.device) for x in sets]
    for subset in range(SUBSETS):
        for ones in chosen:
            ones[subset, torch.randperm(ones.shape[1], generator=generator)[:size].to(ones.device)] = 1
    # Subsets of small sets overlap: the kernel of two images is then computed once for all subsets.
    at_once = SUBSETS if max(map(len, sets)) <= 4 * size else 1
    groups = zip(*(ones.split(at_once) for ones in chosen), strict=True)
    distances = torch.cat([_squared_mmd(*sets, *group) for group in groups])
    return distances.mean().item(), distances.std(unbiased=False).item()


def clip_distance(samples: Tensor, reference: Tensor) -> float:
    """1000 times the squared MMD of features of length 1, with a Gaussian kernel of σ = 10 (Jayasumana et al. 2024).

    It is the estimate of the authors' code, which counts each image's kernel with itself. The paper's Eq. 5 leaves
    that out and is unbiased; the difference falls with the number of images.

    Args:
        samples: [S, F].
        reference: [R, F].
    """
    x, y = (torch.nn.functional.normalize(z.double(), dim=1) for z in (samples, reference))
    return 1000 * (_mean_gaussian(x, x) + _mean_gaussian(y, y) - 2 * _mean_gaussian(x, y)).item()


def _mean_gaussian(x: Tensor, y: Tensor) -> Tensor:
    """The mean of exp(−|x − y|²/(2·10²)) over all pairs of rows of length 1, where |x − y|² = 2 − 2x·y."""
    blocks = [((block @ y.T - 1) / 100).exp().sum() for block in _blocks(x, y)]
    return torch.stack(blocks).sum() / (len(x) * len(y))


def subset_size(samples: int, reference: int) -> int:
    """Number of images in a subset of sets of given sizes."""
    return min(SUBSET_SIZE, samples, reference)


def _squared_mmd(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """Unbiased estimates of the squared maximum mean discrepancy (Gretton et al. 2012, Eq. 4); negative by chance.

    Args:
        x: [M, F].
        y: [N, F].
        in_x: float64 [K, M], for each of K subsets of x ones at its m images and zeros elsewhere, m ≥ 2.
        in_y: float64 [K, N], with as many ones.

    Returns:
        float64 [K], between the subsets of x and of y.
    """
    (x, in_x), (y, in_y) = ((z[used], ones[:, used]) for z, ones in ((x, in_x), (y, in_y)) for used in [ones.any(0)])
    size = in_x[0].sum()
    within = _kernel_sums(x, x, in_x, in_x) + _kernel_sums(y, y, in_y, in_y)
    return within / (size * (size - 1)) - 2 * _kernel_sums(x, y, in_x, in_y) / size**2


def _kernel_sums(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """Sums [K] of the kernel over the pairs of each subset; where y is x, without pairs of an image and itself."""
    sums = torch.zeros_like(in_x[:, 0])
    for start in range(0, len(x), SUBSET_SIZE):
        rows = slice(start, start + SUBSET_SIZE)
        kernel = _kernel(x[rows], y)
        if y is x:
            kernel.diagonal(start).zero_()
        sums += ((in_x[:, rows] @ kernel.double()) * in_y).sum(dim=1)
    return sums


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    base = torch.addmm(x.new_ones(()), x, y.T, alpha=1 / x.shape[1])
    return (base * base).mul_(base)  # pow takes ten times as long


# ---------------------------------------------------------------------- nearest neighbours


def coverage(queries: Tensor, points: Tensor, k: int = 3) -> float:
    """Fraction of the queries that lie in the manifold of the points, in [0, 1].

    The manifold of a set is the union of balls around its members, each as large as the distance to the member's k-th
    nearest neighbour. With samples as queries and a reference as points it is improved precision, the other way round
    improved recall (Kynkäänniemi et al. 2019, Eqs. 1–2).

    Args:
        queries: float32 [Q, F].
        points: float32 [P, F], P > k.
        k: which neighbour.
    """
    radii = nearest_distances(points, points, k + 1).square()
    inside = [(squared <= radii).any(dim=1) for squared in _squared_distances(queries, points)]
    return torch.cat(inside).double().mean().item()


def memorisation(samples: Tensor, training: Tensor, unseen: float) -> float:
    """Mean distance of samples to their nearest training image, over that of images that were not trained on.

    1 for new images of the data's distribution, clearly below 1 for copies, 0 for exact ones; above 1 for
    samples far from all data; not a number where the images that were not trained on are all copies themselves.

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
    nearest = [squared.topk(k, largest=False).indices[:, -1] for squared in _squared_distances(queries, points)]
    # From the difference: the products that find a neighbour do not resolve how near it is.
    blocks = zip(_blocks(queries, points), nearest, strict=True)
    return torch.cat([(block - points[index]).norm(dim=1) for block, index in blocks])


def _mean_distance(queries: Tensor, points: Tensor, k: int = 1) -> float:
    return nearest_distances(queries, points, k).double().mean().item()


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
