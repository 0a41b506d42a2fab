"""The file of an experiment: its format, how it is read, and the cells that it stands for."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from jsonargparse import ArgumentParser

from warm_lightning.checkpoints import dotted_settings
from warm_lightning.errors import UserError, check, user_errors
from warm_lightning.shipped import config_file

from . import analyses  # noqa: F401  (files name measures by their classes)
from .cells import CONDITIONAL, Budget, Cell, DataSet, Plain, Point, Settings
from .identity import BASE, DATA
from .measures import Measure

# ---------------------------------------------------------------------- the format


@dataclass(frozen=True)
class Axis:
    """A set of values in which cells differ: values of a single setting, or points that set more.

    Attributes:
        setting: dotted name of the setting that `values` are of.
        sampling: whether the values are for sampling only, so that one training serves them all.
        values: numbers or words; or their labels with the values, such as {35: 18} for 35 network calls in 18 steps.
        points: labels with what they set.
    """

    setting: str = ""
    sampling: bool = False
    values: list[Plain] | dict[str, Plain] = field(default_factory=list)
    points: dict[str, Point] = field(default_factory=dict)

    def by_label(self) -> dict[str, Point]:
        """All values and points by their labels."""
        values = self.values if isinstance(self.values, dict) else {str(value): value for value in self.values}
        settings = {str(label): {self.setting: value} for label, value in values.items()}
        single = {n: Point(sample=s) if self.sampling else Point(set=s) for n, s in settings.items()}
        return single | self.points


@dataclass(frozen=True)
class Plot:
    """How the report plots scores; scales are logarithmic where values are far apart.

    With lines, each value of a measure that tables show has a plot, for each combination of the values of further axes;
    without, the main one has.

    Attributes:
        x: axis along the plot; where its values are no numbers, each has a row.
        lines: axis of which each value has a line, if any.
        labels: text to write at an axis instead of its name, with the unit.
        compared_with: label of x; the report then also has the differences from there along each line.
    """

    x: str
    lines: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    compared_with: str | None = None

    def title(self, axis: str) -> str:
        """The text to write at an axis."""
        return self.labels.get(axis, axis)


@dataclass(frozen=True)
class Experiment:
    """One table or figure, as a file of experiments/papers describes it.

    Attributes:
        title: in words.
        source: paper with its table or figure.
        measures: what is done with every cell.
        axes: by name; the cells are all combinations of their values.
        about: remarks for readers of the report.
        data: the paper's data sets, files of experiments/data.
        overlays: configurations for all cells, see `cells.Point`.
        set: settings for all cells.
        sample: settings for sampling all cells.
        for_data: settings that all cells need on some data set, see `cells.Point`.
        seeds: number of training seeds by budget, or more where the data set's budget says so; one for budgets that are
            not named.
        evaluated: a remark for the report on how the authors evaluated the published numbers, such as the best of three
            rounds.
        published: numbers of the paper, as entries with data, a label for each axis that matters, and scores.
        plot: of the scores, if any.
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
    published: list[dict[str, Plain]] = field(default_factory=list)
    plot: Plot | None = None


# ---------------------------------------------------------------------- reading files

Kind = TypeVar("Kind", Experiment, DataSet)


def read(path: Path, kind: type[Kind]) -> Kind:
    """Read the file of an experiment or a data set.

    Raises:
        UserError: it does not exist, is no YAML, or has a wrong name or value.
    """
    names = sorted(p.stem for p in path.parent.glob("*.yaml"))
    check(path.is_file(), f"{path}: no such file; there are {', '.join(names) or 'none'}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    check(isinstance(content, dict), f"{path}: needs names and values, of which title is the first")
    return parse(content, kind, path)


def parse(content: Mapping[str, Any], kind: type[Kind], source: Path) -> Kind:
    """Make an experiment or a data set from plain data, checking every name and type.

    Args:
        content: of the file.
        kind: the class to make.
        source: path of the file, for messages.

    Raises:
        UserError: a name is misspelt or a value is wrong.
    """
    renamed = kind is Experiment and "paper" in content
    check(not renamed, f"{source}: the published numbers are under published now: rename the key paper")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "file", sub_configs=False)
    try:
        with user_errors():
            parsed = parser.parse_object({"file": deepcopy(dict(content))})  # a copy, since the parser changes it
            return cast(Kind, parser.instantiate(parsed).file)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


@cache
def data_set(name: str) -> DataSet:
    """The data set that a file of experiments/data describes.

    Args:
        name: of the file, without .yaml.

    Raises:
        UserError: see `read`.
    """
    described = read(DATA / f"{name}.yaml", DataSet)
    if not described.base:
        return described
    base = data_set(described.base)
    budgets = {b: replace(s, set=s.set | described.set) for b, s in base.budgets.items()}
    return replace(described, budgets=budgets, size=base.size)


