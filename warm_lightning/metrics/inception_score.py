"""The Inception score, or its like with another classifier."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class InceptionScore(Metric):
    """exp E KL(p(y|x) ‖ p(y)) (Salimans et al. 2016), from 1 to the number of classes, of each split of the images.

    Published scores are means over 10 splits, which are lower than the score of all images at once. Equal to
    torchmetrics' InceptionScore, from sums over images instead of all their logits; image i is in split i mod
    `splits` where that one shuffles with the global random generator.

    Args:
        num_classes: K.
        splits: number of splits.
        **kwargs: torchmetrics' own, such as `sync_on_compute`.
    """

    full_state_update = False
    probability_sums: Tensor
    information_sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, splits: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(splits, num_classes, dtype=torch.float64)
        self.add_state("probability_sums", zeros, dist_reduce_fx="sum")
        self.add_state("information_sums", zeros[:, 0].clone(), dist_reduce_fx="sum")
        self.add_state("counts", zeros[:, 0].clone(), dist_reduce_fx="sum")

    def update(self, logits: Tensor, index: Tensor) -> None:
        """Take in logits [B, K] of the images with numbers `index`, int64 [B]."""
        split = index.to(logits.device) % len(self.counts)
        logs = logits.double().log_softmax(dim=1)
        # Not in place: states made in inference mode could then not be updated outside it.
        self.probability_sums = self.probability_sums.index_add(0, split, logs.exp())
        self.information_sums = self.information_sums.index_add(0, split, (logs.exp() * logs).sum(dim=1))
        self.counts = self.counts.index_add(0, split, torch.ones_like(logs[:, 0]))

    def compute(self) -> tuple[float, float | None]:
        """Mean over the splits of what all devices took in, and standard deviation; None for a single split."""
        filled = self.counts > 0
        counts = self.counts[filled]
        marginals = self.probability_sums[filled] / counts[:, None]
        entropies = torch.special.xlogy(marginals, marginals).sum(dim=1)
        scores = (self.information_sums[filled] / counts - entropies).exp()
        return scores.mean().item(), scores.std().item() if len(scores) > 1 else None
