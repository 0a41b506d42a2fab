"""Which noise an image is degraded with in training: the first that is drawn, or the nearest of several."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.rng import Draws


class NoiseChoice(ABC):
    """A choice of the noise for each training image, which may depend on the image."""

    @abstractmethod
    def __call__(self, x0: Tensor, draws: Draws) -> Tensor:
        """The noise in pixels for images x0, both [B, C, H, W]; it is to be standard normal, at least nearly."""


class NearestNoise(NoiseChoice):
    """The nearest of k noises that are drawn for each image (improved immiscible diffusion; Li et al. 2025).

    The distance is that of all pixels between the clean image and the noise. Chosen noise is not quite normal: it is
    correlated with its image, by less for larger images, and its norm is a little smaller.

    Args:
        candidates: k; 8 is best for CIFAR-10 there, 4 with flow matching, and 1 is no choice.
    """

    def __init__(self, candidates: int = 8) -> None:
        check(candidates >= 1, f"candidates is {candidates}: there must be at least 1 noise to choose from")
        self.candidates = candidates

    def __call__(self, x0: Tensor, draws: Draws) -> Tensor:
        noises = draws.normal(self.candidates, *x0.shape[1:], dtype=x0.dtype)
        nearest = (noises - x0.unsqueeze(1)).flatten(2).square().sum(2).argmin(1)
        return noises[torch.arange(len(x0), device=x0.device), nearest]
