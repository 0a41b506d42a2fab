"""What samples are scored against: a data set as its features, with what halves of it and a Gaussian get."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from warm_lightning.data import ImageSet
from warm_lightning.errors import check
from warm_lightning.metrics.extraction import Observer
from warm_lightning.metrics.frechet import Normal, frechet_distance
from warm_lightning.metrics.gaussian import moment_matched
from warm_lightning.metrics.kernel_distance import kernel_distance
from warm_lightning.metrics.neighbours import memorisation, precision_recall, unseen_distance
from warm_lightning.metrics.summary import Summary, summarise, whole_and_halves
from warm_lightning.rng import key
from warm_lightning.spectral import full_precision

LARGE = 1 << 18
"""Images whose features are kept all, which are 2 GB of Inception's; LSUN-bedroom has three million."""
AT_ONCE = 1 << 16
"""Images whose features are there at once."""
NEIGHBOURS = 3  # k of precision and recall, as Kynkäänniemi et al. 2019 recommend


@dataclass(frozen=True)
class ScoreProtocol:
    """How scores that need single images' features are computed.

    Attributes:
        max_neighbours: kernel distance, precision and recall compare the first so many samples with as many
            images of the reference, drawn at random; memorisation is of the first so many samples. The expectation
            of a kernel distance does not depend on it. That of precision and recall does, so that they compare as
            many of either as the smaller set has.
        seed: of the order of the reference, of halves, Gaussian and subsets.
    """

    max_neighbours: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        enough = self.max_neighbours > NEIGHBOURS
        check(enough, f"max_neighbours is {self.max_neighbours}: it must be at least {NEIGHBOURS + 1}")


DEFAULT = ScoreProtocol()


@dataclass(frozen=True)
class Reference:
    """A set of images to compare others with.

    Attributes:
        normal: mean and covariance of its features.
        source: what it is, in words.
        protocol: by which `features` were chosen and `companions` computed.
        count: number of images; None where a file does not say.
        held_out_count: number of images that were not trained on.
        features: float32 [min(count, max_neighbours), F], of images in random order; None where not known, which
            leaves out kernel distance, precision and recall.
        training: float32 [count, F], of all images; None where not known, or too many (over 262,144 images), which
            leaves out memorisation.
        unseen: mean distance to the nearest training image of images that were not trained on; as `training`.
        companions: the same scores of other things, by ending: "halves", "data" and "gaussian"; see `Scores`.
        shape: C, H, W of the images; None where a file does not say.
    """

    normal: Normal
    source: str
    protocol: ScoreProtocol = DEFAULT
    count: int | None = None
    held_out_count: int = 0
    features: Tensor | None = None
    training: Tensor | None = None
    unseen: float | None = None
    companions: dict[str, dict[str, float]] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None

    def describe(self) -> dict[str, Any]:
        """What one has to know to compare scores with others'; plain data."""
        return {
            "reference": self.source,
            "reference_images": self.count,
            "held_out_images": self.held_out_count,
            **self.describe_companions(),
            "neighbours": NEIGHBOURS,
            "max_neighbours": self.protocol.max_neighbours,
            "seed": self.protocol.seed,
        }

    def describe_companions(self) -> dict[str, Any]:
        """How many images each half of the data has, and how many were drawn from the Gaussian."""
        count = self.count or 0
        if not self.companions:
            return {"halves_images": None, "gaussian_images": 0}
        gaussian = min(count, self.protocol.max_neighbours)
        return {"halves_images": [count // 2, count - count // 2], "gaussian_images": gaussian}


def evaluate(samples: Summary, reference: Reference) -> dict[str, float]:
    """Every score of a set against a reference, as far as that is known.

    "frechet", "is" with "is_split_std", "kid" with "kid_subset_std", "precision", "recall" and "memorisation".
    Precision and recall, whose balls are the larger the fewer images there are, are of as many images of either set.
    """
    values = {"frechet": frechet_distance(samples.normal, reference.normal), **samples.class_scores}
    if reference.features is not None:
        kernel = kernel_distance(samples.features, reference.features, reference.protocol.seed)
        values |= dict(zip(("kid", "kid_subset_std"), kernel, strict=True))
        count = min(len(samples.features), len(reference.features))
        coverage = precision_recall(samples.features[:count], reference.features[:count], NEIGHBOURS)
        values |= dict(zip(("precision", "recall"), coverage, strict=True))
    if reference.training is not None and reference.unseen is not None:
        values["memorisation"] = memorisation(samples.features, reference.training, reference.unseen)
    return values


def measure(
    observer: Observer,
    images: ImageSet,
    held_out: ImageSet | None = None,
    *,
    source: str = "images",
    protocol: ScoreProtocol = DEFAULT,
    normal: Normal | None = None,
    companions: bool = True,
) -> Reference:
    """The reference that a data set makes; with several processes, all must call this and get the same.

    Args:
        observer: what sees the images.
        images: the training images, at least 8.
        held_out: images that are not trained on; None where the data has none.
        source: what to call the data.
        protocol: see there.
        normal: moments to use instead of the images'.
        companions: whether to score halves of the data and the moment-matched Gaussian, too.

    Raises:
        UserError: the images are too few, or the extractor does not take them.
    """
    smallest = 2 * (NEIGHBOURS + 1)
    check(len(images) >= smallest, f"scores need at least {smallest} images of data, not {len(images)}")
    limit, splits = protocol.max_neighbours, observer.extractor.splits
    kept: list[Tensor] = []

    def parts() -> Iterator[tuple[Tensor, Tensor | None]]:
        # In random order, or the first images of a folder would all be of its first classes.
        for order in random_order(len(images), protocol.seed).split(AT_ONCE):
            features, logits = observer.all(images, order, "reference features")
            if len(images) <= LARGE:
                kept.append(features)
            yield features, logits

    unseen = None
    if held_out is not None:
        unseen = observer.all(held_out, random_order(len(held_out), protocol.seed), "held-out features")[0]
    with full_precision(observer.device):
        summary, a, b = whole_and_halves(parts(), len(images), splits, limit)
        features = torch.cat(kept) if kept else None
        whole = _reference(features, summary, unseen, normal, source, protocol, images.shape)
        if not companions:
            return whole
        half = None if features is None else features[len(images) // 2 :]
        rest = _reference(half, b, unseen, None, source, protocol, images.shape)
        count = min(len(images), limit)
        drawn = ImageSet.without_classes(moment_matched(images, count, protocol.seed, observer.device))
        gaussian = summarise(*observer.all(drawn, torch.arange(count), "Gaussian's features"), splits, limit)
        whole.companions.update(halves=evaluate(a, rest), data=summary.class_scores, gaussian=evaluate(gaussian, whole))
    return whole


def random_order(count: int, seed: int) -> Tensor:
    """An order of `count` images, int64, that is random but the same each time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(key(seed, "order")))


def _reference(
    features: Tensor | None,
    summary: Summary,
    unseen: Tensor | None,
    normal: Normal | None,
    source: str,
    protocol: ScoreProtocol,
    shape: tuple[int, int, int],
) -> Reference:
    return Reference(
        normal or summary.normal,
        source,
        protocol,
        summary.count,
        0 if unseen is None else len(unseen),
        summary.features,
        features,
        None if features is None else unseen_distance(features, unseen, len(summary.features)),
        shape=shape,
    )
