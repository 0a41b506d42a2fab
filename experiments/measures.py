"""Measures: calls of `warm` on the cells of an experiment, and the values that are read from the files they write.

A new measure is a subclass of `Measure`; experiments name it in their files.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from warm_lightning.cache import cache_folder
from warm_lightning.errors import UserError, check
from warm_lightning.rng import parse_seeds

from .cells import Cell
from .figures import sample_figure
from .identity import NO_PROGRESS_BAR, REFERENCES

COMPANIONS = ("_halves", "_gaussian", "_data")
"""Endings of the names of companions: scores of other images than the samples; see `metrics.scores.Score`."""


@dataclass(frozen=True)
class Reading:
    """The values that a measure finds in a cell.

    Attributes:
        values: by name.
        shown: names of the values that tables show; empty where there are only pictures.
        protocol: the settings that the values depend on; any of num_images, nfe, weights, sample_seeds (a text),
            images_seen, device, precision, nonfinite_images.
        references: values to compare with, such as those of the data itself, by their label and the value's name.
        words: texts that tables show beside the values, by name.
        meanings: what values are and which ones are better, by name, for the axes of plots. Where there are lines,
            shown values that have a meaning are plotted and compared.
        per_image: values of each image, by the names of their means; all cells have the same images in the same order.
    """

    values: dict[str, float]
    shown: list[str] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)
    references: dict[str, dict[str, float]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    meanings: dict[str, str] = field(default_factory=dict)
    per_image: dict[str, list[float]] = field(default_factory=dict)


class Measure(ABC):
    """Something that is done with every cell of an experiment."""

    needs_model = True
    """Whether it needs the trained model of the cell."""
    result_file = ""
    """The file in its folder that holds the result."""

    @abstractmethod
    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        """The command of `warm` with its options.

        Args:
            cell: which cell is measured.
            folder: where results are written.
            checkpoint: of the trained model, where one is needed.
        """

    @abstractmethod
    def read(self, cell: Cell, folder: Path) -> Reading:
        """Read the values from a folder that the command has written."""

    def applies(self, cell: Cell) -> bool:
        """Whether the measure is of this cell."""
        return True

    def network_calls(self, cell: Cell, nfe: int) -> float:
        """The number of network calls that the measure takes, for the plan; a backward pass counts as two.

        Args:
            cell: which cell is measured.
            nfe: network calls of the cell's sampler for an image.
        """
        return 0.0

    def pictures(self, cells: Sequence[tuple[Cell, Path]]) -> dict[str, Figure | bytes]:
        """Figures, or contents of PNG files, over all cells, each given with its folder; by their titles."""
        return {}

    @property
    def name(self) -> str:
        """The name in tables and results."""
        return type(self).__name__.lower()

    def folder_name(self, cell: Cell) -> str:
        """The name of the folder with its results, inside the cell's folder."""
        return self.name


