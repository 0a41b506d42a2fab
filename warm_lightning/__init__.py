"""Warm Diffusion and the diffusion models that it is compared with, on PyTorch Lightning.

Equations, sections, tables, figures and algorithms without the name of a paper are those of the Warm Diffusion paper
(Hsueh et al., ICLR 2025, arXiv 2511.16904).
"""

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
