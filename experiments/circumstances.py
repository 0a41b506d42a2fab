"""Under which circumstances an experiment's results came about, in plain words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.calls import duration
from experiments.cells import CONDITIONAL, PRECISION, Cell
from experiments.results import Result
from experiments.schema import Experiment, data_set
from warm_lightning.config import as_text


def differences(experiment: Experiment, results: Sequence[Result]) -> list[str]:
    """What was not as in the paper."""
    cells = {result.cell.name: result.cell for result in results}
    trained = any(result.measure.trains for result in results)
    published = bool(experiment.paper)
    lines = [line for cell in cells.values() for line in of_data(cell, trained, published)]
    lines += of_settings(list(cells.values()), published)
    for data in dict.fromkeys(result.cell.data for result in results):
        lines += of_counts([result for result in results if result.cell.data == data])
    if experiment.evaluated:
        lines.append(f"The published numbers: {experiment.evaluated}")
    extra = results[0].cell.extra
    if extra:
        exact = "; samples were drawn in float32" if any(option.startswith(PRECISION) for option in extra) else ""
        lines.append(f"All runs had the options {' '.join(f'`{option}`' for option in extra)}{exact}.")
    return list(dict.fromkeys(lines)) or ["Nothing that the files say: data, model and budget are the paper's."]


def of_counts(results: Sequence[Result]) -> Iterator[str]:
    """How much the models of one data set were trained and how many samples they were measured by."""
    seen = sorted({r.reading.about["images_seen"] for r in results if r.reading.about.get("images_seen")})
    if not seen:
        return
    said = [f"trained on {' or '.join(f'{count:,}' for count in seen)} images"]
    for measure in dict.fromkeys(result.measure.name for result in results):
        mine = [result for result in results if result.measure.name == measure]
        counts = sorted({r.reading.about["num_images"] for r in mine if r.reading.about.get("num_images")})
        rounds = f"{mine[0].cell.scale.rounds} × " if measure == "scores" else ""
        if counts:
            said.append(f"{measure} of {rounds}{' or '.join(f'{count:,}' for count in counts)} images")
    yield f"On {results[0].cell.data_set.title}: {', '.join(said)}."


def of_data(cell: Cell, trained: bool, published: bool) -> Iterator[str]:
    """What was not as in the paper with a cell's data set and budget."""
    for paper in cell.papers:
        if cell.data != paper:
            yield f"The data are {cell.data_set.title}; the paper's are {data_set(paper).title}."
        elif cell.budget != "paper" and published:
            yield f"The budget is “{cell.budget}”, not the paper's."
        if cell.scale.differs and trained:
            yield f"This means {cell.scale.differs}."


def of_settings(cells: Sequence[Cell], published: bool) -> Iterator[str]:
    """Settings that cells have because of their data set or budget, and first those that all have."""
    own = {cell.title: because(cell, published) for cell in cells}
    first = next(iter(own.values()))
    shared = {name: v for name, v in first.items() if all(here.get(name, ...) == v for here in own.values())}
    if shared and len(own) > 1:
        yield f"All: {said(shared)}."
        own = {title: {n: v for n, v in here.items() if n not in shared} for title, here in own.items()}
    for title, here in own.items():
        if here:
            yield f"{title}: {said(here)}."


def because(cell: Cell, published: bool) -> dict[str, Any]:
    """Those of one cell; the settings of a published table are the paper's own."""
    if published and cell.data in cell.papers and cell.budget == "paper":
        return {}
    here = cell.point.for_data.get(cell.data.removesuffix(CONDITIONAL), {})
    return here | ({} if cell.budget == "paper" else cell.point.quick)


def said(settings: Mapping[str, Any]) -> str:
    """Settings in words."""
    return ", ".join(f"`{name}` {as_text(value)}" for name, value in settings.items())


def made(results: Sequence[Result], protocol: Mapping[str, Any]) -> list[str]:
    """How it was made."""
    noted = {
        name: sorted({str(r.noted[key]) for r in results for key in (name, f"training_{name}") if r.noted.get(key)})
        for name in ("machine", "git_commit")
    }
    versions = sorted(
        {f"warm_lightning {r.noted['package_version']}, torch {r.noted['torch_version']}" for r in results}
    )
    trainings = {r.cell.training_name: r.seconds[0] for r in results}
    spent = sum(trainings.values()) + sum(r.seconds[1] for r in results)
    lines = [
        *protocol["calls"],
        f"machine: {', '.join(noted['machine'])}",
        f"commit: {', '.join(noted['git_commit'])} ({'; '.join(versions)})",
        f"training seeds: {', '.join(sorted({str(r.cell.seed) for r in results}))}",
        f"time of all runs, one after the other, without those that were killed: {duration(spent)}",
    ]
    seeds = sorted({str(r.reading.about["sample_seeds"]) for r in results if r.reading.about.get("sample_seeds")})
    weights = sorted({str(r.reading.about["weights"]) for r in results if r.reading.about.get("weights")})
    return [*lines, *([f"seeds of samples: {', '.join(seeds)}; weights: {', '.join(weights)}"] if seeds else [])]
