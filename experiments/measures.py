"""What can be done with a cell: a call of `warm`, and what is read of what it wrote.

A new measure is a subclass; experiments name it in their files.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.cells import QUIET, Cell
from warm_lightning.errors import UserError, check
from warm_lightning.rng import parse_seeds

COMPANIONS = ("_halves", "_gaussian", "_data")
"""Ends of the names of scores that are not the samples'."""


@dataclass(frozen=True)
class Reading:
    """What a measure found in a cell.

    Attributes:
        values: by name.
        shown: names of the values that tables show, the first in plots; none where there is nothing but pictures.
        about: what the values are of: images, nfe, weights, sample_seeds, images_seen, …
        yardsticks: the same values for something other than the model, by its name and the value's.
        words: what tables show beside the values and is no number.
    """

    values: dict[str, float]
    shown: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    yardsticks: dict[str, dict[str, float]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


class Measure(ABC):
    """What is done with every cell of an experiment."""

    trains = True
    """Whether it needs the cell's trained model."""
    makes = ""
    """The file of results in its folder."""

    @abstractmethod
    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        """The command of `warm` and its options.

        Args:
            cell: which.
            folder: where results go.
            checkpoint: of the trained model, where the measure needs one.
        """

    @abstractmethod
    def read(self, cell: Cell, folder: Path) -> Reading:
        """What the command has found."""

    def calls(self, cell: Cell, nfe: int) -> float:
        """Network calls that it takes, for the plan; a backward pass counts as two.

        Args:
            cell: which.
            nfe: of the cell's sampler, for an image.
        """
        return 0.0

    def pictures(self, cells: Sequence[tuple[Cell, Path]]) -> dict[str, bytes]:
        """PNG files over all cells, each with its folder, by their titles."""
        return {}

    @property
    def name(self) -> str:
        """For people."""
        return type(self).__name__.lower()

    def place(self, cell: Cell) -> str:
        """Of the folder with its results in a cell's."""
        return self.name


class Scores(Measure):
    """Samples and scores: `warm test`."""

    makes = "scores.json"

    def place(self, cell: Cell) -> str:
        return f"scores-{cell.scale.rounds}x{cell.scale.images}"  # so that more samples leave those of fewer alone

    def calls(self, cell: Cell, nfe: int) -> float:
        return float(cell.scale.images * cell.scale.rounds * nfe)

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        scale = cell.scale
        counts = [f"--scores.num_images={scale.images}", f"--scores.rounds={scale.rounds}"]
        where = [f"--trainer.default_root_dir={folder}", f"--ckpt_path={checkpoint}"]
        return ["test", *cell.sampling, *counts, *where, QUIET]

    def read(self, cell: Cell, folder: Path) -> Reading:
        found = load(folder / "scores.json")
        protocol = found.pop("protocol")
        own = {name: value for name, value in found.items() if not name.endswith(COMPANIONS)}
        first = protocol["extractors"][0]
        halves = " against ".join(f"{count:,}" for count in first.get("halves_images") or ["?"])
        labels = {
            "_halves": f"halves of the data ({halves} images)",
            "_gaussian": f"Gaussian with the data's moments ({first.get('gaussian_images') or 0:,} images)",
        }
        beside: dict[str, dict[str, float]] = {label: {} for label in labels.values()}
        for name, value in found.items():
            for end, label in labels.items():
                if name.endswith(end):
                    beside[label][name.removesuffix(end)] = value
        names = ("nfe", "weights", "images_seen", "num_images", "device", "precision")
        about = {name: protocol[name] for name in names} | {"sample_seeds": protocol["seeds"]}
        about["nonfinite_images"] = sum(protocol["nonfinite_images"])
        return Reading(own, main_scores(own, cell.scale.score), about, beside)


def main_scores(names: Iterable[str], pattern: str) -> list[str]:
    """The score of a pattern such as fid*, and the inception-style score where there is one; of the best round, as
    papers report them, where there are several.

    Raises:
        UserError: there is none.
    """
    number = "[0-9]*k?"
    shown = [name for name in names if re.fullmatch(pattern.replace("*", number) + "(_min)?", name)]
    check(bool(shown), f"no score {pattern} among {', '.join(names)}: change score in the data set's file")
    inception = [n for n in names if re.fullmatch(f"is{number}(_(?!max|mean|std|round)[a-z]+)?(_max)?", n)]
    return [max(shown, key=len), *([max(inception, key=len)] if inception else [])]


@dataclass(frozen=True)
class Samples(Measure):
    """A grid of samples of the same seeds: `warm generate`.

    Attributes:
        seeds: one an image.
    """

    seeds: str = "0-15"

    makes = "grid.png"

    def calls(self, cell: Cell, nfe: int) -> float:
        return float(len(parse_seeds(self.seeds)) * nfe)

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        where = [f"--ckpt_path={checkpoint}", f"--seeds={self.seeds}", f"--outdir={folder / 'images'}"]
        return ["generate", *where, f"--grid={folder / 'grid.png'}", *cell.overrides]

    def read(self, cell: Cell, folder: Path) -> Reading:
        return Reading({}, about={"sample_seeds": self.seeds})

    def pictures(self, cells: Sequence[tuple[Cell, Path]]) -> dict[str, bytes]:
        from experiments.figures import png, sample_rows

        return {f"Samples of seeds {self.seeds}": png(sample_rows(cells))}


def load(path: Path) -> dict[str, Any]:
    """A file of results.

    Raises:
        UserError: it is not there or no JSON.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        folder = path.parent
        raise UserError(f"{path}: cannot be read ({error}): delete {folder} and run the experiment again") from error
