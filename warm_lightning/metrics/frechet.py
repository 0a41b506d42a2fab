"""Fréchet distance between two sets of features, each seen as a normal distribution."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


@dataclass(frozen=True)
class Normal:
    """A normal distribution over F features.

    Attributes:
        mean: μ, float64 [F].
        covariance: Σ, float64 [F, F].
    """

    mean: Tensor
    covariance: Tensor

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Λ, ascending, float64 [F], and Q, float64 [F, F], of Σ = Q Λ Qᵀ."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return values, vectors

    @cached_property
    def root(self) -> Tensor:
        """Q √Λ, float64 [F, F].

        Eigenvalues below the rounding error of the largest are set to 0. Where Σ has not full rank (fewer
        images than features, or features that never fire) they are rounding errors, and their square
        roots would be of the order of 10⁻⁸ each instead of 10⁻¹⁶.
        """
        values, vectors = self.spectrum
        floor = values[-1] * len(values) * torch.finfo(values.dtype).eps
        return vectors * values.where(values > floor, 0).sqrt()


def frechet_distance(a: Normal, b: Normal) -> float:
    """d² = |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^½) (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6).

    tr (Σ_a Σ_b)^½ is the sum of the singular values of root_aᵀ root_b. That holds 10⁻⁸ of d² also without
    full rank, where the eigenvalues of Σ_a Σ_b, which torchmetrics takes, and scipy's sqrtm are wrong by
    10⁻⁷ for distant sets and by several per cent for close ones.
    """
    cross = torch.linalg.svdvals(a.root.T @ b.root).sum()
    distance = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * cross
    return max(0.0, distance.item())  # rounding can leave -1e-14 for a set and itself


class Moments(Metric):
    """Running mean and covariance of features, summed in float64 and over devices.

    The states are those of torchmetrics' FrechetInceptionDistance, for one set of images.

    Args:
        num_features: F.
        **kwargs: torchmetrics' own, such as `sync_on_compute`.
    """

    full_state_update = False
    feature_sum: Tensor
    outer_sum: Tensor
    num_images: Tensor

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        sums = torch.zeros(num_features, dtype=torch.float64)
        self.add_state("feature_sum", sums, dist_reduce_fx="sum")
        self.add_state("outer_sum", torch.outer(sums, sums), dist_reduce_fx="sum")
        self.add_state("num_images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        """Take in features, [B, F]."""
        features = features.double()
        # Not in place: states made in inference mode could then not be updated outside it.
        self.feature_sum = self.feature_sum + features.sum(dim=0)
        self.outer_sum = self.outer_sum + features.T @ features
        self.num_images = self.num_images + len(features)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [F], covariance [F, F] (divided by N − 1) and N of what all devices took in."""
        mean = self.feature_sum / self.num_images
        scatter = self.outer_sum - self.num_images * torch.outer(mean, mean)
        return mean, scatter / (self.num_images - 1), self.num_images