# ---------------------------------------------------------------------- cells


def expand(
    experiment: Experiment,
    data: str | None,
    budget: Budget,
    seeds: int | None = None,
    extra: Sequence[str] = (),
) -> list[Cell]:
    """The cells of an experiment, in the order of its data sets, axes and seeds.

    Args:
        experiment: which experiment.
        data: name of the data set to run it on; the paper's data sets where None.
        budget: how thoroughly.
        seeds: number of training seeds; as the experiment says where None.
        extra: options for all calls of `warm`.

    Raises:
        UserError: there is no such data set, no such budget for it, no cell, or no cell that a measure is of.
    """
    check_axes(experiment)
    check_extra(experiment, extra)
    check(seeds is None or seeds >= 1, f"--seeds {seeds}: there must be at least 1")
    several = experiment.seeds.get(budget, 1)
    cells: dict[tuple[Any, ...], Cell] = {}
    for paper_dataset, labels, point in combinations(experiment):
        name = substitute(paper_dataset, data)
        described = data_set(name)
        budgets = described.budgets
        check(budget in budgets, f"--budget {budget}: {name} has {', '.join(budgets)}; choose one of them")
        count = max(several, budgets[budget].seeds) if several > 1 else 1
        for seed in range(count if seeds is None else seeds):
            cell = Cell(
                labels=labels,
                data=name,
                data_set=described,
                scale=budgets[budget],
                budget=budget,
                paper_data=(paper_dataset,),
                seed=seed,
                point=point,
                extra=tuple(extra),
            )
            key = (name, *labels.values(), seed)
            # A cell that already stands for another data set of the paper, such as digits for CIFAR-10 and FFHQ.
            same = cells.get(key)
            cells[key] = replace(cell, paper_data=(*same.paper_data, paper_dataset)) if same else cell
    names = {cell.name for cell in cells.values()}
    check(len(names) == len(cells), f"{experiment.title}: cells share the names of folders: make their labels differ")
    check(bool(cells), f"{experiment.title}: no cells; give its axes values, or a data set that they are for")
    for measure in experiment.measures:
        used = any(measure.applies(cell) for cell in cells.values())
        check(used, f"{experiment.title}: no cell has the labels of {measure}; the axes are {axes_text(experiment)}")
    return list(cells.values())


def combinations(experiment: Experiment) -> Iterator[tuple[str, dict[str, str], Point]]:
    """Every combination of labels on every data set of the paper that has it, with all that it sets."""
    names = ("overlays", "set", "sample", "for_data")
    base = Point(**{name: getattr(experiment, name) for name in names})
    axes = [[(name, label, p) for label, p in axis.by_label().items()] for name, axis in experiment.axes.items()]
    for paper_dataset, chosen in product(experiment.data, product(*axes)):
        sampled = {axis for _, _, point in chosen for axis in point.sampled}
        points = [
            replace(point, set={}, sample=point.set | point.sample) if name in sampled else point
            for name, _, point in chosen
        ]
        merged = merge([base, *points])
        for text, point in product([f"{name}={label}" for name, label, _ in chosen], points):
            merged.sample.update(point.sample_with.get(text, {}))
        if not merged.only or paper_dataset in merged.only:
            yield paper_dataset, {name: label for name, label, _ in chosen}, merged


def merge(points: Sequence[Point]) -> Point:
    """All that several points set together, where later ones replace settings of earlier ones."""
    for_data: dict[str, Settings] = {}
    for point in points:
        for data, settings in point.for_data.items():
            for_data[data] = for_data.get(data, {}) | settings

    def merged(name: str) -> Settings:
        return {setting: value for point in points for setting, value in getattr(point, name).items()}

    only = [point.only for point in points if point.only]
    return Point(
        overlays=[overlay for point in points for overlay in point.overlays],
        sample_overlays=[overlay for point in points for overlay in point.sample_overlays],
        for_data=for_data,
        only=[data for data in only[0] if all(data in others for others in only)] if only else [],
        set=merged("set"),
        sample=merged("sample"),
        quick=merged("quick"),
    )


def substitute(paper_dataset: str, data: str | None) -> str:
    """The data set that takes the place of a paper's one, with classes where both have them.

    Args:
        paper_dataset: name of the paper's data set.
        data: name of the data set to use instead; None for the paper's.
    """
    if data is None:
        return paper_dataset
    conditional = data.removesuffix(CONDITIONAL) + CONDITIONAL
    return conditional if paper_dataset.endswith(CONDITIONAL) and (DATA / f"{conditional}.yaml").is_file() else data


