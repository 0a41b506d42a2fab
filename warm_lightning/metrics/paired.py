"""The difference of two models' scores with a confidence interval over paired seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from warm_lightning.metrics.distances import Normal, ThinNormal, frechet_distance, moment_sums

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


def paired_frechet(a: Tensor, b: Tensor, reference: Normal | ThinNormal, blocks: int = BLOCKS) -> Difference:
    """Fréchet distances of two models' samples of the same seeds to a reference, and their difference.

    The interval is that of the delete-a-block jackknife (Shao & Wu 1989) over `blocks` blocks of seeds, with Student's
    t for blocks − 1 degrees of freedom. It is for the difference of the *expected* distances *at this number of
    images*, given these two trained models and this reference: it says nothing of other trainings, nor of the
    distances' limit for many images. A distance is biased upwards by the order of F/N, and that bias cancels only
    between models with about the same covariance. The noise of the seeds, which both models share, cancels in part.

    It is conservative near the reference: where both models are nearly perfect, the distance has no first-order term,
    and intervals are 1.3 to 1.5 times too wide. With N < 2F (see `too_few`) the bias rules. (A bootstrap, whose
    replicates repeat images, would add that bias once more, by different amounts.)

    Args:
        a: features of A's samples, [N, F]; row i is of seed i.
        b: features of B's, likewise.
        reference: to which both distances are measured.
        blocks: 2 to N/2; block j has the seeds j, j + blocks, …
    """
    (score_a, rests_a), (score_b, rests_b) = (_leave_out(features, reference, blocks) for features in (a, b))
    differences = [rest_a - rest_b for rest_a, rest_b in zip(rests_a, rests_b, strict=True)]
    # The estimates have all but one block in common: their spread is scaled up to that of one on all blocks.
    error = float(np.std(differences, ddof=1)) * (blocks - 1) / sqrt(blocks)
    half = error * _quantile(blocks - 1)
    value = score_a - score_b
    return Difference(score_a, score_b, value - half, value + half)


def _leave_out(features: Tensor, reference: Normal | ThinNormal, blocks: int) -> tuple[float, list[float]]:
    """The Fréchet distance of features [N, F], and that of all of them but for each block."""
    images = torch.arange(len(features))
    if len(features) < features.shape[1]:
        chosen = [images >= 0, *(images % blocks != j for j in range(blocks))]
        whole, *rests = (frechet_distance(ThinNormal.from_features(features[c]), reference) for c in chosen)
        return whole, rests
    sums, rests = _moment_sums(features), []
    for j in range(blocks):
        block = _moment_sums(features[j::blocks])
        rest = Normal.from_sums({name: sums[name] - block[name] for name in sums})
        rests.append(frechet_distance(rest, reference))
    return frechet_distance(Normal.from_sums(sums), reference), rests


def too_few(images: int, features: int) -> str:
    """A warning where a comparison has few images for its number of features; empty where there are enough."""
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
        b: B's score in the same rounds.
    """
    differences = np.subtract(a, b)
    half = float(differences.std(ddof=1)) / sqrt(len(differences)) * _quantile(len(differences) - 1)
    value = float(differences.mean())
    return Difference(float(np.mean(a)), float(np.mean(b)), value - half, value + half)


def _quantile(freedom: int) -> float:
    """Student's t for both ends of the interval."""
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _moment_sums(features: Tensor) -> dict[str, Tensor]:
    """The `moment_sums` of many images, of which few are in float64 at once."""
    sums = moment_sums(features[:0])
    for part in features.split(4096):
        sums = {name: sums[name] + more for name, more in moment_sums(part).items()}
    return sums
