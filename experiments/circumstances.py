"""Under which circumstances an experiment's results came about, in plain words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.cells import Cell
from experiments.jobs import duration
from experiments.results import Result
from experiments.schema import data_set


def differences(results: Sequence[Result]) -> list[str]:
    """What was not as in the paper."""
    cells = {result.cell.data: result.cell for result in results}
    lines = [line for cell in cells.values() for line in of_data(cell, results)]
    if any(result.cell.point.quick for result in results) and results[0].cell.budget != "paper":
        lines.append("Long chains were shortened in sampling (`quick` in the experiment's file).")
    if any(result.measure.trains for result in results):
        lines.append("Networks and recipes are those of this suite, for all systems alike; published numbers are not.")
    return list(dict.fromkeys(lines)) or ["Nothing that the files say: data, model and budget are the paper's."]


def of_data(cell: Cell, results: Sequence[Result]) -> Iterator[str]:
    """What was not as in the paper with one data set."""
    for paper in cell.papers:
        target = data_set(paper)
        if cell.data != paper:
            yield f"The data are {cell.data_set.title}; the paper's are {target.title}."
        elif cell.budget != "paper":
            yield f"The budget is “{cell.budget}”, not the paper's."
        if cell.scale.differs:
            yield f"This means {cell.scale.differs}."
        scored = [r for r in results if r.cell.data == cell.data and r.measure.name == "scores"]
        if scored:
            seen = sorted({r.reading.about["images_seen"] for r in scored})
            theirs = target.budgets["paper"]
            yield (
                f"Trained on {' or '.join(f'{count:,}' for count in seen)} images; scored by {cell.scale.rounds} × "
                f"{cell.scale.images:,} samples, where the paper takes the best of {theirs.rounds} × {theirs.images:,}."
            )


def made(results: Sequence[Result], protocol: Mapping[str, Any]) -> list[str]:
    """How it was made."""
    noted = {name: sorted({str(r.noted.get(name)) for r in results}) for name in ("device", "git_commit")}
    versions = sorted(
        {f"warm_lightning {r.noted['package_version']}, torch {r.noted['torch_version']}" for r in results}
    )
    trainings = {r.cell.training_name: r.seconds[0] for r in results}
    spent = sum(trainings.values()) + sum(r.seconds[1] for r in results)
    lines = [
        f"command: `{protocol['command']}`",
        f"device: {', '.join(noted['device'])}",
        f"commit: {', '.join(noted['git_commit'])} ({'; '.join(versions)})",
        f"training seeds: {', '.join(sorted({str(r.cell.seed) for r in results}))}",
        f"time of all runs, one after the other: {duration(spent)}; of this call: {duration(protocol['seconds'])}",
    ]
    seeds = sorted({str(r.reading.about["sample_seeds"]) for r in results if r.reading.about.get("sample_seeds")})
    weights = sorted({str(r.reading.about["weights"]) for r in results if r.reading.about.get("weights")})
    return [*lines, *([f"seeds of samples: {', '.join(seeds)}; weights: {', '.join(weights)}"] if seeds else [])]
