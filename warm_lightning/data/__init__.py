"""Data sets of uint8 images, and the deterministic stream of batches that training takes from them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warm_lightning.data.datamodule import ImageDataModule
    from warm_lightning.data.datasets import CIFAR10, FFHQ, Digits, ImageFolder, LSUNChurch
    from warm_lightning.data.image_set import ImageSet

HOMES = {"ImageDataModule": "datamodule", "ImageSet": "image_set"}
__all__ = ["CIFAR10", "FFHQ", "Digits", "ImageDataModule", "ImageFolder", "ImageSet", "LSUNChurch"]


def __getattr__(name: str) -> Any:
    # The data modules need Lightning, which takes seconds to import; commands that only read images do without.
    if name in __all__:
        return getattr(import_module(f"{__name__}.{HOMES.get(name, 'datasets')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
