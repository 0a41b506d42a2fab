"""The reference that a data set makes: its features, and the scores of halves of it and of a Gaussian like it."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from warm_lightning.data.image_set import ImageSet, random_order
from warm_lightning.distributed import gather, progress, rank_and_world_size, total
from warm_lightning.errors import check
from warm_lightning.images import dequantise, quantise
from warm_lightning.metrics.distances import Normal, ThinNormal, frechet_memory, moment_sums, unseen_distance
from warm_lightning.metrics.features import Extraction, FeatureExtractor
from warm_lightning.metrics.scores import (
    DEFAULT,
    NEIGHBOURS,
    Reference,
    Score,
    ScoreProtocol,
    Summary,
    all_scores,
    evaluate,
    usable,
)
from warm_lightning.rng import key
from warm_lightning.spectral import full_precision

LARGE = 1 << 18
"""The largest number of images whose features are all kept: 2 GB of Inception's; LSUN-bedroom has three million."""
READ_AT_ONCE = 1 << 16
"""Images whose features are in memory at once."""
SUMMED_AT_ONCE = 4096
"""Images whose features are in float64 at once."""
DRAWN_AT_ONCE = 1024
"""Images whose pixels are in float32 at once, beside the Gaussian's draws."""


# ---------------------------------------------------------------------- summaries


class Summariser:
    """Makes a `Summary` of a stream of images' features and logits.

    Args:
        scores: whose sums the summary needs.
        extractor: gives the features.
        features: of any images, [B, F]: an example of shape, type and device.
        logits: of the same images, [B, K], or None without classes.
        limit: number of images, over all processes, whose features are kept.
        over_processes: whether each process has its own part of the images, as opposed to all of them. Then
            all processes must call `compute`, and the features be on a device that they communicate from.
    """

    def __init__(
        self,
        scores: Sequence[Score],
        extractor: FeatureExtractor,
        features: Tensor,
        logits: Tensor | None,
        limit: int,
        over_processes: bool = False,
    ) -> None:
        self.scores = [s for s in scores if logits is not None or "logits" not in s.needs]
        self.extractor = extractor
        self.none = torch.empty_like(features[:0]), None if logits is None else torch.empty_like(logits[:0])
        self.limit = limit
        self.rank, self.world_size = rank_and_world_size() if over_processes else (0, 1)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.kept = [self.none[0]]
        self.unsummed: list[Tensor] = []  # features that are not in the moments, which may not be needed
        self.seen = 0
        # Zeros of the right shapes: a process may be given no images at all.
        self.sums = self._sums(*self.none, torch.arange(0))
        self.moments: dict[str, Tensor] = {}

    def update(self, features: Tensor, logits: Tensor | None) -> None:
        """Add features [B, F] and logits [B, K]; of W processes, process r has images r, r + W, r + 2W, …"""
        room = self.limit - self.seen
        if room > 0:
            self.kept.append(features[:room])
        index = torch.arange(self.seen, self.seen + len(features)) * self.world_size + self.rank
        for start in range(0, len(features), SUMMED_AT_ONCE):
            rows = slice(start, start + SUMMED_AT_ONCE)
            more = self._sums(features[rows], None if logits is None else logits[rows], index[rows])
            # Not in place: sums made in inference mode could then not be updated outside it.
            self.sums = {k: {n: tensors[n] + more[k][n] for n in tensors} for k, tensors in self.sums.items()}
        self.unsummed.append(features)
        self.seen += len(features)
        if not self._is_thin(self.seen):
            self._sum_moments()

    def compute(self) -> Summary:
        """The summary of all images; at least 2."""
        sums, seen, first = self.sums, self.seen, self._first_features()
        if self.world_size > 1:
            sums = {k: {n: total(tensors[n]) for n in tensors} for k, tensors in sums.items()}
            seen = int(total(torch.tensor(seen, device=first.device)))
        if self._is_thin(seen):
            return Summary(seen, ThinNormal.from_features(first), first, sums)
        self._sum_moments()
        moments = self.moments
        if self.world_size > 1:
            moments = {name: total(tensor) for name, tensor in moments.items()}
        return Summary(seen, Normal.from_sums(moments), first, sums)

    def _is_thin(self, count: int) -> bool:
        """Whether the features of so many images are all kept, and no matrix of products is needed."""
        return count < self.none[0].shape[1] and count <= self.limit

    def _sum_moments(self) -> None:
        for features in self.unsummed if self.moments else [self.none[0], *self.unsummed]:
            for part in features.split(SUMMED_AT_ONCE):
                more = moment_sums(part)
                self.moments = {name: self.moments[name] + more[name] for name in more} if self.moments else more
        self.unsummed = []

    def _sums(self, features: Tensor, logits: Tensor | None, index: Tensor) -> dict[str, dict[str, Tensor]]:
        return {score.key: score.sums(self.extractor, features, logits, index) for score in self.scores}

    def _first_features(self) -> Tensor:
        kept = torch.cat(self.kept)
        if self.world_size == 1:
            return kept
        parts = gather(kept)
        # Image i is on process i mod W: taking turns restores the order, and the first are the same for any W.
        turns = [torch.arange(len(part)) * len(parts) + rank for rank, part in enumerate(parts)]
        order = torch.cat(turns).argsort()[: self.limit]
        return torch.cat(parts)[order.to(kept.device)]


