"""A trained model as a folder for others: weights as safetensors, configuration as YAML, a model card."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from warm_lightning.errors import UserError, check

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
CARD = "README.md"


def write_folder(folder: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any], card: str) -> None:
    """Write the three files; the folder appears only when it is whole, and equal contents give equal bytes.

    Args:
        folder: new, or an empty one.
        tensors: weights of the network by name.
        document: plain data for the YAML.
        card: Markdown.

    Raises:
        UserError: if there is something at `folder`, or it cannot be written.
    """
    unfinished = folder.parent / f".{folder.name}.unfinished"
    try:
        check(
            not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
            f"{folder}: already exists and is not empty; give another folder",
        )
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        content = save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
        described = {**document, "sha256": hashlib.sha256(content).hexdigest()}
        (unfinished / WEIGHTS).write_bytes(content)
        (unfinished / CONFIG).write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
        (unfinished / CARD).write_text(card, encoding="utf-8")
        unfinished.replace(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose a folder that can") from error


def is_exported(path: Path) -> bool:
    """Whether a path is such a folder, or the YAML in one."""
    return path.is_dir() or path.suffix in (".yaml", ".yml")


def read_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the plain data of a folder, given by its own path or that of its YAML.

    Raises:
        UserError: for a file that is missing or damaged, or weights that are not those the YAML was written with.
    """
    folder = path if path.is_dir() else path.parent
    config = folder / CONFIG if path.is_dir() else path
    for file in (config, folder / WEIGHTS):
        check(file.is_file(), f"{file}: no such file; give a folder that `warm export` wrote")
    try:
        document = yaml.safe_load(config.read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (yaml.YAMLError, SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: damaged or not written by `warm export` ({reason}); use another one") from error
    check(isinstance(document, dict), f"{config}: not the configuration of an exported model")
    with (folder / WEIGHTS).open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    check(
        digest == document.pop("sha256", None),
        f"{folder}: {WEIGHTS} is not the file that {config.name} was written with; copy the folder again",
    )
    return tensors, document
