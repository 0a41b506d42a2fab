"""From sets of images to features: batched, in full precision, shared among processes."""

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from warm_lightning.data import ImageSet
from warm_lightning.errors import check
from warm_lightning.metrics.extractors import FeatureExtractor
from warm_lightning.metrics.parallel import place
from warm_lightning.metrics.progress import progress
from warm_lightning.spectral import full_precision

BATCH_SIZE = 250
"""Images that pass an extractor at once, if nothing else is said."""


class Observer:
    """A feature extractor at work on a device.

    Args:
        extractor: what sees the images. It is made ready, moved to `device` and frozen.
        batch_size: images that pass it at once.
        device: where to compute. With several processes, one that they communicate from.

    Raises:
        UserError: the extractor is not there.
    """

    def __init__(
        self, extractor: FeatureExtractor, batch_size: int = BATCH_SIZE, device: torch.device | str = "cpu"
    ) -> None:
        extractor.prepare()
        self.extractor = extractor.to(device).eval().requires_grad_(False)
        self.batch_size = batch_size
        self.device = torch.device(device)
        # Moments are in float64, which Apple's GPUs do not have.
        self.home = torch.device("cpu") if self.device.type == "mps" else self.device

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [B, C, H, W] → features, float32 [B, F], and logits, float32 [B, K], if any, on `home`.

        Raises:
            UserError: the images are not uint8, or the extractor does not take them.
        """
        check(images.dtype == torch.uint8, f"scores take uint8 images, not {images.dtype}: quantise them")
        with full_precision(self.device), torch.no_grad():
            features, logits = self.extractor(images.to(self.device))
        return features.to(self.home), None if logits is None else logits.to(self.home)

    def all(self, images: ImageSet, order: Tensor, what: str) -> tuple[Tensor, Tensor | None]:
        """Features [N, F] and logits of many images in an order, int64 [N]: the same on all processes.

        Each process sees every W-th batch. Which images make a batch does not depend on W, so that the bits do not.
        """
        batches = order.split(self.batch_size)
        rank, world_size = place()
        if len(batches) < world_size:
            rank, world_size = 0, 1  # too few to share
        parts = [self(images.take(index)) for index in progress(batches[rank::world_size], what)]
        features = torch.cat([part for part, _ in parts])
        logits = torch.cat([part for _, part in parts if part is not None]) if parts[0][1] is not None else None
        if world_size == 1:
            return features, logits
        turns = torch.arange(len(order)).split(self.batch_size)
        back = torch.cat([turn for r in range(world_size) for turn in turns[r::world_size]]).argsort().to(self.home)
        whole = torch.cat(gather_all_tensors(features))[back]
        return whole, None if logits is None else torch.cat(gather_all_tensors(logits))[back]
