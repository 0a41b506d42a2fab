"""What an experiment's file says: base, axes, seeds, what to measure, and the paper's own numbers."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml
from jsonargparse import ArgumentParser

import experiments.analyses  # noqa: F401  (files name measures by their classes)
from experiments.measures import Measure
from warm_lightning.errors import UserError, check
from warm_lightning.lightning_cli import user_errors

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parent
DATA = FOLDER / "data"

Settings = dict[str, Any]
"""Dotted names of `warm fit` and values, such as model.lr: 1.0e-3."""
Budget = Literal["smoke", "small", "paper"]
"""smoke: does it run; small: minutes or hours, and says something; paper: the paper's own settings."""


@dataclass(frozen=True)
class Point:
    """A value of an axis that is more than one number.

    Attributes:
        overlays: files of configs/, such as method/hot, for training and sampling.
        set: settings for training and sampling.
        sample_overlays: files of configs/ for sampling only.
        sample: settings for sampling only.
        for_data: settings that this value needs on some data set, by its name.
        sampled: names of other axes, whose values are then for sampling only: one training serves them all.
        quick: settings unless the budget is the paper's, such as fewer steps of long chains.
        only: the paper's data sets that have this value; none for all of them.
    """

    overlays: list[str] = field(default_factory=list)
    set: Settings = field(default_factory=dict)
    sample_overlays: list[str] = field(default_factory=list)
    sample: Settings = field(default_factory=dict)
    for_data: dict[str, Settings] = field(default_factory=dict)
    sampled: list[str] = field(default_factory=list)
    quick: Settings = field(default_factory=dict)
    only: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Axis:
    """What cells differ in: values of one setting, or points.

    Attributes:
        setting: dotted name that the values are of.
        sampling: whether they are for sampling only, so that one training serves them all.
        values: numbers or words; or labels and what is set, such as {35: 18} for 35 network calls in 18 steps.
        points: labels and what they set.
    """

    setting: str = ""
    sampling: bool = False
    values: list[Any] | dict[str, Any] = field(default_factory=list)
    points: dict[str, Point] = field(default_factory=dict)

    def all(self) -> dict[str, Point]:
        """Every value by its label."""
        values = self.values if isinstance(self.values, dict) else {str(value): value for value in self.values}
        own = {
            str(label): Point(sample={self.setting: value}) if self.sampling else Point(set={self.setting: value})
            for label, value in values.items()
        }
        return own | self.points


@dataclass(frozen=True)
class Plot:
    """How the report shows the first measure's main score.

    Attributes:
        x: axis along the plot; bars, one a value, where its values are no numbers.
        lines: axis with a line a value, if any.
        log: which scales are logarithmic: x, y or xy.
        labels: what to write at an axis instead of its name, with the unit.
    """

    x: str
    lines: str | None = None
    log: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
        title: in words.
        source: paper and table or figure.
        measures: what is done with every cell; the first one's main score is what tables and plots show.
        axes: by name; cells are all their combinations.
        about: what to know in reading it.
        data: the paper's data sets, files of experiments/data.
        overlays: files of configs/ for all cells.
        set: settings for all cells.
        sample: settings for sampling all cells.
        for_data: settings that all cells need on some data set, by its name.
        seeds: training seeds by budget, one where a budget is not named.
        evaluated: how the published numbers came about.
        paper: published numbers: data, a label for each axis that matters, and scores by the names the paper uses.
        plot: of the scores.
    """

    title: str
    source: str
    measures: list[Measure]
    axes: dict[str, Axis]
    about: str = ""
    data: list[str] = field(default_factory=lambda: ["cifar10"])
    overlays: list[str] = field(default_factory=list)
    set: Settings = field(default_factory=dict)
    sample: Settings = field(default_factory=dict)
    for_data: dict[str, Settings] = field(default_factory=dict)
    seeds: dict[Budget, int] = field(default_factory=dict)
    evaluated: str = ""
    paper: list[dict[str, Any]] = field(default_factory=list)
    plot: Plot | None = None


@dataclass(frozen=True)
class Scale:
    """What a budget means for a data set.

    Attributes:
        config: YAML file of model and data.
        score: the main score's kind as `warm test` names it, with * for the number of images, such as fd*_digits.
        set: settings for training and sampling.
        images: samples in each round of scoring.
        rounds: of scoring.
        differs: what is not as in the paper, beside numbers that the report compares itself.
    """

    config: str
    score: str
    set: Settings = field(default_factory=dict)
    images: int = 50_000
    rounds: int = 1
    differs: str = ""


@dataclass(frozen=True)
class DataSet:
    """A data set on which experiments run, a file of experiments/data.

    Attributes:
        title: in words.
        budgets: what each means.
        base: name of another data set that this one is but for its settings, instead of budgets.
        set: these settings.
    """

    title: str
    budgets: dict[Budget, Scale] = field(default_factory=dict)
    base: str = ""
    set: Settings = field(default_factory=dict)


Kind = TypeVar("Kind", Experiment, DataSet)


def parse(content: Mapping[str, Any], kind: type[Kind], source: Path) -> Kind:
    """Plain data as what it describes, every name and type checked.

    Raises:
        UserError: for a misspelt name or a wrong value; the file is named.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "file", sub_configs=False)
    published = deepcopy(content.get("paper", []))  # as it stands there: the parser makes a number of "1.80"
    try:
        with user_errors():
            parsed = parser.parse_object({"file": deepcopy(dict(content))})  # which it changes
            found = parser.instantiate(parsed).file
            if isinstance(found, Experiment):
                found = replace(found, paper=published)
            return cast(Kind, found)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def read(path: Path, kind: type[Kind]) -> Kind:
    """An experiment's or a data set's file.

    Raises:
        UserError: it is not there, no YAML, or wrong.
    """
    there = sorted(p.stem for p in path.parent.glob("*.yaml"))
    check(path.is_file(), f"{path}: no such file; there are {', '.join(there) or 'none'}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    check(isinstance(content, dict), f"{path}: needs names and values, of which title is the first")
    return parse(content, kind, path)


@cache
def data_set(name: str) -> DataSet:
    """A data set by the name of its file.

    Raises:
        UserError: see `read`.
    """
    found = read(DATA / f"{name}.yaml", DataSet)
    if not found.base:
        return found
    budgets = {name: replace(scale, set=scale.set | found.set) for name, scale in data_set(found.base).budgets.items()}
    return replace(found, budgets=budgets)
