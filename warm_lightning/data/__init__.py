"""Sets of uint8 images, and the deterministic stream of batches that training takes from them."""

from warm_lightning.data.datamodule import ImageDataModule
from warm_lightning.data.datasets import CIFAR10, FFHQ, Digits, ImageFolder, LSUNChurch
from warm_lightning.data.image_set import ImageSet

__all__ = ["CIFAR10", "FFHQ", "Digits", "ImageDataModule", "ImageFolder", "ImageSet", "LSUNChurch"]
