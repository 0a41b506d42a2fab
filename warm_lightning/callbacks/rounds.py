"""Rounds of scores, kept as they are finished, so that `warm test` goes on where it was killed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from warm_lightning.metrics import Scores
from warm_lightning.model import Weights
from warm_lightning.module import DiffusionModule
from warm_lightning.pictures import write_file
from warm_lightning.strategies import gathered

FILE = "rounds.json"
MODEL = ("sampler", "process", "parameterization", "preconditioning", "guidance")


@dataclass
class Rounds:
    """Finished rounds by their seeds, such as "0-49999", and what they depend on.

    Attributes:
        path: file that they are kept in.
        conditions: what, besides the seeds, a round's scores are a function of; plain data.
        finished: scores by name, for each round.
    """

    path: Path
    conditions: dict[str, Any]
    finished: dict[str, dict[str, float]] = field(default_factory=dict)

    def resume(self) -> str:
        """Take over the rounds that the file holds if they were made under the same conditions.

        Returns:
            What to tell people if there is a file, otherwise nothing.
        """
        if not self.path.exists():
            return ""
        try:
            stored = json.loads(self.path.read_text())
            conditions, finished = dict(stored["conditions"]), dict(stored["rounds"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"{self.path} cannot be read: all rounds are sampled."
        ours = json.loads(json.dumps(self.conditions))
        changed = [name for name in {**conditions, **ours} if conditions.get(name) != ours.get(name)]
        if changed:
            return f"{self.path} is of other {', '.join(changed)}: all rounds are sampled."
        self.finished = finished
        return ""

    def add(self, seeds: str, values: Mapping[str, float]) -> None:
        """Keep a finished round."""
        self.finished[seeds] = dict(values)
        content = {"conditions": self.conditions, "rounds": self.finished}
        write_file(self.path, json.dumps(content, indent=2).encode())


def conditions(module: DiffusionModule, weights: Weights, precision: str, scores: list[Scores]) -> dict[str, Any]:
    """What the scores of given seeds are a function of; all devices must call this.

    Numbers of devices and of images sampled at once are not among it (DESIGN, section 6).
    """
    config = module.config or {}
    return {
        "weights": weights,
        "weights (sha256)": weights_hash(module, weights),
        **{name: config.get(name, repr(getattr(module, name))) for name in MODEL},
        "precision": precision,
        "device": module.device.type,
        "extractors": [s.extractor.identity() for s in scores],
        "reference": [reference_identity(s) for s in scores],
    }


def weights_hash(module: DiffusionModule, weights: Weights) -> str:
    """SHA-256 of the network's tensors, with their names and shapes."""
    network = module.ema_network if weights == "ema" else module.network
    digest = hashlib.sha256()
    with gathered(network), torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def reference_identity(scores: Scores) -> list[Any]:
    """What tells references apart. Moments to six digits, which another number of devices does not change."""
    reference = scores.reference
    norms = [reference.normal.mean.norm(), reference.normal.covariance.trace()]
    size = None if reference.features is None else len(reference.features)
    described = {name: value for name, value in reference.describe().items() if name != "reference"}
    return [described, size, reference.training is not None, *(f"{norm.item():.5e}" for norm in norms)]
