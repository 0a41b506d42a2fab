"""Handwritten digits that come with scikit-learn: the data set that is always there."""

from typing import Any

import torch

from warm_lightning.data.base import ImageDataModule
from warm_lightning.data.image_set import ImageSet
from warm_lightning.errors import check
from warm_lightning.rng import key

NUM_DIGITS = 1797


class Digits(ImageDataModule):
    """1,797 grey 8×8 images of digits in 10 classes, from scikit-learn's `load_digits`.

    Their 17 grey levels v in 0 … 16 become round(v·255/16).

    Args:
        held_out: how many images to keep from training, always the same ones; 0 … 1,796.
        **kwargs: those of `ImageDataModule`.
    """

    def __init__(self, *, held_out: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check(0 <= held_out < NUM_DIGITS, f"held_out must be from 0 to {NUM_DIGITS - 1}, not {held_out}")
        self.held_out = held_out

    def load(self, split: str) -> ImageSet | None:
        """Images of a split, in scikit-learn's order."""
        if split == "held_out" and self.held_out == 0:
            return None
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = torch.randperm(NUM_DIGITS, generator=torch.Generator().manual_seed(key(0, "digits")))
        kept = NUM_DIGITS - self.held_out
        index = (order[:kept] if split == "train" else order[kept:]).sort().values
        images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]
        return ImageSet(images[index], torch.from_numpy(digits.target)[index], tuple("0123456789"))
