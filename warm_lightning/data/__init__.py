"""Sets of uint8 images, and the deterministic stream of batches that training takes from them."""

from warm_lightning.data.base import ImageDataModule
from warm_lightning.data.cifar10 import CIFAR10
from warm_lightning.data.digits import Digits
from warm_lightning.data.ffhq import FFHQ
from warm_lightning.data.folder import ImageFolder
from warm_lightning.data.image_set import ImageSet
from warm_lightning.data.lsun import LSUNChurch

__all__ = ["CIFAR10", "FFHQ", "Digits", "ImageDataModule", "ImageFolder", "ImageSet", "LSUNChurch"]