@dataclass(frozen=True)
class Scores(Measure):
    """Scores of samples: `warm test`.

    Attributes:
        also: patterns of the names of scores that tables show beside the main ones, such as power_*.
    """

    also: list[str] = field(default_factory=list)

    result_file = "scores.json"

    def folder_name(self, cell: Cell) -> str:
        return f"scores-{cell.scale.rounds}x{cell.scale.images}"  # more samples do not replace those of fewer

    def network_calls(self, cell: Cell, nfe: int) -> float:
        return float(cell.scale.images * cell.scale.rounds * nfe)

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        scale = cell.scale
        counts = [f"--scores.num_images={scale.images}", f"--scores.rounds={scale.rounds}"]
        paths = [f"--trainer.default_root_dir={folder}", f"--ckpt_path={checkpoint}"]
        # First, so that a file that the experiment's settings name takes its place.
        references = f"{REFERENCES}{cache_folder() / 'references'}"
        return ["test", references, *cell.sampling, *counts, *paths, NO_PROGRESS_BAR]

    def read(self, cell: Cell, folder: Path) -> Reading:
        content = load(folder / "scores.json")
        protocol = content.pop("protocol")
        values = {name: value for name, value in content.items() if not name.endswith(COMPANIONS)}
        first = protocol["extractors"][0]
        halves = " against ".join(f"{count:,}" for count in first.get("halves_images") or []) or "?"
        labels = {
            "_halves": f"halves of the data ({halves} images)",
            "_data": "all images of the data",
            "_gaussian": f"Gaussian with the data's moments ({first.get('gaussian_images') or 0:,} images)",
        }
        references = {
            label: {name.removesuffix(ending): value for name, value in content.items() if name.endswith(ending)}
            for ending, label in labels.items()
        }
        names = ("nfe", "weights", "images_seen", "num_images", "device", "precision")
        seeds = protocol["seeds"]  # a text for one round, a list of texts for several
        chosen = {name: protocol[name] for name in names}
        chosen["sample_seeds"] = seeds if isinstance(seeds, str) else ", ".join(seeds)
        chosen["nonfinite_images"] = sum(protocol["nonfinite_images"])
        better = protocol.get("better", {})  # which earlier versions did not write
        meanings = {name: f"{better[score]} is better" for name in values if (score := score_of(name)) in better}
        shown = [*main_scores(values, cell.scale.score), *matching(values, self.also)]
        return Reading(values, shown, chosen, references, meanings=meanings)


def score_of(name: str) -> str:
    """The name of a score, from that of its best value over rounds, if it is one."""
    return re.sub("_(min|max)$", "", name)


def main_scores(names: Iterable[str], pattern: str) -> list[str]:
    """The names of the scores that tables show: the main one, and the inception-style score where there is one.

    Where there are several rounds, the best one's scores are chosen, as papers report them.

    Args:
        names: of all scores.
        pattern: of the main score, such as fid*, where * stands for a number of images.

    Raises:
        UserError: no name fits the pattern.
    """
    number = "[0-9]*k?"
    shown = [name for name in names if re.fullmatch(pattern.replace("*", number) + "(_min)?", name)]
    check(bool(shown), f"no score {pattern} among {', '.join(names)}: change score in the data set's file")
    inception = [n for n in names if re.fullmatch(f"is{number}(_(?!max|mean|std|round)[a-z]+)?(_max)?", n)]
    return [max(shown, key=len), *([max(inception, key=len)] if inception else [])]


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that fit patterns, in the order of the patterns.

    Raises:
        UserError: no name fits one of them.
    """
    names, found = list(names), []
    for pattern in patterns:
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        check(
            bool(fitting), f"no score {pattern} among {', '.join(names)}: change Scores.also in the experiment's file"
        )
        found += fitting
    return found


@dataclass(frozen=True)
class Samples(Measure):
    """Samples of the same seeds for all cells, of the first training of each: `warm generate`.

    Attributes:
        seeds: one for each image, such as 0-15.
        only: labels by axis, such as NFE: "35", of the cells that are sampled; all if empty.
    """

    seeds: str = "0-15"
    only: dict[str, str] = field(default_factory=dict)

    result_file = "grid.png"

    def applies(self, cell: Cell) -> bool:
        return cell.seed == 0 and self.only.items() <= cell.labels.items()

    def network_calls(self, cell: Cell, nfe: int) -> float:
        return float(len(parse_seeds(self.seeds)) * nfe)

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        paths = [f"--ckpt_path={checkpoint}", f"--seeds={self.seeds}", f"--outdir={folder / 'images'}"]
        return ["generate", *paths, f"--grid={folder / 'grid.png'}", *cell.overrides]

    def read(self, cell: Cell, folder: Path) -> Reading:
        return Reading({}, protocol={"sample_seeds": self.seeds})

    def pictures(self, cells: Sequence[tuple[Cell, Path]]) -> dict[str, Figure | bytes]:
        return {f"Samples of seeds {self.seeds}": sample_figure(cells)}


def load(path: Path) -> dict[str, Any]:
    """Read a JSON file of results.

    Raises:
        UserError: it does not exist or is no JSON.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        folder = path.parent
        raise UserError(f"{path}: cannot be read ({error}): delete {folder} and run the experiment again") from error
