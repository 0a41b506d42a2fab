"""Scores of generated images: a class for each score, and the data that scores are computed from.

A new score is a subclass of `Score`, listed in `SCORES` or named by its class path in the configuration
(`scores.scores`). Names, tables, companions, summaries of rounds and files follow from the class.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.metrics.distances import (
    SUBSETS,
    Normal,
    ThinNormal,
    class_score,
    class_sums,
    clip_distance,
    coverage,
    frechet_distance,
    kernel_distance,
    memorisation,
    subset_size,
)
from warm_lightning.metrics.features import FeatureExtractor, Pixels
from warm_lightning.metrics.inception import FidelityFeatures
from warm_lightning.spectral import band_index, idct

Better = Literal["lower", "higher", "near 1"]
Need = Literal["features", "logits", "reference features", "training features"]
NEIGHBOURS = 3
"""k of precision and recall, as Kynkäänniemi et al. 2019 recommend; scores need more images than that."""


# ---------------------------------------------------------------------- data that scores are computed from


@dataclass(frozen=True)
class ScoreProtocol:
    """Settings of the scores that need single images' features.

    Attributes:
        max_neighbours: kernel distance, precision and recall compare the first so many samples with as many
            images of the reference, drawn at random; memorisation is of the first so many samples. The expectation
            of a kernel distance does not depend on it. That of precision and recall does, so that they compare as
            many images of either set as the smaller one has.
        seed: of the order of the reference, of halves, Gaussian and subsets.
    """

    max_neighbours: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        enough = self.max_neighbours > NEIGHBOURS
        check(enough, f"max_neighbours is {self.max_neighbours}: it must be at least {NEIGHBOURS + 1}")


DEFAULT = ScoreProtocol()


@dataclass(frozen=True)
class Summary:
    """A set of images in the form that scores are computed from.

    Attributes:
        count: number of images.
        normal: mean and covariance of their features.
        features: float32 [min(count, max_neighbours), F], of the first images.
        sums: for each score by its key, the `Score.sums` of all images.
    """

    count: int
    normal: Normal | ThinNormal
    features: Tensor
    sums: Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Reference:
    """A set of images that others are compared with.

    Attributes:
        normal: mean and covariance of its features.
        source: name or description of the data.
        protocol: by which `features` were chosen and `companions` computed.
        count: number of images; None where a file does not say.
        held_out_count: number of images that were not trained on.
        features: float32 [min(count, max_neighbours), F], of images in random order; None where not known.
        training: float32 [count, F], of all images; None where not known, or too many (over 262,144 images).
        unseen_distance: the mean distance of images that were not trained on to their nearest training image; None
            where `training` is.
        companions: scores of other images by the score's key, under "halves", "data" and "gaussian"; see `Score`.
        shape: C, H, W of the images; None where a file does not say.
    """

    normal: Normal | ThinNormal
    source: str
    protocol: ScoreProtocol = DEFAULT
    count: int | None = None
    held_out_count: int = 0
    features: Tensor | None = None
    training: Tensor | None = None
    unseen_distance: float | None = None
    companions: dict[str, dict[str, float]] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None

    def describe(self) -> dict[str, Any]:
        """The facts about the reference that scores must share to be comparable; plain data."""
        return {
            "reference": self.source,
            "reference_images": self.count,
            "held_out_images": self.held_out_count,
            **self.describe_companions(),
            "neighbours": NEIGHBOURS,
            "max_neighbours": self.protocol.max_neighbours,
            "seed": self.protocol.seed,
        }

    def moments(self) -> list[float]:
        """Norms of mean and covariance, which tell references apart whatever their names."""
        normal = self.normal
        return [norm.item() for norm in (normal.mean.norm(), normal.trace(), normal.covariance_norm())]

    def describe_companions(self) -> dict[str, Any]:
        """Numbers of images in each half of the data, and drawn from the Gaussian."""
        count = self.count or 0
        if not self.companions:
            return {"halves_images": None, "gaussian_images": 0}
        gaussian = min(count, self.protocol.max_neighbours)
        return {"halves_images": [count // 2, count - count // 2], "gaussian_images": gaussian}


# ---------------------------------------------------------------------- the base class


class Score(ABC):
    """A score of generated images against a reference.

    A subclass sets `key` and `better` and gives `compute`; the rest has defaults. Objects hold settings only, as
    attributes of the names of their arguments.

    Beside a score stand its companions, the same score of other images, under its name with an ending. They show how
    good a score can be expected to be: a perfect model is about as good as the halves, and a model without any
    structure as bad as the Gaussian.

    * `_halves`: one random half of the reference scored against the other. A Fréchet distance between finite sets is
      biased upwards by about 1/N for each of them: the halves' is about twice that of a perfect model with as many
      samples as the reference has. A score with `whole_data` has `_data` instead: that of the whole reference.
    * `_gaussian`: images drawn from the normal distribution that has the reference's pixel mean and covariance, as many
      as the reference has and at most `max_neighbours`, against the whole reference.

    Attributes:
        key: in names, such as `kid` of `kid50k`, and in files of reference statistics.
        better: the direction of better values.
        needs: "features" of the first `max_neighbours` samples, "logits" of all samples, "reference features" of as
            many images of the reference, "training features" of all of its images. Mean and covariance of all features
            are always there. The score is left out where the extractor or the reference does not have what it needs.
        equal_counts: whether it compares as many images of either set as the smaller one has.
        whole_data: whether it scores a set by itself, so that the companion is the whole data instead of halves.
        can_be_undefined: whether the value may be not a number, which files hold as null.
        halves_note: a remark on the halves' score for the notes below the table; empty for none.
        protocol_key: the name of `protocol` in files of scores; empty for none.
    """

    key: ClassVar[str]
    better: ClassVar[Better]
    needs: ClassVar[tuple[Need, ...]] = ("features", "reference features")
    equal_counts: ClassVar[bool] = False
    whole_data: ClassVar[bool] = False
    can_be_undefined: ClassVar[bool] = False
    halves_note: ClassVar[str] = ""
    protocol_key: ClassVar[str] = ""

    @abstractmethod
    def compute(self, samples: Summary, reference: Reference) -> float | tuple[float, float]:
        """The score of a set of images, and a spread if `spread` names one."""

    def sums(
        self, extractor: FeatureExtractor, features: Tensor, logits: Tensor | None, index: Tensor
    ) -> dict[str, Tensor]:
        """Tensors to be added up over all images for `compute`, by name, float64; by default none.

        Args:
            extractor: gave the features.
            features: float32 [B, F], of some images; B may be 0.
            logits: float32 [B, K], or None where the extractor has no classes.
            index: numbers of the images, int64 [B].
        """
        return {}

    def name(self, extractor: FeatureExtractor) -> str:
        """The score's part of its name on an extractor's features."""
        return self.key

    def spread(self, extractor: FeatureExtractor) -> str:
        """The ending of the name of a second number, such as a standard deviation; empty for none."""
        return ""

    def protocol(self, extractor: FeatureExtractor, count: int, reference: Reference) -> Any:
        """The facts about the score of `count` samples that others must share to be comparable; plain data."""
        return None

    def notes(self, extractor: FeatureExtractor) -> list[str]:
        """Lines to print below a table with the score."""
        return []

    # ------------------------------------------------------------------ derived from the class

    def images(self, count: int, reference: Reference) -> int:
        """The number of images, of `count` samples, that the score is computed from."""
        if "features" in self.needs:
            count = min(count, reference.protocol.max_neighbours)
        if self.equal_counts and reference.features is not None:
            count = min(count, len(reference.features))
        return count

    def full_name(self, extractor: FeatureExtractor, count: int, reference: Reference) -> str:
        """The name of the score of `count` samples, such as `kid10k_digits`."""
        return extractor.score_name(self.name(extractor), self.images(count, reference), reference.count)

    def with_spread(self, name: str, extractor: FeatureExtractor) -> list[str]:
        """A key or name of the score and, if there is one, that of its spread."""
        spread = self.spread(extractor)
        return [name, f"{name}_{spread}"] if spread else [name]

    def applies(self, extractor: FeatureExtractor) -> bool:
        """Whether the score means anything on an extractor's features; it is left out otherwise."""
        return True

    def lacks(self, reference: Reference) -> bool:
        """Whether a reference has no features that the score needs."""
        missing: dict[Need, bool] = {
            "reference features": reference.features is None,
            "training features": reference.training is None,
        }
        return any(missing.get(need) for need in self.needs)

    def identity(self) -> dict[str, Any]:
        """Class path and settings, which tell scores with equal names apart."""
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", **vars(self)}


