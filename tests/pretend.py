"""An executor that runs nothing, and a small experiment: shared by the tests of the runner."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from experiments.__main__ import main
from experiments.runner import Executor
from warm_lightning.images import write_png

GRID = {
    "title": "A grid",
    "source": "Some Paper, Table 9",
    "measures": ["Scores"],
    "axes": {
        "BNR": {"setting": "model.process.path.bnr", "values": [0, 0.5]},
        "NFE": {"setting": "model.sampler.grid.steps", "sampling": True, "values": {3: 2, 5: 3}},
    },
    "seeds": {"smoke": 2},
    "plot": {"x": "NFE", "lines": "BNR"},
    "published": [{"data": "cifar10", "BNR": 0.5, "NFE": 3, "FID": 1234.5}],
}


@dataclass
class Pretend(Executor):
    """An executor that writes the files of `warm` at once.

    Attributes:
        calls: names of the folders that it was called with.
        wrong: parts of the paths of folders whose calls fail.
        broken: number of images that are no numbers.
        model: content of checkpoints.
    """

    calls: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    broken: int = 0
    model: str = "a model"

    def run(self, arguments: list[str], folder: Path) -> int:
        self.calls.append(folder.parent.name if arguments[0] != "fit" else folder.name)
        (folder / "log.txt").write_text("warm: something is wrong\n")
        if any(part in str(folder) for part in self.wrong):
            return 2
        if arguments[0] == "fit":
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / "last.ckpt").write_text(self.model + " ".join(arguments))
            return 0
        if arguments[0] == "generate":
            for path in (folder / "grid.png", folder / "images" / "000000.png"):
                path.parent.mkdir(exist_ok=True)
                write_png(path, torch.zeros(1, 8, 8, dtype=torch.uint8))
            return 0
        # The score differs between all cells and seeds.
        options = dict(option.removeprefix("--").split("=", 1) for option in arguments[1:])
        steps = options.get("model.sampler.grid.steps", 18)
        bnr, steps, seed = map(float, (options["model.process.path.bnr"], steps, options["model.seed"]))
        protocol = {"nfe": 2 * int(steps) - 1, "weights": "ema", "images_seen": 128, "num_images": 16}
        protocol |= {"device": "cpu", "precision": "32-true", "seeds": "0-15", "nonfinite_images": [self.broken]}
        protocol |= {"extractors": [{"halves_images": [898, 899], "gaussian_images": 16}]}
        scores = {
            "fd16_digits": 10 * bnr + steps + 0.1 * seed**2,
            "fd16_digits_halves": 1.5,
            "fd16_digits_gaussian": 25.0,
        }
        (folder / "scores.json").write_text(json.dumps({**scores, "protocol": protocol}))
        return 0

    def cancel(self) -> None:
        """Do nothing: no call is running."""


def start(folder: Path, content: dict, *options: str) -> int:
    """Run an experiment on digits in a folder; returns the exit code."""
    (folder / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return main(
        ["run", str(folder / "grid.yaml"), "--data=digits", "--budget=smoke", f"--out={folder / 'out'}", *options]
    )


def rows(folder: Path, of: str = "the model") -> list[dict[str, str]]:
    """The rows of its results.csv whose "of" is the model, or something else."""
    with (folder / "out" / "grid-digits-smoke" / "results.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["of"] == of]


def report(folder: Path) -> str:
    """The Markdown of its report."""
    return (folder / "out" / "grid-digits-smoke" / "report.md").read_text()
