"""What samples are scored against: a data set as its features, with what halves of it and a Gaussian get."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from warm_lightning.data import ImageSet
from warm_lightning.data.image_set import random_order
from warm_lightning.distributed import place, progress
from warm_lightning.errors import check
from warm_lightning.images import dequantise, quantise
from warm_lightning.metrics.distances import (
    InceptionScore,
    Moments,
    Normal,
    frechet_distance,
    kernel_distance,
    memorisation,
    precision_recall,
    unseen_distance,
)
from warm_lightning.metrics.features import Observer
from warm_lightning.rng import key
from warm_lightning.spectral import full_precision

CHUNK = 4096  # images whose features are in float64 at once


@dataclass(frozen=True)
class Summary:
    """A set of images as the scores see it.

    Attributes:
        count: number of images.
        normal: mean and covariance of their features.
        class_scores: "is" and, with several splits, "is_split_std"; empty where the extractor has no classes.
        features: float32 [min(count, limit), F], of the first images.
    """

    count: int
    normal: Normal
    class_scores: dict[str, float]
    features: Tensor


class Summariser:
    """Makes a `Summary` from a stream of images' features.

    Args:
        num_features: F.
        num_classes: K; 0 where there are no logits.
        splits: of the images, for the class score.
        limit: of how many images, over all devices, to keep the features.
        device: where the features come from.
        over_devices: whether each device has its own part of the images, as opposed to all of them. Then
            `compute` must be called on all devices, and `device` be one that they communicate from.
    """

    def __init__(
        self, num_features: int, num_classes: int, splits: int, limit: int, device: torch.device, over_devices: bool
    ) -> None:
        self.moments = Moments(num_features, sync_on_compute=over_devices).to(device)
        self.classes = None
        if num_classes:
            self.classes = InceptionScore(num_classes, splits, sync_on_compute=over_devices).to(device)
        self.limit = limit
        self.rank, self.world_size = place() if over_devices else (0, 1)
        self.empty = torch.empty(0, num_features, device=device)
        self.no_logits = torch.empty(0, num_classes, device=device)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.kept = [self.empty]
        self.seen = 0
        # An update with no image, because torchmetrics warns of devices that have not been given any.
        self.moments.reset()
        self.moments.update(self.empty)
        if self.classes is not None:
            self.classes.reset()
            self.classes.update(self.no_logits, torch.arange(0))

    def update(self, features: Tensor, logits: Tensor | None) -> None:
        """Take in features [B, F] and logits [B, K]; of W devices, device r has images r, r + W, r + 2W, …"""
        for part in features.split(CHUNK):
            self.moments.update(part)
        if self.classes is not None and logits is not None:
            mine = torch.arange(self.seen, self.seen + len(logits))
            self.classes.update(logits, mine * self.world_size + self.rank)
        room = self.limit - self.seen
        if room > 0:
            self.kept.append(features[:room])
        self.seen += len(features)

    def compute(self) -> Summary:
        """The summary of all images; at least 2."""
        mean, covariance, count = self.moments.compute()
        normal = Normal(torch.atleast_1d(mean), torch.atleast_2d(covariance))  # torchmetrics squeezes [1, 1]
        scores = {}
        if self.classes is not None:
            score, spread = self.classes.compute()
            scores = {"is": score} if spread is None else {"is": score, "is_split_std": spread}
        return Summary(int(count), normal, scores, self._first_features())

    def _first_features(self) -> Tensor:
        mine = torch.cat(self.kept)
        if self.world_size == 1:
            return mine
        parts = gather_all_tensors(mine)
        # Image i is on device i mod W: taking turns restores the order, and the first are the same for any W.
        turns = [torch.arange(len(part)) * len(parts) + rank for rank, part in enumerate(parts)]
        order = torch.cat(turns).argsort()[: self.limit]
        return torch.cat(parts)[order.to(mine.device)]


def whole_and_halves(
    parts: Iterable[tuple[Tensor, Tensor | None]], count: int, splits: int, limit: int
) -> tuple[Summary, Summary, Summary]:
    """Summaries of a set of `count` images, and of its first and second half, which have no class scores.

    Args:
        parts: features and logits of some of them after the other.
        count: ≥ 4.
        splits: as `Summariser`'s.
        limit: as `Summariser`'s.
    """
    seen = 0
    summarisers: list[Summariser] = []
    for features, logits in parts:
        if not summarisers:
            classes = 0 if logits is None else logits.shape[1]
            size, device = features.shape[1], features.device
            summarisers = [Summariser(size, k, splits, limit, device, over_devices=False) for k in (classes, 0, 0)]
        cut = max(0, count // 2 - seen)
        for summariser, its in zip(summarisers, (features, features[:cut], features[cut:]), strict=True):
            summariser.update(its, logits if summariser is summarisers[0] else None)
        seen += len(features)
    whole, first, second = (summariser.compute() for summariser in summarisers)
    return whole, first, second


def summarise(features: Tensor, logits: Tensor | None, splits: int, limit: int) -> Summary:
    """The summary of a set of images that is all here; see `Summariser`."""
    num_classes = 0 if logits is None else logits.shape[1]
    summariser = Summariser(features.shape[1], num_classes, splits, limit, features.device, over_devices=False)
    summariser.update(features, logits)
    return summariser.compute()


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


DRAWN_AT_ONCE = 1024  # images at once


def moment_matched(images: ImageSet, count: int, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Draws from N(mean, covariance) of the pixels of some images, quantised.

    A draw is the mean plus a combination of the centred images with independent normal weights of variance
    1/(N − 1). That has exactly the covariance of the data, at any resolution: no D×D matrix is formed, which
    for 128×128 RGB would take 19 GB. The draws themselves are held once as float32 and once as uint8.

    Args:
        images: N ≥ 2 of them, read twice.
        count: number of draws.
        seed: the draws are a function of it and of `images`.
        device: where to compute.

    Returns:
        uint8 [count, C, H, W], on the CPU.
    """
    generator = torch.Generator().manual_seed(key(seed, "gaussian"))  # on the CPU: the same on every device
    chunks = torch.arange(len(images)).split(DRAWN_AT_ONCE)
    sums = [images.take(chunk).flatten(1).double().sum(dim=0) for chunk in progress(chunks, "mean image")]
    mean = dequantise(torch.stack(sums).sum(dim=0) / len(images), torch.float64).float().to(device)
    draws = mean.repeat(count, 1)
    for chunk in progress(chunks, "moment-matched Gaussian"):
        weights = torch.randn(count, len(chunk), generator=generator).to(device)
        pixels = dequantise(images.take(chunk).flatten(1)).to(device)
        draws.addmm_(weights, pixels - mean, alpha=(len(images) - 1) ** -0.5)
    return torch.cat([quantise(part).cpu() for part in draws.split(DRAWN_AT_ONCE)]).unflatten(1, images.shape)
