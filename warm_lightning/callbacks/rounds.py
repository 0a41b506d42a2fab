"""The rounds of `warm test`, each stored when it is finished, so that a test that was killed goes on with the next."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warm_lightning.interop.exported import SCORED
from warm_lightning.metrics import Evaluation
from warm_lightning.module import DiffusionModule
from warm_lightning.records import PACKAGE_VERSION, provenance, tensors_hash, to_json, write_file
from warm_lightning.types import Weights

FILE = "rounds.json"
NONFINITE = "nonfinite_images"
"""Among a round's values, the number of its images with pixels that are not finite."""
MADE_BY = ("git_commit", "torch_version")
"""Facts that a finished round keeps, since a test may go on with others."""


@dataclass
class Rounds:
    """Finished rounds by their seeds, such as "0-49999", and the conditions that they depend on.

    The file has an entry for each set of conditions, so that tests of other weights or settings in the same folder
    keep their rounds.

    Attributes:
        path: the file.
        conditions: everything but the seeds that a round's values are a function of; plain data.
        names: of the values of each round: of the scores, and `NONFINITE`.
        undefined: the names of values that may be not a number, which the file holds as null.
        finished: values by name, for each round.
        made_by: the commit and the version of PyTorch that each finished round is of, as far as they are known.
    """

    path: Path
    conditions: dict[str, Any]
    names: Sequence[str]
    undefined: Sequence[str] = ()
    finished: dict[str, dict[str, float]] = field(default_factory=dict)
    made_by: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The entry's key in the file: a hash of the conditions."""
        return hashlib.sha256(to_json(self.conditions).encode()).hexdigest()[:16]

    def resume(self) -> str:
        """Read the file's rounds of the same conditions.

        Returns:
            A message for the user if the file has rounds that are not used, otherwise an empty string.
        """
        stored = self._stored()
        if stored is None:
            return f"{self.path} cannot be read: all rounds are sampled."
        rounds = stored.get(self.key, {}).get("rounds", {})
        self.made_by = stored.get(self.key, {}).get("made_by", {})
        self.finished = {seeds: read for seeds, values in rounds.items() if (read := self._read(values))}
        if bad := [seeds for seeds in rounds if seeds not in self.finished]:
            return f"{self.path} has damaged rounds, which are sampled again: seeds {', '.join(bad)}."
        if stored and not rounds:
            current = json.loads(to_json(self.conditions))
            entries = [entry["conditions"] for entry in stored.values()]
            changes = [[name for name in {**old, **current} if old.get(name) != current.get(name)] for old in entries]
            fewest = ", ".join(sorted(changes, key=len)[0])
            return f"{self.path} holds rounds of a test that differs in {fewest}: all rounds are sampled again."
        return ""

    def add(self, seeds: str, values: Mapping[str, float]) -> None:
        """Store a finished round, beside the rounds that other tests have stored in the meantime."""
        self.finished[seeds] = dict(values)
        self.made_by[seeds] = {name: value for name, value in provenance("cpu").items() if name in MADE_BY}
        stored = self._stored() or {}
        entry = stored.setdefault(self.key, {"conditions": self.conditions, "rounds": {}})
        entry["rounds"][seeds] = dict(values)
        entry.setdefault("made_by", {})[seeds] = self.made_by[seeds]
        write_file(self.path, to_json(stored).encode())

    def provenance(self, rounds: Sequence[str]) -> dict[str, Any]:
        """The commit and the version of PyTorch of some rounds: one value if all have it, or each one's."""
        made = {name: [self.made_by.get(seeds, {}).get(name) for seeds in rounds] for name in MADE_BY}
        return {name: values[0] if len(set(values)) == 1 else values for name, values in made.items()}

    def _stored(self) -> dict[str, dict[str, Any]] | None:
        """The entries of the file; None where it cannot be read."""
        if not self.path.exists():
            return {}
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            entries = stored.items()
            parts = ("conditions", "rounds", "made_by")  # earlier versions did not write the last one
            return {key: {name: dict(entry.get(name, {})) for name in parts} for key, entry in entries}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _read(self, values: Any) -> dict[str, float] | None:
        """A round's values, if it has exactly those of `names` and they are numbers, or null where they may be."""
        if not isinstance(values, dict) or set(values) != set(self.names):
            return None
        read = {n: math.nan if v is None and n in self.undefined else v for n, v in values.items()}
        return read if all(isinstance(value, int | float) for value in read.values()) else None


def conditions(
    module: DiffusionModule, weights: Weights, precision: str, evaluations: Sequence[Evaluation], num_images: int
) -> dict[str, Any]:
    """Everything but the seeds that a round's scores are a function of; all devices must call this.

    Numbers of devices and of images sampled at once are not part of it: an image is a function of its seed.
    """
    config, model = module.config or {}, module.model(weights)
    return {
        "package_version": PACKAGE_VERSION,
        "weights": weights,
        "weights (sha256)": model.weights_hash(),
        "learned (sha256)": tensors_hash(model.learned.items()),
        **{name: config.get(name, repr(getattr(model, name))) for name in SCORED},
        "guide (sha256)": model.guide_hash(),
        "precision": precision,
        "device": module.device.type,
        "scores": [e.names(num_images, spreads=True) for e in evaluations],
        "extractors": [e.extractor.identity() for e in evaluations],
        "reference": [reference_identity(e) for e in evaluations],
        **evaluations[0].describe_others(),
    }


def reference_identity(evaluation: Evaluation) -> list[Any]:
    """Facts that tell references apart. Moments to six digits, which another number of devices does not change."""
    reference = evaluation.reference
    irrelevant = {"reference", *reference.describe_companions()}
    described = {name: value for name, value in reference.describe().items() if name not in irrelevant}
    size = None if reference.features is None else len(reference.features)
    return [described, size, reference.training is not None, *(f"{m:.5e}" for m in reference.moments())]
