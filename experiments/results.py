"""What was found, a line for every value of every cell."""

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

from experiments.cells import Cell
from experiments.measures import Measure, Reading
from experiments.runner import Job
from warm_lightning.records import write_file

FILE = "calls.json"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    return str(timedelta(seconds=round(seconds)))


@dataclass(frozen=True)
class Calls:
    """The calls of one folder of results."""

    folder: Path

    def known(self) -> list[dict[str, Any]]:
        """All so far."""
        path = self.folder / FILE
        return list(json.loads(path.read_text())) if path.exists() else []

    @contextmanager
    def noted(self, command: str, works: bool) -> Iterator[None]:
        """Note a call that works, before and after: one that is killed has no length."""
        if not works:
            yield
            return
        earlier = self.known()
        call: dict[str, Any] = {"command": command, "began": datetime.now().strftime("%Y-%m-%d %H:%M")}
        call |= {"seconds": None, "ended": False}
        self.write([*earlier, call])
        began = perf_counter()
        try:
            yield
            call["ended"] = True
        finally:
            self.write([*earlier, {**call, "seconds": round(perf_counter() - began, 1)}])

    def write(self, calls: list[dict[str, Any]]) -> None:
        """Keep them."""
        write_file(self.folder / FILE, json.dumps(calls, indent=1).encode())

    def lines(self) -> list[str]:
        """In words, for reports."""
        said = []
        for call in self.known():
            time = "" if call["seconds"] is None else f" after {duration(call['seconds'])}"
            end = f"ended{time}" if call["ended"] else f"stopped{time}" if time else "killed"
            said.append(f"`{call['command']}` of {call['began']}: {end}")
        return said


MODELS = ("nfe", "num_images", "sample_seeds", "weights", "images_seen", "nonfinite_images")
"""Columns that are known of a model's samples only."""
NOT_A_MODEL: dict[str, Any] = dict.fromkeys(MODELS)
ABOUT = (*MODELS, "device", "precision")
NOTED = ("machine", "git_commit", "training_machine", "training_git_commit", "package_version", "torch_version")


@dataclass(frozen=True)
class Result:
    """A cell that was measured.

    Attributes:
        cell: which.
        measure: what was done.
        folder: with all that the measure wrote.
        reading: what was found.
        seconds: that the training and the measure took.
        noted: what the job's note says of the machine and the code.
    """

    cell: Cell
    measure: Measure
    folder: Path
    reading: Reading
    seconds: tuple[float, float]
    noted: dict[str, Any]


def collect(cell: Cell, measure: Measure, job: Job, training: Job | None) -> Result:
    """Read what a finished job has written."""
    note, trained = job.note(), training.note() if training else {}
    noted = note | {f"training_{name}": trained.get(name) for name in ("machine", "git_commit")}
    spent = trained.get("seconds", 0.0), note["seconds"]
    return Result(cell, measure, job.folder, measure.read(cell, job.folder), spent, noted)


def rows_of(experiment: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The results as tidy rows, one for each value of each cell.

    A row holds a number in "value" or a word in "text", the labels of the cell under the names of its axes, what the
    value belongs to in "of", and where it comes from.

    Args:
        experiment: name of its file.
        results: of its cells.
    """
    rows = []
    for result in results:
        cell, about = result.cell, result.reading.about
        before = {
            "experiment": experiment,
            "cell": cell.name,
            **cell.labels,
            "data": cell.data,
            "paper_data": "+".join(cell.papers),
            "budget": cell.budget,
            "train_seed": cell.seed,
            "measure": result.measure.name,
        }
        after = {name: about.get(name) for name in ABOUT}
        after |= {"seconds_training": result.seconds[0], "seconds_measuring": result.seconds[1]}
        after |= {name: result.noted.get(name) for name in NOTED}

        reading, subject = result.reading, "the model" if result.measure.trains else "the configuration"
        entries: list[tuple[str, str, float | None, str | None, bool, dict[str, Any]]]
        entries = [(subject, name, value, None, name in reading.shown, {}) for name, value in reading.values.items()]
        entries += [(subject, name, None, word, True, {}) for name, word in reading.words.items()]
        for label, values in reading.yardsticks.items():
            entries += [(label, name, value, None, False, NOT_A_MODEL) for name, value in values.items()]
        for of, name, value, text, shown, known in entries:
            own = {"of": of, "score": name, "value": value, "text": text, "shown": shown}
            rows.append(before | own | after | known)
    return rows


def save_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as a CSV file; floats have all their digits, so that `read_rows` gives the same numbers back.

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
        A dictionary a row, all of strings but for "value", a float or None, and "shown", a bool.
    """
    with path.open(encoding="utf-8", newline="") as file:
        return [
            row | {"value": float(row["value"]) if row["value"] else None, "shown": row["shown"] == "True"}
            for row in csv.DictReader(file)
        ]


@dataclass(frozen=True)
class Group:
    """Cells that differ in their training seed only.

    Attributes:
        results: theirs, of one measure.
    """

    results: tuple[Result, ...]

    @property
    def cell(self) -> Cell:
        """The first of them."""
        return self.results[0].cell

    @property
    def about(self) -> dict[str, Any]:
        """What the values of the first are of."""
        return self.results[0].reading.about

    @property
    def words(self) -> dict[str, str]:
        """What the first says in words."""
        return self.results[0].reading.words

    @property
    def shown(self) -> list[str]:
        """Names of the values that tables show."""
        return self.results[0].reading.shown

    def values(self, name: str) -> list[float]:
        """Of all seeds."""
        return [result.reading.values[name] for result in self.results if name in result.reading.values]

    @property
    def trainings(self) -> int:
        """How many seeds there are."""
        return len(self.results)

    def mean(self, name: str) -> float:
        """Over training seeds; NaN where there is no such value."""
        values = self.values(name)
        return mean(values) if values else nan

    def spread(self, name: str) -> float | None:
        """Standard deviation over training seeds, where there are several."""
        values = self.values(name)
        return stdev(values) if len(values) > 1 else None


def said_trainings(groups: Sequence[Group]) -> str:
    """How many trainings means are of, such as 3, or 1 to 3 where some are missing."""
    counts = sorted({group.trainings for group in groups})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def groups(results: Sequence[Result]) -> list[Group]:
    """Results of one measure, those of one setting together."""
    found: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        found.setdefault((result.cell.data, *result.cell.labels.items()), []).append(result)
    return [Group(tuple(same)) for same in found.values()]
