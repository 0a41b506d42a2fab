"""What counts as the truth about a degraded training image: itself, or the mean of all that it may have been."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.parameterizations import implied_noise
from warm_lightning.processes import Process
from warm_lightning.spectral import full_precision
from warm_lightning.types import Estimate, Gains


def consistent(clean: Tensor, u: Tensor, gains: Gains) -> Estimate:
    """The estimate of somebody whose two beliefs agree: A∘clean + B∘noise = u."""
    return Estimate(clean, implied_noise(gains.signal * clean, u, gains))


def posterior_mean(
    u: Tensor, candidates: Tensor, process: Process, gains: Gains, allowed: Tensor | None = None
) -> Tensor:
    """E[u0 | u] if u0 is one of some images, all equally likely: their mean, weighted by the density of the noise.

    Args:
        u: coefficients [B, C, H, W].
        candidates: u0 of the images, [N, C, H, W].
        process: the law of the noise.
        gains: at the level of each u.
        allowed: whether an image is a candidate for a u, [B, N]; all are if not given.

    Returns:
        [B, C, H, W].

    Raises:
        UserError: where there is no noise.
    """
    check(bool((gains.noise > 0).all()), "a process without noise has no posterior: choose another model.target")
    whitened = (u / gains.noise).flatten(1)
    slope = (gains.signal / gains.noise).expand_as(u).flatten(1)
    flat = candidates.flatten(1)
    with full_precision(u.device):
        # ‖(u - A u0)/B‖² multiplied out: two matrix products instead of an image for each pair.
        squares = slope.square() @ flat.square().T - 2 * (slope * whitened) @ flat.T + whitened.square().sum(1, True)
        logits = process.log_density(squares.clamp(min=0), flat.shape[1])
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        return (torch.softmax(logits, dim=1) @ flat).view_as(u)


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
