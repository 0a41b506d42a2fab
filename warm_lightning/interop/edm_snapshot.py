"""Reading of EDM's published snapshots (`network-snapshot-*.pkl`) as a network's configuration and tensors.

A snapshot is a pickled tree of "persistent objects", each with the source code of its class. This code is never run
here: the objects are read as records without behaviour, and the architecture is derived from the tensors.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warm_lightning.errors import UserError, check, error_text
from warm_lightning.interop.edm import FAMILIES, PREFIX
from warm_lightning.interop.pickles import (
    Constructor,
    Record,
    dictionary,
    read_pickle,
    rebuild_parameter,
    rebuild_tensor,
    refuse_training_state,
    storage_from_bytes,
)
from warm_lightning.networks.layers import EDM_SCALES


@dataclass(frozen=True)
class Snapshot:
    """A network of EDM with averaged weights.

    Attributes:
        family: "ddpmpp" or "ncsnpp".
        network: arguments of the network's class, without the number of branches.
        sigma_data: σ_d of its preconditioning.
        sigma_range: the noise levels that the network knows, sigma_min and sigma_max; 0 and ∞ in the published ones.
        label_dropout: share of images that the network was trained on without their class.
        state: every parameter and buffer under EDM's name.
    """

    family: str
    network: Mapping[str, Any]
    sigma_data: float
    sigma_range: tuple[float, float]
    label_dropout: float
    state: Mapping[str, Tensor]


# ---- the objects in a snapshot


def persistent_object(meta: Any) -> Record:
    """Make a record of one of EDM's persistent objects, without its source code."""
    name, state = meta["class_name"], meta["state"]
    if not isinstance(name, str) or not isinstance(state, dict):
        raise TypeError("a persistent object without a name or a state")
    return Record(name, state)


NUMBER_TYPES = ("f8", "f4", "i8", "i4", "b1")


def number(dtype: Any, data: Any) -> int | float | bool:
    """Convert a pickled NumPy scalar to a number of Python."""
    kind, order = dtype.state["arguments"][0], dtype.state["state"][1]
    if dtype.name != "dtype" or kind not in NUMBER_TYPES or order not in "<>|=":
        raise ValueError("not a plain number")
    return np.frombuffer(data, np.dtype(kind).newbyteorder(order), count=1).item()


CONSTRUCTORS: Mapping[str, Constructor] = {
    "torch_utils.persistence._reconstruct_persistent_obj": persistent_object,
    "torch.nn.modules.container.ModuleDict": lambda: Record("ModuleDict"),
    "collections.OrderedDict": dictionary,
    "torch.storage._load_from_bytes": storage_from_bytes,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "numpy.dtype": lambda *arguments: Record("dtype", {"arguments": arguments}),
    "numpy._core.multiarray.scalar": number,
    "numpy.core.multiarray.scalar": number,
}


# ---- modules and tensors

MAX_DEPTH = 16
"""The deepest nesting of modules that is read; EDM's networks have 5 levels."""
MAX_ENTRIES = 10_000
"""The largest number of modules or tensors that is read; EDM's largest network has about a thousand. A damaged or
hostile file may refer to the same object any number of times, and to itself."""
NAME = r"\w{1,64}"


def _modules(module: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Record | None]]:
    """Every module below `module` with its path; the module is None if absent, such as a block's `skip`."""
    yield path, module
    if module is None:
        return
    check(depth < MAX_DEPTH and isinstance(module, Record), f"{path or 'ema'} is not a module of a network")
    for name, child in module.state.get("_modules", {}).items():
        check(re.fullmatch(NAME, name) is not None, f"has a module called {name[:64]!a}; EDM's have plain names")
        yield from _modules(child, f"{path}.{name}" if path else name, depth + 1)


def _tensors(modules: Mapping[str, Record]) -> dict[str, Tensor]:
    """Every parameter and buffer, by name."""
    entries = (
        (path, name, tensor)
        for path, module in modules.items()
        for part in ("_parameters", "_buffers")
        for name, tensor in module.state.get(part, {}).items()
    )
    tensors = list(itertools.islice(entries, MAX_ENTRIES))
    check(len(tensors) < MAX_ENTRIES, "has too many tensors for a network of EDM")
    for path, name, tensor in tensors:
        check(
            re.fullmatch(NAME, name) is not None
            and (tensor is None or (isinstance(tensor, Tensor) and tensor.is_floating_point())),
            f"{path}.{name[:64]!a} is not a tensor of a network",
        )
    return {f"{path}.{name}": tensor for path, name, tensor in tensors if tensor is not None}  # None: no bias


