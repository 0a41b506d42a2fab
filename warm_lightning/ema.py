"""Exponential moving average of weights, its memory measured in images."""

import torch
from torch import nn

from warm_lightning.errors import check


class EMA:
    """EMA by half-life with ramp-up (EDM, Appendix F.2).

    Args:
        half_life: images after which a weight's share of the average has halved, > 0.
        ramp: the half-life is at most this share of the images seen so far, so that the average forgets the
            initialisation quickly; 0.05 is EDM's. None never shortens it.
    """

    def __init__(self, half_life: float, ramp: float | None = 0.05) -> None:
        check(half_life > 0, f"ema_half_life is {half_life}: it is a number of images and must be positive")
        check(ramp is None or ramp > 0, f"ema_ramp is {ramp}: it must be positive, or null for none")
        self.half_life = half_life
        self.ramp = ramp

    def decay(self, images_seen: int, batch_size: int) -> float:
        """Share of the old average that survives a step of `batch_size` images, the last of `images_seen`."""
        half_life = self.half_life if self.ramp is None else min(self.half_life, self.ramp * images_seen)
        return 0.5 ** (batch_size / half_life)

    @torch.no_grad()
    def update(self, average: nn.Module, network: nn.Module, images_seen: int, batch_size: int) -> None:
        """Move `average` towards `network` in place."""
        weight = 1 - self.decay(images_seen, batch_size)
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), weight)
