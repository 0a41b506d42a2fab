"""What a checkpoint file holds, and reading one that may be anything.

A checkpoint is Lightning's, with plain data and tensors only, plus one section of our own that names the
format and holds the configuration the model is made from. `state_dict` has the weights being trained under
`network.` and their average under `ema_network.`.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warm_lightning.errors import UserError, check

SECTION = "warm_lightning"
FORMAT_VERSION = 1


def read(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, on the CPU; nothing in the file is executed.

    Raises:
        UserError: if the file is missing, truncated, not plain data, or not a checkpoint of this package.
    """
    path = Path(path)
    check(path.is_file(), f"{path}: no such checkpoint; give the path of a .ckpt file that `warm fit` wrote")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: holds more than plain data, and is not loaded: {_first_line(error)}") from error
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise UserError(f"{path}: damaged or not a checkpoint ({_first_line(error)}); use another one") from error
    check(
        isinstance(checkpoint, dict) and SECTION in checkpoint,
        f"{path}: not a checkpoint of warm_lightning; give one that `warm fit` wrote",
    )
    version = checkpoint[SECTION]["format_version"]
    check(
        version == FORMAT_VERSION,
        f"{path}: has checkpoint format {version}, this version reads {FORMAT_VERSION}; use the version that wrote it",
    )
    return checkpoint


def check_same_model(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Raise UserError, naming the first difference, unless two state dicts have the same names and shapes."""
    for name in [*ours, *saved]:
        shapes = [list(d[name].shape) if name in d else "absent" for d in (saved, ours)]
        check(
            shapes[0] == shapes[1],
            f"the checkpoint is of another model: {name} is {shapes[0]} there and {shapes[1]} in the configuration",
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