def usable(scores: Sequence[Score], extractor: FeatureExtractor, reference: Reference, classes: bool) -> list[Score]:
    """The scores for which everything that they need is there.

    Args:
        scores: to choose from.
        extractor: of the features.
        reference: to score against.
        classes: whether the extractor gives logits.
    """
    there = [s for s in scores if s.applies(extractor) and not s.lacks(reference)]
    return [s for s in there if classes or "logits" not in s.needs]


def evaluate(
    scores: Sequence[Score], extractor: FeatureExtractor, samples: Summary, reference: Reference
) -> dict[str, float]:
    """Scores of a set of images, and their spreads, by `Score.with_spread` of the scores' keys."""
    values: dict[str, float] = {}
    for score in scores:
        result = score.compute(samples, reference)
        numbers = result if isinstance(result, tuple) else (result,)
        values |= zip(score.with_spread(score.key, extractor), numbers, strict=True)
    return values


# ---------------------------------------------------------------------- the scores


class FrechetDistance(Score):
    """Fréchet distance between the features of all samples and of the whole reference."""

    key = "frechet"
    better = "lower"
    needs = ()
    halves_note = "a Fréchet distance about twice a perfect model's bias"

    def name(self, extractor: FeatureExtractor) -> str:
        return extractor.frechet_name

    def compute(self, samples: Summary, reference: Reference) -> float:
        return frechet_distance(samples.normal, reference.normal)


