"""How results are put down: JSON that every program reads, and hashes of weights."""

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def to_json(data: Any, indent: int | None = 2) -> str:
    """Plain data as JSON; numbers that are not finite, which JSON has not, as null."""
    return json.dumps(_finite(data), indent=indent, allow_nan=False)


def tensors_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of tensors with their names and shapes, in the order of their names.

    Floating-point values count as float64, so that a file and a model of another precision made from it agree where
    no digit was lost.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        values = tensor.detach().cpu()
        values = values.double() if values.is_floating_point() else values
        digest.update(f"{name} {list(values.shape)}".encode())
        digest.update(values.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