def select(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells with some labels.

    Args:
        cells: to choose from.
        only: texts such as BNR=0.5 or data=cifar10; several labels of one axis are alternatives.

    Raises:
        UserError: there is no such axis or no such cell.
    """
    wanted: dict[str, set[str]] = {}
    axes = ["data", *cells[0].labels]
    for text in only:
        axis, equals, label = text.partition("=")
        check(bool(equals) and axis in axes, f"--only {text}: write AXIS=LABEL; the axes are {', '.join(axes)}")
        wanted.setdefault(axis, set()).add(label)
    chosen = [
        cell
        for cell in cells
        if all({"data": cell.data, **cell.labels}[axis] in labels for axis, labels in wanted.items())
    ]
    check(bool(chosen), f"--only {' '.join(only)}: no cell has these labels; --plan without it lists all")
    return chosen


# ---------------------------------------------------------------------- checks

RUNNER_OPTIONS = (
    "config",
    "ckpt_path",
    "model.seed",
    "scores.num_images",
    "scores.rounds",
    "trainer.default_root_dir",
)
"""Options of `warm` that the runner gives by itself."""

ENDING_OPTIONS = ("trainer.max_time", "trainer.max_steps", "trainer.max_epochs")
"""Options with which a training would end early, but count as done."""


def axes_text(experiment: Experiment) -> str:
    """The axes with their labels, for messages."""
    return "; ".join(f"{name}: {', '.join(axis.by_label())}" for name, axis in experiment.axes.items()) or "none"


def check_axes(experiment: Experiment) -> None:
    """Raise UserError where a plot or a point names an axis, a label or a data set that does not exist."""
    plot = experiment.plot
    named = {name for axis in experiment.axes.values() for point in axis.points.values() for name in point.sampled}
    named |= {name for name in (plot.x, plot.lines) if name} if plot else set()
    wrong = sorted(named - set(experiment.axes))
    check(not wrong, f"{experiment.title}: {wrong[:1]} is no axis; they are {', '.join(experiment.axes) or 'none'}")
    if plot and plot.compared_with is not None:
        labels = list(experiment.axes[plot.x].by_label())
        known = plot.compared_with in labels
        check(known, f"{experiment.title}: compared_with is {plot.compared_with}; {plot.x} has {', '.join(labels)}")
    points = [point for axis in experiment.axes.values() for point in axis.points.values()]
    values = {f"{name}={label}" for name, axis in experiment.axes.items() for label in axis.by_label()}
    absent = sorted({text for point in points for text in point.sample_with} - values)
    check(not absent, f"{experiment.title}: sample_with names {absent[:1]}; the axes are {axes_text(experiment)}")
    needed = {*experiment.for_data, *(key for point in points for key in point.for_data)}
    there = {path.stem for path in DATA.glob("*.yaml")}
    if needed - there:
        there |= {size for name in there if (size := data_set(name).size)}
    check(
        needed <= there,
        f"{experiment.title}: for_data names {', '.join(sorted(needed - there))}, which is no data set and no size of "
        f"one; there are {', '.join(sorted(there))}",
    )


def overlay_settings(overlay: str) -> set[str]:
    """The dotted names of the settings in an overlay, given as a value of --config."""
    content = yaml.safe_load((BASE / config_file(overlay, BASE)).read_text(encoding="utf-8"))
    names = (name.removeprefix(".") for name, _ in dotted_settings(content, ""))
    return {name.removesuffix(".class_path").replace(".init_args.", ".") for name in names}


def check_extra(experiment: Experiment, extra: Sequence[str]) -> None:
    """Raise UserError for options of `warm` that the runner gives by itself, or that contradict labels of cells."""
    points = [point for axis in experiment.axes.values() for point in axis.by_label().values()]
    fixed = {name for point in points for name in (*point.set, *point.sample)} | set(RUNNER_OPTIONS)
    overlays = {overlay for point in points for overlay in (*point.overlays, *point.sample_overlays)}
    whole = fixed | {name for overlay in overlays for name in overlay_settings(overlay)}
    for option in extra:
        name = option.removeprefix("--").partition("=")[0]
        check(option.startswith("--") and "=" in option, f"{option}: write options of warm as --name=value")
        check(
            name not in ENDING_OPTIONS,
            f"--{name}: would end trainings before they are done; stop the runner at any time instead, and start it "
            "again: it goes on",
        )
        check(
            name != "scores.extractors",
            "--scores.extractors: which score is shown depends on it; name both in the data set's file in "
            "experiments/data, under set and score",
        )
        check(
            not any(f"{name}.".startswith(f"{other}.") for other in fixed)
            and not any(f"{other}.".startswith(f"{name}.") for other in whole),
            f"--{name}: is what the cells of this experiment differ in, or what their files say; choose cells with "
            "--only, samples with --num_images and --rounds, seeds with --seeds",
        )
