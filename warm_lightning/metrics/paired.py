"""Which of two models is better: the difference of their scores with a confidence interval over paired seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from warm_lightning.metrics.distances import Moments, Normal, frechet_distance

BLOCKS = 20
CONFIDENCE = 0.95
MEANING = "95 % for the difference of expected scores at this number of images, of these trained models and reference"


@dataclass(frozen=True)
class Difference:
    """A difference A − B with its confidence interval.

    Attributes:
        a: score of A.
        b: score of B.
        low: lower end of the interval of the difference.
        high: upper end.
    """

    a: float
    b: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """A − B."""
        return self.a - self.b


def paired_frechet(a: Tensor, b: Tensor, reference: Normal, blocks: int = BLOCKS) -> Difference:
    """Fréchet distances of two models' samples of the same seeds to a reference, and their difference.

    The interval is that of the delete-a-block jackknife (Shao & Wu 1989) over `blocks` blocks of seeds, with Student's
    t for blocks − 1 degrees of freedom. It is for the difference of the *expected* distances *at this number of
    images*, given these two trained models and this reference: it says nothing of other trainings, nor of the
    distances' limit for many images. A distance is biased upwards by the order of F/N, and that bias cancels only
    between models with about the same covariance. What chance does to both models, who share their seeds' noise,
    cancels in part.

    It is conservative near the reference: where both models are nearly perfect, the distance has no first-order term,
    and intervals are 1.3 to 1.5 times too wide. With N < 2F (see `too_few`) the bias rules. (A bootstrap, whose
    replicates repeat images, would add that bias once more, by different amounts.)

    Args:
        a: features of A's samples, [N, F]; row i is of seed i.
        b: features of B's, likewise.
        reference: what both are compared with.
        blocks: 2 to N/2; block j has the seeds j, j + blocks, …
    """
    whole = [_moments(features) for features in (a, b)]
    scores = [_distance(moments, reference) for moments in whole]
    differences = []
    for j in range(blocks):
        left_out = [_moments(features[j::blocks]) for features in (a, b)]
        pair = [_distance(_without(m, part), reference) for m, part in zip(whole, left_out, strict=True)]
        differences.append(pair[0] - pair[1])
    # Of estimates that have all but one block in common, scaled up to one on all of them.
    error = float(np.std(differences, ddof=1)) * (blocks - 1) / sqrt(blocks)
    half = error * _quantile(blocks - 1)
    value = scores[0] - scores[1]
    return Difference(scores[0], scores[1], value - half, value + half)


def too_few(images: int, features: int) -> str:
    """What to say of a comparison of so many images with so many features; nothing where there are enough."""
    if images >= 2 * features:
        return ""
    return (
        f"{images:,} images are fewer than twice the {features:,} features: the distances are mostly bias, which need "
        "not cancel in the difference."
    )


def paired_rounds(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Mean scores of two models over rounds of the same seeds, with Student's interval for their difference.

    Args:
        a: A's score in each of at least 2 rounds.
        b: B's in the same ones.
    """
    differences = np.subtract(a, b)
    half = float(differences.std(ddof=1)) / sqrt(len(differences)) * _quantile(len(differences) - 1)
    value = float(differences.mean())
    return Difference(float(np.mean(a)), float(np.mean(b)), value - half, value + half)


def _quantile(freedom: int) -> float:
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom))


def _moments(features: Tensor) -> Moments:
    moments = Moments(features.shape[1], sync_on_compute=False).to(features.device)
    for part in features.split(4096):
        moments.update(part)
    return moments


def _without(whole: Moments, part: Moments) -> Moments:
    rest = Moments(len(whole.feature_sum), sync_on_compute=False).to(whole.feature_sum.device)
    rest.feature_sum = whole.feature_sum - part.feature_sum
    rest.outer_sum = whole.outer_sum - part.outer_sum
    rest.num_images = whole.num_images - part.num_images
    rest.update(torch.empty(0, len(whole.feature_sum), device=whole.feature_sum.device))
    return rest


def _distance(moments: Moments, reference: Normal) -> float:
    mean, covariance, _ = moments.compute()
    return frechet_distance(Normal(torch.atleast_1d(mean), torch.atleast_2d(covariance)), reference)