def whole_and_halves(
    parts: Iterable[tuple[Tensor, Tensor | None]],
    count: int,
    scores: Sequence[Score],
    extractor: FeatureExtractor,
    limit: int,
) -> tuple[Summary, Summary, Summary]:
    """Summaries of a set of `count` images, for scores with `whole_data`, and of its halves, for the other scores.

    Args:
        parts: features and logits of the images, in parts.
        count: ≥ 4.
        scores: whose sums the summaries need.
        extractor: gives the features.
        limit: as `Summariser`'s.
    """
    seen = 0
    summarisers: list[Summariser] = []
    alone, compared = [s for s in scores if s.whole_data], [s for s in scores if not s.whole_data]
    for features, logits in parts:
        if not summarisers:
            chosen = (alone, compared, compared)
            summarisers = [Summariser(scores, extractor, features, logits, limit) for scores in chosen]
        cut = max(0, count // 2 - seen)
        for summariser, rows in zip(summarisers, (slice(None), slice(cut), slice(cut, None)), strict=True):
            summariser.update(features[rows], None if logits is None else logits[rows])
        seen += len(features)
    whole, first, second = (summariser.compute() for summariser in summarisers)
    return whole, first, second


# ---------------------------------------------------------------------- references


def measure_reference(
    extraction: Extraction,
    images: ImageSet,
    held_out: ImageSet | None = None,
    *,
    scores: Sequence[Score] | None = None,
    source: str = "images",
    protocol: ScoreProtocol = DEFAULT,
    normal: Normal | ThinNormal | None = None,
    companions: bool = True,
    samples: int | None = None,
) -> Reference:
    """The reference that a data set makes; with several processes, all must call this and get the same.

    Args:
        extraction: gives the features.
        images: the training images, at least 8.
        held_out: images that are not trained on; None where the data have none.
        scores: to compute of the companions; all by default.
        source: name or description of the data.
        protocol: see there.
        normal: mean and covariance to use instead of the images'.
        companions: whether to score halves of the data and the moment-matched Gaussian, too.
        samples: number of samples that will be scored, for the check of memory; as many as the images by default.

    Raises:
        UserError: the images are too few, or the extractor does not take them, or there is not enough memory.
    """
    smallest = 2 * (NEIGHBOURS + 1)
    check(len(images) >= smallest, f"scores need at least {smallest} images of data, not {len(images)}")
    scores = all_scores() if scores is None else scores
    extractor, limit = extraction.extractor, protocol.max_neighbours
    check_memory(extraction, images, limit, companions, samples or len(images))
    kept: list[Tensor] = []

    def parts() -> Iterator[tuple[Tensor, Tensor | None]]:
        # In random order, or the first images of a folder would all be of its first classes.
        for order in random_order(len(images), protocol.seed).split(READ_AT_ONCE):
            features, logits = extraction.extract(images, order, "reference features")
            if len(images) <= LARGE:
                kept.append(features)
            yield features, logits

    held_out_features = None
    if held_out is not None:
        held_out_features = extraction.extract(
            held_out, random_order(len(held_out), protocol.seed), "held-out features"
        )[0]
    with full_precision(extraction.device):
        summary, first, second = whole_and_halves(parts(), len(images), scores, extractor, limit)
        features = torch.cat(kept) if kept else None
        whole = _reference(features, summary, held_out_features, normal, source, protocol, images.shape)
        if not companions:
            return whole
        half = None if features is None else features[len(images) // 2 :]
        rest = _reference(half, second, held_out_features, None, source, protocol, images.shape)
        count = min(len(images), limit)
        drawn = ImageSet.without_classes(moment_matched(images, count, protocol.seed, extraction.device))
        drawn_features, logits = extraction.extract(drawn, torch.arange(count), "Gaussian's features")
        gaussian = Summariser(scores, extractor, drawn_features, logits, limit)
        gaussian.update(drawn_features, logits)
        chosen = usable(scores, extractor, whole, logits is not None)
        alone, compared = [s for s in chosen if s.whole_data], [s for s in chosen if not s.whole_data]
        whole.companions.update(
            halves=evaluate(compared, extractor, first, rest),
            data=evaluate(alone, extractor, summary, whole),
            gaussian=evaluate(chosen, extractor, gaussian.compute(), whole),
        )
    return whole


def _reference(
    features: Tensor | None,
    summary: Summary,
    held_out_features: Tensor | None,
    normal: Normal | ThinNormal | None,
    source: str,
    protocol: ScoreProtocol,
    shape: tuple[int, int, int],
) -> Reference:
    return Reference(
        normal or summary.normal,
        source,
        protocol,
        summary.count,
        0 if held_out_features is None else len(held_out_features),
        summary.features,
        features,
        None if features is None else unseen_distance(features, held_out_features, len(summary.features)),
        shape=shape,
    )


# ---------------------------------------------------------------------- memory


def check_memory(extraction: Extraction, images: ImageSet, limit: int, companions: bool, samples: int) -> None:
    """Check that the memory is enough for features and Fréchet distances, before they are computed.

    Args:
        extraction: gives the features.
        images: of the reference.
        limit: number of images whose features are kept.
        companions: whether halves of the reference and a Gaussian are scored, too.
        samples: number of samples that will be scored.

    Raises:
        UserError: it is not enough.
    """
    given, _ = extraction(torch.zeros(1, *images.shape, dtype=torch.uint8))
    features, count = given.shape[1], len(images)
    sets = [count, samples, *([count // 2, count - count // 2, min(count, limit)] if companions else [])]
    needed = frechet_memory(features, [n if n <= limit else features for n in sets])
    needed += 4 * features * (count if count <= LARGE else READ_AT_ONCE)
    available = available_memory(extraction.feature_device)
    check(
        available is None or needed <= available,
        f"{type(extraction.extractor).__name__}: scores of {samples:,} samples against {count:,} images need about "
        f"{needed / 1e9:.1f} GB for {features:,} features, and {(available or 0) / 1e9:.1f} GB are free: use another "
        "extractor, or fewer images",
    )


def available_memory(device: torch.device) -> int | None:
    """The bytes of memory that are free for this process on a device; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


# ---------------------------------------------------------------------- the moment-matched Gaussian


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
