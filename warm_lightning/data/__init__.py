"""Data sets of uint8 images, and the deterministic stream of batches that training takes from them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warm_lightning.data.datamodule import ImageDataModule
    from warm_lightning.data.datasets import CIFAR10, FFHQ, Crops, DeadLeaves, Digits, ImageFolder, LSUNChurch
    from warm_lightning.data.huggingface import HuggingFaceImages
    from warm_lightning.data.image_set import ImageSet

# All other names are in `datasets`.
MODULES = {"ImageDataModule": "datamodule", "ImageSet": "image_set", "HuggingFaceImages": "huggingface"}
__all__ = [
    "CIFAR10",
    "FFHQ",
    "Crops",
    "DeadLeaves",
    "Digits",
    "HuggingFaceImages",
    "ImageDataModule",
    "ImageFolder",
    "ImageSet",
    "LSUNChurch",
]


def __getattr__(name: str) -> Any:
    # The data modules need Lightning, which takes seconds to import. Commands that only read images do not need it.
    if name in __all__:
        return getattr(import_module(f"{__name__}.{MODULES.get(name, 'datasets')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
