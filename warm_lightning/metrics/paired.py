"""Which of two models is better: the difference of their scores with a confidence interval over paired seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from warm_lightning.metrics.frechet import Moments, Normal, frechet_distance

BLOCKS = 20
CONFIDENCE = 0.95


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
    t for blocks − 1 degrees of freedom. What chance does to both models, who share their seeds' noise, cancels. It
    is an interval for the difference of the expected scores at this number of images: a Fréchet distance is biased
    upwards by about 1/N, much the same for both. (A bootstrap, whose replicates repeat images, would add that bias
    once more, by different amounts.) The number of seeds should be several times that of the features.

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
