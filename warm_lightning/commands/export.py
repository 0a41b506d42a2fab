"""`warm export`: writes a trained model as a folder to publish: weights, configuration and model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warm_lightning.checkpoints import (
    EMA_PREFIX,
    LEARNED_PREFIX,
    MAY_CHANGE,
    RAW_PREFIX,
    RESULTS,
    SECTION,
    check_weights,
    read_checkpoint,
    read_document,
    without_prefix,
)
from warm_lightning.commands.ema import KIND as POST_HOC
from warm_lightning.config import load_checkpoint
from warm_lightning.interop.exported import model_card, write_folder
from warm_lightning.paths import CHECKPOINTS, expand_checkpoint
from warm_lightning.records import tensors_hash
from warm_lightning.types import Weights


def export(ckpt: Path, dst: Path, weights: Weights = "ema", license: str | None = None) -> None:
    """Write a trained model into a new folder: model.safetensors, config.yaml and a model card, README.md.

    `warm generate --ckpt_path DST`, `warm test` and `load_checkpoint(DST)` accept the folder in place of a
    checkpoint. If the checkpoint is in the folder of checkpoints of a run of the same model, the card gives the data
    of the run and, if the run was tested, its scores. The Hugging Face Hub takes the folder as it is:
    `hf upload OWNER/NAME DST`.

    Args:
        ckpt: checkpoint of `warm fit`, `warm ema` or `warm convert-edm`, or folder of a run, for its last one.
        dst: the folder, new or empty.
        weights: ema (averaged) or raw (last).
        license: licence of the weights for the card, as the Hub writes it, such as apache-2.0; none if not given.
    """
    ckpt = Path(expand_checkpoint(ckpt))
    checkpoint = read_checkpoint(ckpt)
    check_weights(ckpt, checkpoint, weights)
    model = load_checkpoint(ckpt).model(weights)  # checks that the exported model can be loaded
    section = checkpoint[SECTION]
    settings, scores = run_of(ckpt, section)
    parameters = sum(p.numel() for p in model.network.parameters())
    tensors = without_prefix(checkpoint["state_dict"], EMA_PREFIX if weights == "ema" else RAW_PREFIX)
    card = model_card(section, weights, parameters, settings, scores, tensors_hash(tensors.items()), license)
    learned = {LEARNED_PREFIX + name: tensor for name, tensor in section["learned"].items()}
    document = {name: value for name, value in section.items() if name != "learned"}
    write_folder(dst, tensors | learned, document | {"weights": weights}, card)
    print(f"{dst}: {weights} weights of {parameters:,} parameters, configuration and model card")


def run_of(ckpt: Path, section: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Configuration and scores of the run of a checkpoint; None for each that is missing or of another model."""
    folder = ckpt.resolve().parent
    if folder.name != CHECKPOINTS or (section["source"] or {}).get("kind", POST_HOC) != POST_HOC:
        return None, None
    settings = read_document(folder.parent / "config.yaml") or {}
    model = settings.get("model")
    if not isinstance(model, dict) or fixed_settings(model) != fixed_settings(section["config"]):
        return None, None
    return settings, read_document(folder.parent / RESULTS)


def fixed_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model that cannot change within a run."""
    return {name: value for name, value in model.items() if name not in MAY_CHANGE}
