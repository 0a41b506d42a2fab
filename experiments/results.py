"""Results of an experiment: read from finished jobs, kept as results.csv, and averaged over training seeds."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import nan
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

from warm_lightning.errors import UserError
from warm_lightning.records import write_file

from .cells import Cell
from .measures import Measure, Reading
from .runner import Job

# ---------------------------------------------------------------------- one cell


@dataclass(frozen=True)
class Result:
    """The result of one measure on one cell.

    Attributes:
        cell: which cell was measured.
        measure: what was done with it.
        folder: the folder that the measure wrote.
        reading: the values.
        seconds: time of the training and of the measure.
        provenance: machine, commit and versions of both, from the notes of their jobs.
    """

    cell: Cell
    measure: Measure
    folder: Path
    reading: Reading
    seconds: tuple[float, float]
    provenance: dict[str, Any]


def collect(cell: Cell, measure: Measure, job: Job, training: Job | None) -> Result:
    """Read the result of a finished job, and of the training before it where there was one.

    Raises:
        UserError: it cannot be read.
    """
    note, training_note = job.note(), training.note() if training else {}
    provenance = note | {f"training_{name}": training_note.get(name) for name in ("machine", "git_commit")}
    seconds = training_note.get("seconds", 0.0), note["seconds"]
    try:
        reading = measure.read(cell, job.folder)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{job.folder / job.result}: not what was written there: remove it, and run again") from error
    return Result(cell, measure, job.folder, reading, seconds, provenance)


# ---------------------------------------------------------------------- results.csv

OF_SAMPLES = ("nfe", "num_images", "sample_seeds", "weights", "images_seen", "nonfinite_images")
"""Columns that say how a model's samples came about; they are empty for the values that scores are compared with."""
PROTOCOL = (*OF_SAMPLES, "device", "precision")
PROVENANCE = ("machine", "git_commit", "training_machine", "training_git_commit", "package_version", "torch_version")


