"""Training images beside those of a batch: what a target or a prior is made of."""

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from warm_lightning.data import ImageDataModule, ImageSet
from warm_lightning.data.stream import TrainingStream
from warm_lightning.errors import check
from warm_lightning.images import dequantise
from warm_lightning.rng import BatchDraws
from warm_lightning.spectral import dct
from warm_lightning.types import Batch

CHUNK = 500  # images read at once


class Others:
    """Other training images for the images of a batch, and which of them the network could take them for.

    They are drawn for the whole step, so that they do not depend on how many devices share it.

    Args:
        data: where the batch comes from.
        seed: the training seed.
        count: how many others there are to be; all there are, if they are fewer.

    Raises:
        UserError: the images are not in memory.
    """

    def __init__(self, data: ImageDataModule, seed: int, count: int) -> None:
        images = data.train_images()
        check(
            isinstance(images.images, Tensor),
            f"model.target needs {count} images beside each batch, which cannot be decoded so fast: set data.cache",
        )
        self.stream = TrainingStream(images, seed, data.xflip)
        self.count = count

    def __call__(
        self, batch: Batch, draws: BatchDraws, class_labels: Tensor | None, augment_labels: Tensor | None, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The others as coefficients in the dtype and on the device of `like`, [N, C, H, W], and whether an image of
        the batch may be one of them for all that the network is told: class and augmentation, [b, N]."""
        entries = draws.common_order(self.stream.length)[: self.count].cpu()
        images, classes = self.stream.take(entries)
        own = self.stream.entries(batch.positions.cpu())
        allowed = (own[:, None] != entries).to(like.device)
        if augment_labels is not None:
            allowed &= (augment_labels == 0).all(1, keepdim=True)
        if class_labels is not None:
            same = class_labels[:, classes.to(like.device)] > 0
            allowed &= same | (class_labels == 0).all(1, keepdim=True)
        return dct(dequantise(images.to(like.device), like.dtype)), allowed


def all_images(images: ImageSet, what: str) -> Iterator[Tensor]:
    """All images once, in batches [b, C, H, W] in [-1, 1], with a progress bar for long work."""
    for chunk in tqdm(torch.arange(len(images)).split(CHUNK), desc=what, unit="×500 images", delay=2, leave=False):
        yield dequantise(images.take(chunk), torch.float32)