class InceptionScore(Score):
    """Inception-style score, from the class probabilities of all samples; see `class_score`.

    It is the mean over the extractor's number of splits, with the standard deviation over them if there are several.
    """

    key = "is"
    better = "higher"
    needs = ("logits",)
    whole_data = True
    protocol_key = "inception_score_splits"

    def spread(self, extractor: FeatureExtractor) -> str:
        return "split_std" if extractor.splits > 1 else ""

    def sums(
        self, extractor: FeatureExtractor, features: Tensor, logits: Tensor | None, index: Tensor
    ) -> dict[str, Tensor]:
        assert logits is not None
        return class_sums(logits, index, extractor.splits)

    def compute(self, samples: Summary, reference: Reference) -> float | tuple[float, float]:
        sums = samples.sums[self.key]
        mean, spread = class_score(sums)
        return mean if len(sums["counts"]) == 1 else (mean, spread)

    def protocol(self, extractor: FeatureExtractor, count: int, reference: Reference) -> int:
        return extractor.splits

    def notes(self, extractor: FeatureExtractor) -> list[str]:
        return [f"is: mean over {extractor.splits} splits."] if extractor.splits > 1 else []


class KernelDistance(Score):
    """Kernel distance with its standard deviation over subsets; see `kernel_distance`."""

    key = "kid"
    better = "lower"
    protocol_key = "kernel_distance"

    def spread(self, extractor: FeatureExtractor) -> str:
        return "subset_std"

    def compute(self, samples: Summary, reference: Reference) -> tuple[float, float]:
        assert reference.features is not None
        return kernel_distance(samples.features, reference.features, reference.protocol.seed)

    def protocol(self, extractor: FeatureExtractor, count: int, reference: Reference) -> dict[str, Any]:
        assert reference.features is not None
        size = subset_size(self.images(count, reference), len(reference.features))
        return {"subsets": SUBSETS, "subset_size": size, "kernel": "(x·y/F + 1)^3"}


class ClipDistance(Score):
    """CMMD, the maximum mean discrepancy on CLIP's embeddings of images (Jayasumana et al. 2024); see `clip_distance`.

    Published values are on ViT-L/14 at 336 pixels: `FidelityFeatures` with `extractor: clip-vit-l-14-336px`.
    """

    key = "cmmd"
    better = "lower"
    protocol_key = "clip_distance"

    def applies(self, extractor: FeatureExtractor) -> bool:
        return isinstance(extractor, FidelityFeatures) and extractor.of_clip

    def compute(self, samples: Summary, reference: Reference) -> float:
        assert reference.features is not None
        return clip_distance(samples.features, reference.features)

    def protocol(self, extractor: FeatureExtractor, count: int, reference: Reference) -> dict[str, Any]:
        return {"kernel": "exp(-|x - y|^2/200) of unit vectors", "scale": 1000, "estimate": "with the diagonal"}


