"""The cache: tensors that are made once on a machine, because they depend on nothing that a user chooses."""

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from warm_lightning.errors import UserError
from warm_lightning.paths import expand
from warm_lightning.records import write_file


def cache_folder() -> Path:
    """The folder `warm_lightning/` under $WARM_CACHE, $XDG_CACHE_HOME or ~/.cache."""
    folder = os.environ.get("WARM_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(folder) / "warm_lightning"


def cached(name: str, shapes: Mapping[str, Sequence[int]], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, from a file of the cache, or made and stored there.

    Processes that do this at the same time make the same tensors, each stores a whole file, and the last file stays.

    Args:
        name: of the file; it must have all that the tensors depend on, with a version of the code that makes them.
        shapes: of the tensors; a file with others is damaged.
        make: gives the tensors.

    Raises:
        UserError: the cache cannot be written; WARM_CACHE names another folder.
    """
    path = cache_folder() / name
    try:
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        found = {tensor_name: tuple(tensor.shape) for tensor_name, tensor in tensors.items()}
        if found == {tensor_name: tuple(shape) for tensor_name, shape in shapes.items()}:
            return tensors
        raise ValueError
    except Exception as error:  # a damaged file makes torch raise nearly anything
        if not isinstance(error, FileNotFoundError):
            warnings.warn(f"{path} cannot be read and is made anew ({type(error).__name__})", stacklevel=2)
    tensors = make()
    content = io.BytesIO()
    torch.save(tensors, content)
    try:
        write_file(path, content.getvalue())
    except UserError as error:
        raise UserError(f"{error}, or set WARM_CACHE to a folder elsewhere") from error
    return tensors
