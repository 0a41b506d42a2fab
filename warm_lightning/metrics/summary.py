"""What scores keep of a set of images: moments of the features, the class score, the first features."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from warm_lightning.metrics.frechet import Moments, Normal, frechet_distance
from warm_lightning.metrics.inception_score import InceptionScore
from warm_lightning.metrics.neighbours import memorisation, precision_recall, unseen_distance

CHUNK = 4096  # images whose features are in float64 at once


@dataclass(frozen=True)
class Summary:
    """A set of images as the scores see it.

    Attributes:
        count: number of images.
        normal: mean and covariance of their features.
        inception_score: None where the extractor has no classes.
        features: float32 [min(count, limit), F], of the first images.
    """

    count: int
    normal: Normal
    inception_score: float | None
    features: Tensor


@dataclass(frozen=True)
class Reference:
    """A set of images to compare others with.

    Attributes:
        summary: of the whole set.
        training: float32 [N, F], the features of the whole set.
        held_out: float32 [H, F], of images that were not trained on; None without any.
    """

    summary: Summary
    training: Tensor
    held_out: Tensor | None

    @cached_property
    def unseen(self) -> float:
        """Mean distance to the nearest training image of images that were not trained on."""
        return unseen_distance(self.training, self.held_out, len(self.summary.features))


def evaluate(samples: Summary, reference: Reference, k: int) -> dict[str, float]:
    """Every score of a set against a reference: "frechet", "is", "precision", "recall" and "memorisation".

    "is" only with classes. Precision and recall take k-th neighbours among the first images of both sets.
    """
    values = {"frechet": frechet_distance(samples.normal, reference.summary.normal)}
    if samples.inception_score is not None:
        values["is"] = samples.inception_score
    precision, recall = precision_recall(samples.features, reference.summary.features, k)
    return values | {
        "precision": precision,
        "recall": recall,
        "memorisation": memorisation(samples.features, reference.training, reference.unseen),
    }


class Summariser:
    """Makes a `Summary` from a stream of images' features.

    Args:
        num_features: F.
        num_classes: K; 0 where there are no logits.
        limit: of how many images, over all devices, to keep the features.
        device: where the features come from.
        over_devices: whether each device has its own part of the images, as opposed to all of them. Then
            `compute` must be called on all devices, and `device` be one that they communicate from.
    """

    def __init__(
        self, num_features: int, num_classes: int, limit: int, device: torch.device, over_devices: bool
    ) -> None:
        self.moments = Moments(num_features, sync_on_compute=over_devices).to(device)
        self.classes = InceptionScore(num_classes, sync_on_compute=over_devices).to(device) if num_classes else None
        self.limit = limit
        self.over_devices = over_devices
        self.empty = torch.empty(0, num_features, device=device)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.kept = [self.empty]
        # An update with no image, because torchmetrics warns of devices that have not been given any.
        self.moments.reset()
        self.moments.update(self.empty)
        if self.classes is not None:
            self.classes.reset()
            self.classes.update(self.empty.new_empty(0, len(self.classes.probability_sum)))

    def update(self, features: Tensor, logits: Tensor | None) -> None:
        """Take in features [B, F] and logits [B, K]."""
        for part in features.split(CHUNK):
            self.moments.update(part)
        if self.classes is not None and logits is not None:
            self.classes.update(logits)
        room = self.limit - sum(map(len, self.kept))
        if room > 0:
            self.kept.append(features[:room])

    def compute(self) -> Summary:
        """The summary of all images; at least 2."""
        mean, covariance, count = self.moments.compute()
        score = None if self.classes is None else self.classes.compute().item()
        normal = Normal(torch.atleast_1d(mean), torch.atleast_2d(covariance))  # torchmetrics squeezes [1, 1]
        return Summary(int(count), normal, score, self._first_features())

    def _first_features(self) -> Tensor:
        mine = torch.cat(self.kept)
        if not (self.over_devices and dist.is_available() and dist.is_initialized()):
            return mine
        parts = gather_all_tensors(mine)
        # Image i is on device i mod W: taking turns restores the order, and the first are the same for any W.
        turns = [torch.arange(len(part)) * len(parts) + rank for rank, part in enumerate(parts)]
        order = torch.cat(turns).argsort()[: self.limit]
        return torch.cat(parts)[order.to(mine.device)]