class _Coverage(Score):
    """Precision and recall with 3rd neighbours, in the extractor's features; published ones are often in VGG-16's."""

    better = "higher"
    equal_counts = True
    protocol_key = "precision_recall"

    def pair(self, samples: Summary, reference: Reference) -> tuple[Tensor, Tensor]:
        """Features of as many images of either set."""
        assert reference.features is not None
        count = min(len(samples.features), len(reference.features))
        return samples.features[:count], reference.features[:count]

    def protocol(self, extractor: FeatureExtractor, count: int, reference: Reference) -> dict[str, Any]:
        return {"images_of_each": self.images(count, reference), "features": "the extractor's, not VGG-16's"}


class Precision(_Coverage):
    """Improved precision: the fraction of samples in the manifold of the reference; see `coverage`."""

    key = "precision"

    def compute(self, samples: Summary, reference: Reference) -> float:
        of_samples, of_reference = self.pair(samples, reference)
        return coverage(of_samples, of_reference, NEIGHBOURS)


class Recall(_Coverage):
    """Improved recall: the fraction of the reference in the manifold of the samples; see `coverage`."""

    key = "recall"

    def compute(self, samples: Summary, reference: Reference) -> float:
        of_samples, of_reference = self.pair(samples, reference)
        return coverage(of_reference, of_samples, NEIGHBOURS)


class Memorisation(Score):
    """Distance of samples to the nearest training images, relative to that of images not trained on."""

    key = "memorisation"
    better = "near 1"
    needs = ("features", "training features")
    can_be_undefined = True

    def compute(self, samples: Summary, reference: Reference) -> float:
        assert reference.training is not None
        assert reference.unseen_distance is not None
        return memorisation(samples.features, reference.training, reference.unseen_distance)


class _BandPower(Score):
    """The power of samples in a band of frequencies, relative to the reference's, on pixels.

    Power is the second moment of DCT coefficients; the bands are thirds of the range of √λ.
    """

    better = "near 1"
    needs = ()
    band: ClassVar[int]

    def applies(self, extractor: FeatureExtractor) -> bool:
        return isinstance(extractor, Pixels)

    def lacks(self, reference: Reference) -> bool:
        return reference.shape is None

    def compute(self, samples: Summary, reference: Reference) -> float:
        assert reference.shape is not None
        here, there = (self.power(x.normal, reference.shape) for x in (samples, reference))
        return here / there

    def power(self, normal: Normal | ThinNormal, shape: tuple[int, ...]) -> float:
        """The mean power of images of a shape C, H, W in the band."""
        basis = idct(torch.eye(shape[1] * shape[2], dtype=torch.float64).view(-1, *shape[1:])).flatten(1)
        squares = normal.covariance + torch.outer(normal.mean, normal.mean)
        within = squares.view(shape[0], len(basis), shape[0], len(basis)).diagonal(dim1=0, dim2=2)  # of each channel
        power = torch.einsum("kp,pqc,kq->k", basis, within.to(basis), basis)
        chosen = band_index(torch.zeros(shape[1:]), 3).flatten() == self.band
        return power[chosen].mean().item()


class LowPower(_BandPower):
    """The power of samples at low frequencies (a third of the range of √λ), relative to the reference's."""

    key = "power_low"
    band = 0


class MidPower(_BandPower):
    """The power of samples at middle frequencies (a third of the range of √λ), relative to the reference's."""

    key = "power_mid"
    band = 1


class HighPower(_BandPower):
    """The power of samples at high frequencies (a third of the range of √λ), relative to the reference's."""

    key = "power_high"
    band = 2


SCORES: tuple[type[Score], ...] = (
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    ClipDistance,
    Precision,
    Recall,
    Memorisation,
)
"""The scores of every run, in the order of tables."""


def all_scores() -> list[Score]:
    """One object of each class in `SCORES`."""
    return [kind() for kind in SCORES]
