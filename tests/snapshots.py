"""Pickles in the layout of EDM's snapshots for the tests, made from EDM's names and our reading of them."""

import pickle
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BUFFERS = ("freqs", "resample_filter")


class Persistent:
    """Pickles as EDM's persistent objects do."""

    def __init__(self, class_name: str, **state: Any) -> None:
        self.class_name = class_name
        self.state = {"_parameters": {}, "_buffers": {}, "_modules": {}, "_forward_hooks": OrderedDict()} | state

    def __reduce__(self) -> tuple[Any, ...]:
        source = "raise RuntimeError('the source of a snapshot was executed')"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.class_name, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@contextmanager
def torch_utils() -> Iterator[None]:
    """While inside, pickle finds `torch_utils.persistence` by name."""

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("called")

    module = types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = _reconstruct_persistent_obj.__name__
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    names = {"torch_utils": types.ModuleType("torch_utils"), module.__name__: module}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def tree(state: Mapping[str, Tensor], per_head: int | None = None, **settings: float) -> Persistent:
    """The objects whose tensors have these names."""
    root = Persistent("EDMPrecond", **{"sigma_data": 0.5, "sigma_min": 0, "sigma_max": float("inf")} | settings)
    for full, tensor in state.items():
        module, path, *name = root, full.split(".")[:-1], full.rpartition(".")[2]
        for part in path:
            if part not in module.state["_modules"]:
                module.state["_modules"][part] = Persistent("SongUNet" if part == "model" else kind(part))
            module = module.state["_modules"][part]
        kept = "_buffers" if name[0] in BUFFERS else "_parameters"
        module.state[kept][name[0]] = tensor if kept == "_buffers" else nn.Parameter(tensor)
    for block in blocks(root):
        width = block.state["_modules"]["conv0"].state["_parameters"]["weight"].shape[0]
        attention = "qkv" in block.state["_modules"]
        block.state |= {
            "out_channels": width,
            "dropout": 0.13,
            "num_heads": (width // per_head if per_head else 1) if attention else 0,
            "skip_scale": np.sqrt(0.5),
            "adaptive_scale": False,
        }
        block.state["_modules"].setdefault("skip", None)
    return root


def kind(part: str) -> str:
    """The class of a module by its name."""
    if re.search(r"_(block\d+|in\d|up|down)$", part):
        return "UNetBlock"
    return "GroupNorm" if "norm" in part else "Module"


def blocks(module: Persistent) -> list[Persistent]:
    """All blocks below a module."""
    below = [child for child in module.state["_modules"].values() if child is not None]
    own = [module] if module.class_name == "UNetBlock" else []
    return own + [block for child in below for block in blocks(child)]


def write(path: Path, ema: Any, protocol: int = 4) -> Path:
    """A snapshot file."""
    with torch_utils():
        path.write_bytes(pickle.dumps({"ema": ema, "loss_fn": Persistent("EDMLoss")}, protocol))
    return path


def reference_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of reference arrays."""
    with np.load(path) as arrays:
        return {n.removeprefix("state/"): torch.from_numpy(arrays[n]) for n in arrays.files if n.startswith("state/")}
