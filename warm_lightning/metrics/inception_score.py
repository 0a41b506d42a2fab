"""The Inception score, or its like with another classifier."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class InceptionScore(Metric):
    """exp E KL(p(y|x) ‖ p(y)) (Salimans et al. 2016) over all images at once: 1 to the number of classes.

    Equal to torchmetrics' InceptionScore with `splits=1`, from sums over images instead of all their
    logits. (That one also shuffles with the global random generator, which training must not notice.)

    Args:
        num_classes: K.
        **kwargs: torchmetrics' own, such as `sync_on_compute`.
    """

    full_state_update = False
    probability_sum: Tensor
    information_sum: Tensor
    num_images: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("probability_sum", torch.zeros(num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("information_sum", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor) -> None:
        """Take in logits, [B, K]."""
        logs = logits.double().log_softmax(dim=1)
        self.probability_sum = self.probability_sum + logs.exp().sum(dim=0)
        self.information_sum = self.information_sum + (logs.exp() * logs).sum()
        self.num_images = self.num_images + len(logits)

    def compute(self) -> Tensor:
        """The score of what all devices took in."""
        marginal = self.probability_sum / self.num_images
        return (self.information_sum / self.num_images - torch.special.xlogy(marginal, marginal).sum()).exp()
