"""The folder of an exported model: weights as safetensors, configuration as YAML, and a model card."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from warm_lightning.errors import UserError, check, error_text
from warm_lightning.records import file_hash, finite, whole_file

# ---- the folder

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
CARD = "README.md"


def write_folder(folder: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any], card: str) -> None:
    """Write the three files. The folder appears only when it is complete, and equal contents give equal bytes.

    Args:
        folder: a new or empty folder.
        tensors: the weights of the network by name.
        document: plain data for the YAML file.
        card: Markdown.

    Raises:
        UserError: the folder is not empty, or cannot be written.
    """
    with whole_file(folder, folder=True) as unfinished:
        check(
            not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
            f"{folder}: already exists and is not empty; give another folder",
        )
        content = save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
        config = {**document, "sha256": hashlib.sha256(content).hexdigest()}
        (unfinished / WEIGHTS).write_bytes(content)
        (unfinished / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        (unfinished / CARD).write_text(card, encoding="utf-8")


def is_exported(path: Path) -> bool:
    """Whether a path is an exported folder, or the YAML file in one."""
    return path.is_dir() or path.suffix in (".yaml", ".yml")


def read_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights and the plain data of an exported folder.

    Args:
        path: the folder, or the YAML file in it.

    Raises:
        UserError: a file is missing or damaged, or the weights are not the ones that the YAML was written with.
    """
    folder = path if path.is_dir() else path.parent
    config = folder / CONFIG if path.is_dir() else path
    for file in (config, folder / WEIGHTS):
        check(
            file.is_file(),
            f"{file}: no such file; give the folder of a run that has a checkpoint, or one that `warm export` wrote",
        )
    try:
        document = yaml.safe_load(config.read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (yaml.YAMLError, SafetensorError, OSError, ValueError) as error:
        reason = error_text(error, 200)
        raise UserError(f"{folder}: damaged or not written by `warm export` ({reason}); use another one") from error
    check(
        isinstance(document, dict) and "sha256" in document,
        f"{config}: not the configuration of an exported model; give a folder that `warm export` wrote",
    )
    digest = file_hash(folder / WEIGHTS)
    check(
        digest == document.pop("sha256"),
        f"{folder}: {WEIGHTS} is not the file that {config.name} was written with; copy the folder again",
    )
    return tensors, document


# ---- the model card

CARD_TEMPLATE = """\
---
{metadata}---
# {title}

{summary}

## Training

{training}

## Scores

{scores}

## Use

```python
from warm_lightning import load_checkpoint

trained = load_checkpoint("path/of/this/folder")
images = trained.model({choice}).sample(trained.sampler, seeds=[0, 1, 2, 3])  # [4, C, H, W], about -1 to 1
```

or, with warm_lightning {version} installed:

    warm generate --ckpt_path path/of/this/folder --seeds 0-63 --outdir samples{option}

On the Hugging Face Hub, the path of this folder is `hf://OWNER/NAME`, which needs `pip install 'warm-lightning[hub]'`.

`model.safetensors` holds the {weights} weights, `config.yaml` the configuration of the model.

## Configuration

```yaml
{config}```

## Licence

{licence}
"""

NO_LICENCE = """\
Not stated yet: whoever publishes these weights has to name a licence that the training data permits, here and in the
first lines of this file as `license: …`; `warm export --license` does both."""
LICENCE = re.compile("[a-z0-9][a-z0-9.+-]*")
"""The form of the Hub's identifiers of licences."""

WEIGHTS_TEXT = {"ema": "averaged (EMA)", "raw": "last, not averaged"}


def model_card(
    section: Mapping[str, Any],
    weights: str,
    parameters: int,
    run: Mapping[str, Any] | None,
    scores: Mapping[str, Any] | None,
    sha256: str,
    licence: str | None = None,
) -> str:
    """Write the model card: Markdown about the model, its training data and its scores.

    The metadata at its beginning are those of the Hugging Face Hub. Scores are among them only if they are of these
    weights with these settings.

    Args:
        section: the section of this package in the checkpoint.
        weights: "ema" or "raw".
        parameters: number of parameters of the network.
        run: the configuration of the run, if there is one.
        scores: the results of `warm test`, if there are any: numbers by name, and "protocol".
        sha256: hash of the weights; see `tensors_hash`.
        licence: the Hub's identifier of the licence; None where there is none yet.

    Raises:
        UserError: the licence is not of the form of the Hub's identifiers.
    """
    check(
        licence is None or LICENCE.fullmatch(licence) is not None,
        f"--license {licence}: give one of the Hub's identifiers, in small letters, such as apache-2.0 or cc-by-4.0",
    )
    config = section["config"]
    network, process = _class_name(config["network"]), _class_name(config["process"])
    size = config["network"].get("init_args", {}).get("resolution")  # which a network of one's own may not have
    title = f"{process} diffusion model{f', {size}×{size} pixels' if size else ''}, {network}"
    exported = {"images_seen": section["images_seen"], "weights": weights, "weights_sha256": sha256}
    warnings = list(_score_warnings(scores.get("protocol") or {}, exported, config)) if scores else []
    return CARD_TEMPLATE.format(
        metadata=yaml.safe_dump(
            _metadata(title, licence, run, None if warnings else scores), sort_keys=False, allow_unicode=True
        ),
        title=title,
        summary=f"{network} with {parameters:,} parameters; process {process}, "
        f"parameterization {_class_name(config['parameterization'])}.",
        training=_list(_training_facts(section, run)),
        scores=_scores_text(scores, warnings),
        version=section["package_version"],
        choice="" if weights == "ema" else f'"{weights}"',
        option="" if weights == "ema" else f" --weights {weights}",
        weights=WEIGHTS_TEXT[weights],
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        licence=f"`{licence}`" if licence else NO_LICENCE,
    )


TASK = "unconditional-image-generation"
"""The Hub's name for making images without a text, with or without classes."""


def _metadata(
    title: str, licence: str | None, run: Mapping[str, Any] | None, scores: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The metadata of the model card, by the Hub's names."""
    metadata: dict[str, Any] = {"library_name": "warm-lightning", "pipeline_tag": TASK}
    if licence:
        metadata["license"] = licence
    metadata["tags"] = ["diffusion", "image-generation"]
    names = ((scores or {}).get("protocol") or {}).get("better", ())
    values = {key: (scores or {}).get(key) for name in names for key in (name, f"{name}_mean")}  # of one or more rounds
    metrics = [{"type": name, "value": value} for name, value in values.items() if finite(value)]
    data = (run or {}).get("data")
    if metrics and isinstance(data, dict):
        name = _class_name(data)
        result = {"task": {"type": TASK}, "dataset": {"name": name, "type": name}, "metrics": metrics}
        metadata["model-index"] = [{"name": title, "results": [result]}]
    return metadata


def _training_facts(section: Mapping[str, Any], run: Mapping[str, Any] | None) -> Iterator[str]:
    source = section["source"]
    yield f"Images seen: {'unknown' if source and not section['images_seen'] else format(section['images_seen'], ',')}"
    if source:
        yield "Weights from: " + ", ".join(f"{name} {_text(value)}" for name, value in source.items())
    if start := section["config"].get("init_from"):
        yield f"Started from the weights of {start}"
    data = (run or {}).get("data")
    if not isinstance(data, dict):
        yield "Data: unknown, since there is no run beside the checkpoint; to be filled in"
        return
    yield f"Data: {_class_name(data)}"
    yield from (f"{name}: {_text(value)}" for name, value in data.get("init_args", {}).items() if value is not None)


SCORED = (
    "network",
    "sampler",
    "process",
    "parameterization",
    "preconditioning",
    "guidance",
    "guidance_interval",
    "guide",
)
"""Sections of a model's configuration that its scores depend on."""


def _score_warnings(
    protocol: Mapping[str, Any], exported: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[str]:
    """The sentences about scores that are not of the exported weights and settings."""
    for name, value in exported.items():
        if (scored := protocol.get(name, "not noted")) != value:
            yield f"These are scores of other weights: {name} was {scored}, and here it is {value}."
    scored_config = protocol.get("config") or {}
    for name in SCORED:
        if name in scored_config and (there := scored_config[name]) != (here := config.get(name)):
            yield f"These are scores with other settings: {name} was {_text(there)}, and here it is {_text(here)}."


def _scores_text(scores: Mapping[str, Any] | None, warnings: Sequence[str]) -> str:
    """The scores as Markdown, with their protocol and warnings."""
    if not scores:
        return "None: `warm test` was not run."
    protocol = scores.get("protocol") or {}
    lines = ["| score | value |", "|---|---|"]
    lines += [f"| {name} | {_text(value)} |" for name, value in scores.items() if name != "protocol"]
    # The configuration is in a section of its own below.
    entries = (f"{name}: {_text(value)}" for name, value in protocol.items() if name != "config")
    lines += ["", "Protocol:", "", _list(entries)]
    lines += [line for warning in warnings for line in ("", warning)]
    return "\n".join(lines)


def _class_name(choice: Any) -> str:
    """The name of a class, given by its path or with its arguments, without its module."""
    name = choice["class_path"] if isinstance(choice, dict) else choice
    return str(name).rpartition(".")[2]


def _text(value: Any) -> str:
    """A value on one line, without characters that have a meaning in a Markdown table."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.replace("|", "\\|").replace("\n", " ")


def _list(items: Any) -> str:
    return "\n".join(f"- {item}" for item in items)
