"""`warm export`: a trained model as a folder for others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from warm_lightning.checkpoints import CHECKPOINTS, EMA, LEARNED, RAW, RESULTS, SECTION, check_weights, part, read
from warm_lightning.commands.ema import KIND as POST_HOC
from warm_lightning.config import load_checkpoint
from warm_lightning.errors import UserError, check
from warm_lightning.interop.exported import model_card, write_folder
from warm_lightning.model import Weights
from warm_lightning.records import tensors_hash


def export(ckpt: Path, dst: Path, weights: Weights = "ema") -> None:
    """Write model.safetensors, config.yaml and README.md, a model card, into a new folder.

    `warm generate --ckpt_path DST`, `warm test` and `load_checkpoint(DST)` take the folder as they take a
    checkpoint. The card tells of the run in whose folder of checkpoints it lies, where they are of the same model:
    its data, and its scores where it was tested.

    Args:
        ckpt: checkpoint that `warm fit` or `warm convert-edm` wrote.
        dst: the folder, new or empty.
        weights: averaged or last.
    """
    checkpoint = read(ckpt)
    check_weights(ckpt, checkpoint, weights)
    model = load_checkpoint(ckpt).model(weights)  # so that what is exported is known to load
    section = checkpoint[SECTION]
    settings, scores = run_of(ckpt, section)
    parameters = sum(p.numel() for p in model.network.parameters())
    tensors = part(checkpoint["state_dict"], EMA if weights == "ema" else RAW)
    card = model_card(section, weights, parameters, settings, scores, tensors_hash(tensors.items()))
    learned = {LEARNED + name: tensor for name, tensor in section["learned"].items()}
    document = {name: value for name, value in section.items() if name != "learned"}
    write_folder(dst, tensors | learned, document | {"weights": weights}, card)
    print(f"{dst}: {weights} weights of {parameters:,} parameters, configuration and model card")


MAY_CHANGE = ("duration", "sampler", "guidance", "channels_last", "compile")
"""Settings of a model with which its run can go on, and is the same run."""


def run_of(ckpt: Path, section: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Configuration and scores of the run that a checkpoint is of, and does not just lie in the folder of."""
    folder = ckpt.resolve().parent
    if folder.name != CHECKPOINTS or (section["source"] or {}).get("kind", POST_HOC) != POST_HOC:
        return None, None
    settings = _plain(folder.parent / "config.yaml") or {}
    model = settings.get("model")
    if not isinstance(model, dict) or lasting(model) != lasting(section["config"]):
        return None, None
    return settings, _plain(folder.parent / RESULTS)


def lasting(model: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's configuration stays the same in one run."""
    return {name: value for name, value in model.items() if name not in MAY_CHANGE}


def _plain(path: Path) -> dict[str, Any] | None:
    """A YAML or JSON file that the run has left, if it did."""
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read for the model card; mend or remove it") from error
    check(isinstance(content, dict), f"{path}: cannot be read for the model card; mend or remove it")
    return content
