"""The cells of an experiment: what to train, and what to do with it."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from experiments.jobs import fingerprint
from experiments.measures import QUIET
from experiments.resolved import SAMPLING, around, images_file, measuring, resolved, training
from experiments.schema import DATA, Budget, DataSet, Experiment, Point, Scale, data_set
from warm_lightning.config import as_text
from warm_lightning.errors import check

CONDITIONAL = "_cond"
OWN = ("config", "ckpt_path", "model.seed", "scores.num_images", "scores.rounds", "trainer.default_root_dir")
"""Options of `warm` that the runner gives itself."""
PRECISION = "--trainer.precision="
ENDS = ("trainer.max_time", "trainer.max_steps", "trainer.max_epochs")
"""Options with which a training would end early, and be taken for done."""
OUTPUTS = ("--trainer.default_root_dir=", "--ckpt_path=", "--outdir=", "--grid=")
"""Options that say where things are, and nothing of what they are."""
SPECTRUM = re.compile("^(--spectrum=).*/")
"""The name of this file says what it is of."""


def slug(*words: object) -> str:
    """Words as the name of a folder."""
    return "-".join(re.sub(r"[^\w.]+", "-", str(word)).strip("-") for word in words if str(word))


@dataclass(frozen=True)
class Cell:
    """One combination of values, on one data set, with one training seed.

    Attributes:
        labels: of its values, by axis.
        data: name of the data set.
        data_set: what is known of it.
        scale: what the budget means there.
        budget: by its name.
        papers: the paper's data sets that it stands for; its own where nothing was replaced.
        seed: training seed.
        point: all that its values and the experiment set.
        extra: further options for all calls of `warm`, as --name=value.
    """

    labels: dict[str, str]
    data: str
    data_set: DataSet
    scale: Scale
    budget: Budget
    papers: tuple[str, ...]
    seed: int
    point: Point
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its folder."""
        return slug(self.data, *(f"{axis}-{label}" for axis, label in self.labels.items()), f"seed{self.seed}")

    @property
    def title(self) -> str:
        """In words, without its seed."""
        words = (label if axis == "system" else f"{axis} {label}" for axis, label in self.labels.items())
        return ", ".join(words) or self.data_set.title

    @property
    def training(self) -> list[str]:
        """Options that say which model is trained how."""
        here = self.point.for_data.get(self.data.removesuffix(CONDITIONAL), {})
        quick = {} if self.budget == "paper" else self.point.quick
        settings = self.scale.set | self.point.set | here | quick | {"model.seed": self.seed}
        if self.budget == "smoke":
            settings |= self.scale.set  # whatever an experiment needs, it must be quick
        return [*configs(self.scale.config, self.point.overlays), *options(settings), *self.extra]

    def trained(self) -> str:
        """All that the trained weights depend on, as JSON."""
        return json.dumps(training(self.training), sort_keys=True)

    @property
    def training_name(self) -> str:
        """Of the training's folder: the same for all cells, of all experiments, whose weights are the same."""
        digest = hashlib.sha256(self.trained().encode()).hexdigest()[:10]
        process = training(self.training)["model"]["process"]["class_path"].rpartition(".")[2]
        return slug(self.data, process, f"seed{self.seed}", digest)

    @property
    def sampling(self) -> list[str]:
        """Options of `warm` for whatever is done with the trained model, in float32 however it was trained."""
        files = configs(self.scale.config, [*self.point.overlays, *self.point.sample_overlays])
        others = [option for option in self.training if not option.startswith(("--config=", PRECISION))]
        return [*files, *others, *options(self.point.sample)]

    @property
    def images(self) -> str:
        """Which images it is of, as JSON."""
        file = self.images_file()
        here = around(resolved(self.sampling))["data"]
        return json.dumps([here, fingerprint(file) if file else None], sort_keys=True)

    def images_file(self) -> Path | None:
        """The file with its images, where they are in one."""
        return images_file(self.training)

    def meaning(self, arguments: tuple[str, ...], needs_model: bool) -> str:
        """All that a call of `warm` on it depends on, as JSON: its configuration, and what else the call says."""
        known = {*self.sampling, QUIET}
        own = [SPECTRUM.sub(r"\1", a) for a in arguments if a not in known and not a.startswith(OUTPUTS)]
        model = self.training_name if needs_model else None
        depends = measuring(self.sampling, scored=arguments[:1] == ("test",))
        return json.dumps({"call": own, "training": model, **depends}, sort_keys=True)

    @property
    def overrides(self) -> list[str]:
        """The same for commands that need no configuration but the checkpoint's: settings of the model.

        The checkpoint may be of a training that was to be sampled in another way.
        """
        before, after = (resolved(options)["model"] for options in (self.training, self.sampling))
        found = {name: value for name, value in after.items() if name in SAMPLING or before[name] != value}
        return [f"--override+={name}={as_text(value)}" for name, value in found.items()]


def configs(base: str, overlays: Sequence[str]) -> list[str]:
    """Files as options."""
    return [f"--config={path}" for path in (*([base] if base else []), *(f"configs/{o}.yaml" for o in overlays))]


def options(settings: dict[str, Any]) -> list[str]:
    """Settings as options."""
    return [f"--{name}={as_text(value)}" for name, value in settings.items()]


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
