"""Training targets other than the image itself: posterior means over a reference batch."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from warm_lightning.data.image_set import ImageSet
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
    """A training target for a degraded image that replaces the image and noise it was made from.

    Attributes:
        references: number of other training images that it needs; see `ReferenceBatch`.
    """

    references: int

    @abstractmethod
    def __call__(
        self, truth: Estimate, u: Tensor, reference_images: Tensor, allowed: Tensor, process: Process, gains: Gains
    ) -> Estimate:
        """The image and noise that the network is trained towards.

        Args:
            truth: the image and noise that each u was made from, [B, C, H, W].
            u: degraded images [B, C, H, W].
            reference_images: u0 of the reference batch, [N, C, H, W].
            allowed: whether image n of the reference batch may stand for image b: it is another image with the same
                class and augmentation; bool [B, N].
            process: the forward process.
            gains: at the level of each u.
        """


class StableTarget(Target):
    """Stable target field (Xu et al. 2023): the posterior mean over a reference batch that contains the image.

    It has less variance than the image itself, and a bias that vanishes as the batch grows. Images of another class or
    augmentation than the network is given are no candidates. With `references` 0 the target is the image itself. With
    all training images it is the exact posterior mean over them.

    Args:
        references: images in the reference batch beside the image itself.
    """

    def __init__(self, references: int = 2048) -> None:
        check(references >= 0, f"references is {references}: it must be 0 or more")
        self.references = references

    def __call__(
        self, truth: Estimate, u: Tensor, reference_images: Tensor, allowed: Tensor, process: Process, gains: Gains
    ) -> Estimate:
        itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
        candidates = torch.cat([truth.clean, reference_images])
        mean = posterior_mean(u, candidates, process, gains, torch.cat([itself, allowed], dim=1))
        return consistent(mean, u, gains)


class ReferenceBatch:
    """The reference batch of a step: other training images, and which of them have the same labels as each image.

    The images are drawn for the whole optimizer step, so that they do not depend on how many devices share it.

    Args:
        images: the training images.
        xflip: whether training shows each of them mirrored, too.
        seed: the training seed.
        count: number of other images; all training images, if they are fewer.

    Raises:
        UserError: the images are not in memory.
    """

    def __init__(self, images: ImageSet, xflip: bool, seed: int, count: int) -> None:
        check(
            isinstance(images.images, Tensor),
            f"model.target needs {count} more training images in each step: keep the images in memory, data.cache true",
        )
        self.stream = TrainingStream(images, seed, xflip)
        self.count = count

    def __call__(
        self, batch: Batch, draws: BatchDraws, class_labels: Tensor | None, augment_labels: Tensor | None, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The reference images of a step, and which of them have the labels of each image of the batch.

        Args:
            batch: the images that are trained on.
            draws: of the step.
            class_labels: the one-hot classes that the network is given, [b, label_dim]; zeros for no class.
            augment_labels: the augmentation that the network is given, [b, augment_dim].
            like: any tensor of the dtype and on the device wanted.

        Returns:
            DCT coefficients of the reference images, [N, C, H, W], and whether each of them has the labels of each
            image of the batch and is another image, bool [b, N].
        """
        reference_entries = draws.common_order(self.stream.length)[: self.count].cpu()
        images, classes = self.stream.take(reference_entries)
        batch_entries = self.stream.entries(batch.positions.cpu())
        allowed = (batch_entries[:, None] != reference_entries).to(like.device)
        if augment_labels is not None:
            allowed &= (augment_labels == 0).all(1, keepdim=True)
        if class_labels is not None:
            same = class_labels[:, classes.to(like.device)] > 0
            allowed &= same | (class_labels == 0).all(1, keepdim=True)
        return dct(dequantise(images.to(like.device), like.dtype)), allowed
