"""What counts as the truth about a degraded training image: itself, or the mean of all that it may have been."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from warm_lightning.data import ImageDataModule
from warm_lightning.data.stream import TrainingStream
from warm_lightning.errors import check
from warm_lightning.images import dequantise
from warm_lightning.oracles import posterior_mean
from warm_lightning.parameterizations import consistent
from warm_lightning.processes import Process
from warm_lightning.rng import BatchDraws
from warm_lightning.spectral import dct
from warm_lightning.types import Batch, Estimate, Gains


class Target(ABC):
    """What the network is to say of a degraded image, in place of what it was made from.

    Attributes:
        references: how many other training images the target is made of.
    """

    references: int

    @abstractmethod
    def __call__(
        self, truth: Estimate, u: Tensor, others: Tensor, allowed: Tensor, process: Process, gains: Gains
    ) -> Estimate:
        """What to count as true.

        Args:
            truth: what each u was made from, [B, C, H, W].
            u: degraded images [B, C, H, W].
            others: u0 of other training images, [N, C, H, W].
            allowed: whether the network could take one for the other by what else it is told, [B, N].
            process: the process.
            gains: at the level of each u.
        """


class StableTarget(Target):
    """Stable target field (Xu et al. 2023): the posterior mean over a reference batch that contains the image.

    It has less variance than the image itself, and a bias that vanishes as the batch grows. Images that the
    network is told to be of another class, or otherwise augmented, are no candidates: what it is told, it need not
    guess. With `references` 0 it is the image itself, with all training images their exact posterior mean.

    Args:
        references: images in the reference batch beside the image itself.
    """

    def __init__(self, references: int = 2048) -> None:
        check(references >= 0, f"references is {references}: it must be 0 or more")
        self.references = references

    def __call__(
        self, truth: Estimate, u: Tensor, others: Tensor, allowed: Tensor, process: Process, gains: Gains
    ) -> Estimate:
        own = torch.eye(len(u), dtype=torch.bool, device=u.device)
        candidates, known = torch.cat([truth.clean, others]), torch.cat([own, allowed], dim=1)
        return consistent(posterior_mean(u, candidates, process, gains, known), u, gains)


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
