"""Diffusion models that blur as well as add noise: Warm Diffusion and its rivals on PyTorch Lightning."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warm_lightning.config import load_checkpoint, load_config

__version__ = version("warm-lightning")
__all__ = ["load_checkpoint", "load_config"]


def __getattr__(name: str) -> Any:
    # Importing the package must not import torch: `warm --help` has to answer at once.
    if name in __all__:
        from warm_lightning import config

        return getattr(config, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
