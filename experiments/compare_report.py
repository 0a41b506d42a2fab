"""What `compare.py` found, as a table, a picture and their protocol."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from experiments.machine import describe
from warm_lightning import load_config
from warm_lightning.checkpoints import read
from warm_lightning.data import Digits, ImageSet
from warm_lightning.images import quantise
from warm_lightning.metrics import DigitsFeatures, Observer, Pixels, Scores, measure
from warm_lightning.metrics.gaussian import moment_matched
from warm_lightning.pictures import write_file
from warm_lightning.rng import key

if TYPE_CHECKING:
    from experiments.compare import System

SHOWN = 12  # images a row in the picture
NAMES = ("fd_digits", "fd_pixel")


def yardsticks(count: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """What as many images of the data, and of the Gaussian with the data's moments, get against the data they are not.

    The data's row is one half's images against the other half, the nearest thing to a perfect model that there is.
    """
    images = Digits().train_images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(key(0, "halves")))
    first, second = order.tensor_split(2)
    count = min(count, len(first))
    samples = {
        "Data, one half": images.take(first[:count]),
        "Gaussian with the data's moments": moment_matched(images, count, seed=1),
    }
    references = {"Data, one half": images.take(second), "Gaussian with the data's moments": images.all()}
    rows = []
    for name, drawn in samples.items():
        row: dict[str, Any] = {"system": name, "nfe": None, "images": count}
        for extractor, score in zip((DigitsFeatures(), Pixels()), NAMES, strict=True):
            observer = Observer(extractor)
            reference = measure(observer, ImageSet.without_classes(references[name]), source=name)
            scores = Scores(observer, reference, images.shape)
            scores.update(drawn)
            _, values = scores.compute()
            row[score] = next(value for key_, value in values.items() if key_.startswith("fd"))
        rows.append(row)
    return rows, samples


def row_of(system: "System") -> dict[str, Any]:
    """A system's line: what `warm test` wrote, and how long it and its training took."""
    found = json.loads((system.test.folder / "scores.json").read_text())
    named = {name: value for name, value in found.items() if name.startswith("fd") and name.count("_") == 1}
    scores = {f"fd_{name.split('_')[1]}": value for name, value in named.items()}
    seconds = [job.note()["seconds"] for job in (system.training, system.test)]
    return {
        "system": system.name,
        "nfe": found["protocol"]["nfe"],
        "images": found["protocol"]["num_images"],
        **{name: scores[name] for name in NAMES},
        "training": system.training.name,
        "images_seen": found["protocol"]["images_seen"],
        "seconds_training": seconds[0],
        "seconds_scoring": seconds[1],
    }


def samples_of(system: "System", seeds: range) -> Tensor:
    """The first images of a row, uint8 [SHOWN, C, H, W]."""
    options = dict(argument.removeprefix("--").split("=", 1) for argument in system.test.arguments)
    paths = [a.removeprefix("--config=") for a in system.test.arguments if a.startswith("--config=")]
    module, _ = load_config(paths, {name: value for name, value in options.items() if name.startswith("model.")})
    checkpoint = read(options["ckpt_path"])
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return quantise(module.model().sample(module.sampler, seeds[:SHOWN]))


def markdown(rows: Sequence[Mapping[str, Any]], protocol: Mapping[str, Any]) -> str:
    """The table, and what has to be known to read it."""
    gaussian = next(row for row in rows if row["system"].startswith("Gaussian"))
    lines = [
        "| system | NFE | images | fd_digits | times better than the Gaussian | fd_pixel |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ratio = gaussian["fd_digits"] / row["fd_digits"]
        scores = f"{row['fd_digits']:.2f} | {ratio:.1f} | {row['fd_pixel']:.3f}"
        lines.append(f"| {row['system']} | {row['nfe'] or '–'} | {row['images']:,} | {scores} |")
    machine = protocol["machine"]
    said = {name: value for name, value in protocol.items() if name != "machine"}
    said["machine"] = ", ".join(f"{name} {machine[name]}" for name in ("device", "cpu", "cores", "python", "torch"))
    return "\n".join([*lines, "", *(f"* {name}: {value}" for name, value in said.items())])


def picture(rows: Mapping[str, Tensor], path: Path) -> None:
    """Images of the same seeds, a row a system."""
    figure, axes = plt.subplots(len(rows), SHOWN, figsize=(SHOWN * 0.55 + 3, len(rows) * 0.6), squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(systems: Sequence["System"], seeds: range, out: Path, protocol: dict[str, Any]) -> str:
    """Write compare.json, compare.md and compare.png into a folder; gives the table."""
    beside, images = yardsticks(len(seeds))
    rows = [*beside, *(row_of(system) for system in systems)]
    trainings = {row["training"]: row for row in rows if "training" in row}
    hours = sum(row["seconds_training"] for row in trainings.values()) + sum(r.get("seconds_scoring", 0) for r in rows)
    protocol |= {
        "hours of all runs, one after the other": round(hours / 3600, 2),
        "images trained on": sorted({row["images_seen"] for row in trainings.values()}),
        "training seed": 0,
        "seeds of the samples": f"{seeds[0]}-{seeds[-1]}",
        "fd": "Fréchet distance between features of so many images and of all 1,797 digits; averaged weights",
        "the data's row": "images of one half of the digits, against the other half",
        "machine": describe("cuda" if torch.cuda.is_available() else "cpu"),
    }
    table = markdown(rows, protocol)
    write_file(out / "compare.json", json.dumps({"rows": rows, "protocol": protocol}, indent=2).encode())
    write_file(out / "compare.md", (table + "\n").encode())
    images |= {system.name: samples_of(system, seeds) for system in systems}
    picture({name: shown[:SHOWN] for name, shown in images.items()}, out / "compare.png")
    return f"{table}\n\nwritten to {out}: compare.json, compare.md, compare.png"