def architecture(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Derive the arguments of `UNet` from the shapes of the tensors under EDM's names.

    Args:
        state: every parameter and buffer; may be on the meta device.

    Raises:
        UserError: there is no encoder.
    """
    shapes = {name.removeprefix(PREFIX): tuple(tensor.shape) for name, tensor in state.items()}
    sizes = {int(m[1]) for name in shapes if (m := re.match(r"enc\.(\d{1,5})x\1_", name))}
    check(bool(sizes), "its network has no encoder of EDM's form")
    resolution = max(sizes)
    width, image_channels = shapes[f"enc.{resolution}x{resolution}_conv.weight"][:2]
    first = f"enc.{resolution}x{resolution}_block"
    return {
        "resolution": resolution,
        "image_channels": image_channels,
        "label_dim": shapes.get("map_label.weight", (0, 0))[1],
        "augment_dim": shapes.get("map_augment.weight", (0, 0))[1],
        "model_channels": width,
        "channel_mult": [shapes[f"enc.{r}x{r}_block0.conv0.weight"][0] // width for r in sorted(sizes, reverse=True)],
        "num_blocks": len({name.split(".")[1] for name in shapes if name.startswith(first)}),
        "attn_resolutions": [r for r in sorted(sizes) if f"enc.{r}x{r}_block0.qkv.weight" in shapes],
    }


def _check_names(family: str, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Check that the network has exactly these tensors, before any memory is allocated for it.

    Raises:
        UserError: it has others.
    """
    blocks = settings["num_blocks"] * len(settings["channel_mult"])
    check(blocks <= len(state), f"its network would have {blocks} blocks, and has {len(state)} tensors")
    with torch.device("meta"):
        expected = {PREFIX + name: tensor for name, tensor in FAMILIES[family](1, **settings).state_dict().items()}
    for name in [*expected, *state]:
        shape, needed = (list(d[name].shape) if name in d else "absent" for d in (state, expected))
        message = f"its network is none of those built here: {name} is {shape} and would have to be {needed}"
        check(shape == needed, message)


def _block_settings(modules: Mapping[str, Record]) -> dict[str, Any]:
    """The settings of blocks that do not follow from tensors: dropout and the width of attention heads."""
    blocks = [module.state for module in modules.values() if module.name == "UNetBlock"]
    check(bool(blocks), "its network has no blocks called UNetBlock")
    dropouts = {float(block["dropout"]) for block in blocks}
    check(len(dropouts) == 1, f"its blocks have different dropout ({sorted(dropouts)})")
    heads = [(int(block["num_heads"]), int(block["out_channels"])) for block in blocks if block["num_heads"]]
    if all(count == 1 for count, _ in heads):
        per_head = None
    else:
        widths = {width / count for count, width in heads}
        check(len(widths) == 1, f"its attention heads have different widths ({sorted(widths)})")
        per_head = int(widths.pop())
    return {"dropout": dropouts.pop(), "channels_per_head": per_head}


FIXED_SETTINGS: Mapping[str, Mapping[str, float]] = {
    "UNetBlock": {"skip_scale": EDM_SCALES.sum_scale, "adaptive_scale": 0},
    "GroupNorm": {"eps": 1e-6},
    "PositionalEmbedding": {"endpoint": 1, "max_positions": 10000},
}


def _check_fixed_settings(modules: Mapping[str, Record]) -> None:
    """Check the settings that do not follow from tensors and are equal in all of EDM's networks.

    Raises:
        UserError: one of them is different.
    """
    for path, module in modules.items():
        for name, expected in FIXED_SETTINGS.get(module.name, {}).items():
            value = float(module.state.get(name, expected))
            check(
                abs(value - expected) <= 1e-6 * abs(expected),
                f"its {path}.{name} is {value:g}; the networks built here have {expected:g}",
            )


# ---- the snapshot


def read_snapshot(path: Path) -> Snapshot:
    """Read the network in the `ema` entry of a snapshot.

    Raises:
        UserError: the file cannot be read, refers to classes or functions that a snapshot does not need, or has tensors
            that would be larger than the file; or the network is not EDM's DDPM++ or NCSN++ with EDM's
            preconditioning.
    """
    refuse_training_state(path)
    contents = read_pickle(path, CONSTRUCTORS)
    ema = contents.get("ema") if isinstance(contents, dict) else None
    check(isinstance(ema, Record), f"{path}: not a snapshot of EDM, which has a network under 'ema'")
    try:
        return _snapshot(ema, path.stat().st_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # other files may raise any exception
        reason = f"{type(error).__name__}: {error_text(error, 200)}"
        raise UserError(f"{path}: not a snapshot of EDM's DDPM++ or NCSN++ ({reason})") from error


def _snapshot(ema: Any, size: int) -> Snapshot:
    entries = list(itertools.islice(_modules(ema), MAX_ENTRIES))
    check(len(entries) < MAX_ENTRIES, "has too many modules for a network of EDM")
    modules = {path: module for path, module in entries if module is not None}
    check(
        ema.name == "EDMPrecond",
        f"is preconditioned by {ema.name!a}; only EDM's EDMPrecond can be converted",
    )
    network = modules[PREFIX.removesuffix(".")]
    check(
        network.name == "SongUNet",
        f"its network is {network.name!a}; only SongUNet, which is DDPM++ and NCSN++, is built here",
    )
    _check_fixed_settings(modules)
    state = _tensors(modules)
    check(sum(tensor.nbytes for tensor in state.values()) <= size, "its tensors together are larger than the file")
    family = "ncsnpp" if PREFIX + "map_noise.freqs" in state else "ddpmpp"
    settings = architecture(state) | _block_settings(modules)
    _check_names(family, settings, state)
    return Snapshot(
        family=family,
        network=settings,
        sigma_data=float(ema.state["sigma_data"]),
        sigma_range=(float(ema.state.get("sigma_min", 0)), float(ema.state.get("sigma_max", math.inf))),
        label_dropout=float(network.state.get("label_dropout", 0)),
        state=state,
    )
