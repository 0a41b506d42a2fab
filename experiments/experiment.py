"""What an experiment's file says: base, axes, seeds, what to measure, and the paper's own numbers."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from jsonargparse import ArgumentParser

import experiments.analyses  # noqa: F401  (files name measures by their classes)
from experiments.cells import CONDITIONAL, Budget, Cell, DataSet, Point, Settings
from experiments.identity import DATA
from experiments.measures import Measure
from warm_lightning.errors import UserError, check, user_errors


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


OWN = ("config", "ckpt_path", "model.seed", "scores.num_images", "scores.rounds", "trainer.default_root_dir")
"""Options of `warm` that the runner gives itself."""

ENDS = ("trainer.max_time", "trainer.max_steps", "trainer.max_epochs")
"""Options with which a training would end early, and be taken for done."""


def merge(points: Sequence[Point]) -> Point:
    """What several points set together; later ones win."""
    for_data: dict[str, dict[str, Any]] = {}
    for point in points:
        for data, own in point.for_data.items():
            for_data[data] = for_data.get(data, {}) | own

    def settings(name: str) -> dict[str, Any]:
        return {setting: value for point in points for setting, value in getattr(point, name).items()}

    only = [point.only for point in points if point.only]
    return Point(
        overlays=[overlay for point in points for overlay in point.overlays],
        sample_overlays=[overlay for point in points for overlay in point.sample_overlays],
        for_data=for_data,
        only=[data for data in only[0] if all(data in others for others in only)] if only else [],
        set=settings("set"),
        sample=settings("sample"),
        quick=settings("quick"),
    )


def stand_in(paper: str, data: str | None) -> str:
    """The data set that takes the place of a paper's one: with classes where both have them."""
    if data is None:
        return paper
    told = data.removesuffix(CONDITIONAL) + CONDITIONAL
    return told if paper.endswith(CONDITIONAL) and (DATA / f"{told}.yaml").is_file() else data


def expand(
    experiment: Experiment,
    data: str | None,
    budget: Budget,
    seeds: int | None = None,
    extra: Sequence[str] = (),
) -> list[Cell]:
    """The cells of an experiment, those of one training beside each other as far as the axes' order allows.

    Args:
        experiment: what to run.
        data: the data set to run it on; the paper's where None.
        budget: how thoroughly.
        seeds: number of training seeds; as the experiment says where None.
        extra: options for all calls of `warm`.

    Raises:
        UserError: there is no such data set or budget for it, or no cell.
    """
    check_axes(experiment)
    check_extra(experiment, extra)
    count = experiment.seeds.get(budget, 1) if seeds is None else seeds
    check(count >= 1, f"--seeds {count}: there must be at least 1")
    cells: dict[tuple[Any, ...], Cell] = {}
    for paper, labels, point in combinations(experiment):
        name = stand_in(paper, data)
        known = data_set(name)
        check(budget in known.budgets, f"--budget {budget}: {name} has {', '.join(known.budgets)}; choose one of them")
        for seed in range(count):
            cell = Cell(
                labels=labels,
                data=name,
                data_set=known,
                scale=known.budgets[budget],
                budget=budget,
                papers=(paper,),
                seed=seed,
                point=point,
                extra=tuple(extra),
            )
            key = (name, *labels.values(), seed)
            same = cells.get(key)
            cells[key] = replace(cell, papers=(*same.papers, paper)) if same else cell
    names = {cell.name: cell.labels for cell in cells.values()}
    check(len(names) == len(cells), f"{experiment.title}: cells share the names of folders: make their labels differ")
    check(bool(cells), f"{experiment.title}: no cells; give its axes values, or a data set that they are for")
    return list(cells.values())


def check_axes(experiment: Experiment) -> None:
    """Raise UserError where something speaks of an axis that is not there."""
    plot = experiment.plot
    named = {name for axis in experiment.axes.values() for point in axis.points.values() for name in point.sampled}
    named |= {name for name in (plot.x, plot.lines) if name} if plot else set()
    strange = sorted(named - set(experiment.axes))
    check(not strange, f"{experiment.title}: {strange[:1]} is no axis; they are {', '.join(experiment.axes) or 'none'}")


def check_extra(experiment: Experiment, extra: Sequence[str]) -> None:
    """Raise UserError for options of `warm` that the runner gives itself, or that would make a cell's labels false."""
    points = [point for axis in experiment.axes.values() for point in axis.all().values()]
    named = {name for point in points for name in (*point.set, *point.sample)} | set(OWN)
    for option in extra:
        name = option.removeprefix("--").partition("=")[0]
        check(option.startswith("--") and "=" in option, f"{option}: write options of warm as --name=value")
        check(
            name not in ENDS,
            f"--{name}: would end trainings before they are done; stop the runner at any time instead, and start it "
            "again: it goes on",
        )
        check(
            name != "scores.extractors",
            "--scores.extractors: which score is shown depends on it; name both in the data set's file in "
            "experiments/data, under set and score",
        )
        check(
            name not in named,
            f"--{name}: is what the cells of this experiment differ in, or what their files say; choose cells with "
            "--only, samples with --num_images and --rounds, seeds with --seeds",
        )


def select(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Cells with some labels, such as BNR=0.5 or data=cifar10; several labels of one axis are alternatives.

    Raises:
        UserError: there is no such axis or no such cell.
    """
    wanted: dict[str, set[str]] = {}
    known = ["data", *cells[0].labels]
    for text in only:
        axis, equals, label = text.partition("=")
        check(bool(equals) and axis in known, f"--only {text}: write AXIS=LABEL; the axes are {', '.join(known)}")
        wanted.setdefault(axis, set()).add(label)
    labels = [{"data": cell.data, **cell.labels} for cell in cells]
    chosen = [
        cell
        for cell, own in zip(cells, labels, strict=True)
        if all(own[axis] in among for axis, among in wanted.items())
    ]
    check(bool(chosen), f"--only {' '.join(only)}: no cell has these labels; --plan without it lists all")
    return chosen


def combinations(experiment: Experiment) -> Iterator[tuple[str, dict[str, str], Point]]:
    """Every data set of the paper with every combination of values that it has."""
    names = ("overlays", "set", "sample", "for_data")
    base = Point(**{name: getattr(experiment, name) for name in names})
    axes = [[(name, label, point) for label, point in axis.all().items()] for name, axis in experiment.axes.items()]
    for paper, chosen in product(experiment.data, product(*axes)):
        late = {axis for _, _, point in chosen for axis in point.sampled}
        point = merge([base, *(for_sampling(point) if name in late else point for name, _, point in chosen)])
        if not point.only or paper in point.only:
            yield paper, {name: label for name, label, _ in chosen}, point


def for_sampling(point: Point) -> Point:
    """A point whose settings are for sampling only."""
    return replace(point, set={}, sample=point.set | point.sample)
