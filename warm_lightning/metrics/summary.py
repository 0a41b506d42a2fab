"""What scores keep of a set of images: moments of the features, the class score, the first features."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from warm_lightning.metrics.frechet import Moments, Normal
from warm_lightning.metrics.inception_score import InceptionScore
from warm_lightning.metrics.parallel import place

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
