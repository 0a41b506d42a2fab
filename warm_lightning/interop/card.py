"""The model card of an exported model, from what its run left behind."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

TEMPLATE = """\
---
library_name: warm-lightning
tags: [diffusion, image-generation]
license: other  # to be filled in
---
# {title}

{summary}

## Training

{training}

## Scores

{scores}

## Use

```python
from warm_lightning import load_checkpoint

module = load_checkpoint("path/of/this/folder")
images = module.model({choice}).sample(module.sampler, seeds=[0, 1, 2, 3])  # [4, C, H, W], about -1 to 1
```

or, with warm_lightning {version} installed:

    warm generate --ckpt_path path/of/this/folder --seeds 0-63 --outdir samples{option}

`model.safetensors` holds the {weights} weights, `config.yaml` what the model is made from.

## Configuration

```yaml
{config}```

## Licence

Not stated yet: whoever publishes these weights has to name a licence here, and in the first lines of this file,
that the training data permits.
"""
WEIGHTS = {"ema": "averaged (EMA)", "raw": "last, not averaged"}


def model_card(
    section: Mapping[str, Any],
    weights: str,
    parameters: int,
    run: Mapping[str, Any] | None,
    scores: Mapping[str, Any] | None,
    sha256: str,
) -> str:
    """Markdown that says what a model is, what it was trained on and how well it scored.

    Args:
        section: the checkpoint's own section.
        weights: "ema" or "raw".
        parameters: how many the network has.
        run: the run's configuration, if there is one.
        scores: what `warm test` wrote, if anything: numbers by name, and "protocol".
        sha256: of the weights; see `tensors_hash`.
    """
    config = section["config"]
    network, process = _short(config["network"]), _short(config["process"])
    size = config["network"]["init_args"]["resolution"]
    return TEMPLATE.format(
        title=f"{process} diffusion model, {size}×{size} pixels, {network}",
        summary=f"{network} with {parameters:,} parameters; process {process}, "
        f"parameterization {_short(config['parameterization'])}.",
        training=_list(_training(section, run)),
        scores=_scores(scores, {"images_seen": section["images_seen"], "weights": weights, "weights_sha256": sha256}),
        version=section["package_version"],
        choice="" if weights == "ema" else f'"{weights}"',
        option="" if weights == "ema" else f" --weights {weights}",
        weights=WEIGHTS[weights],
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )


def _training(section: Mapping[str, Any], run: Mapping[str, Any] | None) -> Iterator[str]:
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
    yield f"Data: {_short(data)}"
    yield from (f"{name}: {_text(value)}" for name, value in data.get("init_args", {}).items() if value is not None)


def _scores(scores: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> str:
    if not scores:
        return "None: `warm test` was not run."
    protocol = scores.get("protocol") or {}
    lines = ["| score | value |", "|---|---|"]
    lines += [f"| {name} | {_text(value)} |" for name, value in scores.items() if name != "protocol"]
    said = (f"{name}: {_text(value)}" for name, value in protocol.items() if name != "config")  # that is below
    lines += ["", "Protocol:", "", _list(said)]
    for name, here in ours.items():
        if (there := protocol.get(name, "not noted")) != here:
            lines += ["", f"These are scores of other weights: {name} was {there}, and here it is {here}."]
    return "\n".join(lines)


def _short(choice: Any) -> str:
    """The name of a class without its module."""
    name = choice["class_path"] if isinstance(choice, dict) else choice
    return str(name).rpartition(".")[2]


def _text(value: Any) -> str:
    """A value in one line that Markdown leaves alone."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.replace("|", "\\|").replace("\n", " ")


def _list(items: Any) -> str:
    return "\n".join(f"- {item}" for item in items)