def rows_of(experiment: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The results as tidy rows, one for each value of each cell.

    A row has the labels of the cell under the names of its axes, the number in "value" or the word in "text", and in
    "of" what the value is of: the model, the configuration, or the data that they are compared with. The values of the
    data are in rows of the first cell that has them.

    Args:
        experiment: name of the experiment's file.
        results: of its cells.
    """
    rows, known = [], set()
    for result in results:
        cell, reading = result.cell, result.reading
        before = {
            "experiment": experiment,
            "cell": cell.name,
            **cell.labels,
            "data": cell.data,
            "paper_data": "+".join(cell.paper_data),
            "budget": cell.budget,
            "train_seed": cell.seed,
            "measure": result.measure.name,
        }
        after = {name: reading.protocol.get(name) for name in PROTOCOL}
        after |= {"seconds_training": result.seconds[0], "seconds_measuring": result.seconds[1]}
        after |= {name: result.provenance.get(name) for name in PROVENANCE}
        of = {"of": "the model" if result.measure.needs_model else "the configuration"}
        for name, value in reading.values.items():
            entry = {"score": name, "value": value, "text": None, "shown": name in reading.shown}
            rows.append(before | of | entry | after)
        for name, word in reading.words.items():
            rows.append(before | of | {"score": name, "value": None, "text": word, "shown": True} | after)
        after |= dict.fromkeys(OF_SAMPLES)
        for label, values in reading.references.items():
            for name, value in values.items():
                fact = (cell.data, result.measure.name, label, name, value)
                if fact in known:
                    continue
                known.add(fact)
                entry = {"of": label, "score": name, "value": value, "text": None, "shown": False}
                rows.append(before | entry | after)
    return rows


def save_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as a CSV file; numbers have all their digits, so that `read_rows` finds the same ones.

    Args:
        rows: see `rows_of`.
        path: of the file, whose folder is made if need be.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file that `save_rows` wrote.

    Returns:
        A dictionary for each row, with strings but for "value", a float or None, and "shown", a bool.
    """
    with path.open(encoding="utf-8", newline="") as file:
        return [
            row | {"value": float(row["value"]) if row["value"] else None, "shown": row["shown"] == "True"}
            for row in csv.DictReader(file)
        ]


# ---------------------------------------------------------------------- several training seeds


@dataclass(frozen=True)
class Group:
    """Results of one measure on cells that differ in their training seed only.

    Attributes:
        results: one for each seed.
    """

    results: tuple[Result, ...]

    @property
    def first(self) -> Reading:
        """The reading of the first seed, whose protocol and words hold for all."""
        return self.results[0].reading

    @property
    def cell(self) -> Cell:
        """The cell of the first seed."""
        return self.results[0].cell

    @property
    def trainings(self) -> int:
        """The number of seeds."""
        return len(self.results)

    def values(self, name: str) -> list[float]:
        """The values of a name, of all seeds that have one."""
        return [result.reading.values[name] for result in self.results if name in result.reading.values]

    def mean(self, name: str) -> float:
        """The mean over seeds; NaN where there is no value."""
        values = self.values(name)
        return mean(values) if values else nan

    def spread(self, name: str) -> float | None:
        """The standard deviation over seeds; None where there are fewer than two values."""
        values = self.values(name)
        return stdev(values) if len(values) > 1 else None


def group_by_seed(results: Sequence[Result]) -> list[Group]:
    """Groups of the results of one measure, in the order of their first cells."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault((result.cell.data, *result.cell.labels.items()), []).append(result)
    return [Group(tuple(group)) for group in groups.values()]


def labels_of(groups: Sequence[Group], axis: str) -> list[str]:
    """The labels of an axis in the order of the experiment's file, also where some combinations are not measured."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for group in groups:
        others = tuple(label for name, label in group.cell.labels.items() if name != axis)
        lines.setdefault(others, []).append(group.cell.labels[axis])
    order: list[str] = []
    for line in lines.values():
        place = 0
        for label in line:
            if label not in order:
                order.insert(place, label)
            place = order.index(label) + 1
    return order


def shown_names(groups: Sequence[Group]) -> list[str]:
    """The names of the values that tables show for groups."""
    return list(dict.fromkeys(name for group in groups for name in group.first.shown))


# ---------------------------------------------------------------------- invocations of the runner

INVOCATIONS = "invocations.json"
INVOCATIONS_BEFORE = "calls.json"
"""The name of the file in folders of earlier versions."""


def duration(seconds: float) -> str:
    """Seconds as hours:minutes:seconds."""
    return str(timedelta(seconds=round(seconds)))


@dataclass(frozen=True)
class Invocations:
    """The invocations of the runner that have worked in a folder of results, noted in a file there.

    Attributes:
        folder: with the results.
    """

    folder: Path

    def read(self) -> list[dict[str, Any]]:
        """Read all invocations that were noted, the first one first.

        Raises:
            UserError: the file holds something else.
        """
        for path in (self.folder / INVOCATIONS, self.folder / INVOCATIONS_BEFORE):
            if not path.exists():
                continue
            try:
                invocations = list(json.loads(path.read_text(encoding="utf-8")))
                self.texts(invocations)
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{path}: no list of invocations: remove it") from error
            return invocations
        return []

    @contextmanager
    def noted(self, command: str, has_work: bool) -> Iterator[None]:
        """Note an invocation when it begins and when it ends; one that is killed keeps the note of its beginning.

        Args:
            command: as the user typed it.
            has_work: whether there is anything to run; one that finds all done is not noted.
        """
        if not has_work:
            yield
            return
        earlier = self.read()
        invocation: dict[str, Any] = {"command": command, "began": datetime.now().strftime("%Y-%m-%d %H:%M")}
        invocation |= {"seconds": None, "ended": False}
        self.write([*earlier, invocation])
        began = perf_counter()
        try:
            yield
            invocation["ended"] = True
        finally:
            self.write([*earlier, {**invocation, "seconds": round(perf_counter() - began, 1)}])

    def write(self, invocations: list[dict[str, Any]]) -> None:
        """Write the file anew."""
        write_file(self.folder / INVOCATIONS, json.dumps(invocations, indent=1).encode())

    def lines(self) -> list[str]:
        """The invocations in words, for reports."""
        return self.texts(self.read())

    def texts(self, invocations: Sequence[Mapping[str, Any]]) -> list[str]:
        """Invocations in words."""
        lines = []
        for invocation in invocations:
            time = "" if invocation["seconds"] is None else f" after {duration(invocation['seconds'])}"
            end = f"ended{time}" if invocation["ended"] else f"stopped{time}" if time else "killed"
            lines.append(f"`{invocation['command']}` of {invocation['began']}: {end}")
        return lines
