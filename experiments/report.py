"""A report of an experiment: Markdown with pictures beside it, and one HTML page that needs nothing else."""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from math import floor, isnan, log10, nan
from pathlib import Path
from typing import Any

import markdown

from experiments.cells import CONDITIONAL, PRECISION, Cell, slug
from experiments.experiment import Experiment, Plot, data_set
from experiments.figures import png
from experiments.measures import Measure
from experiments.plots import scores, yardsticks
from experiments.results import Group, Result, duration, groups
from warm_lightning.config import as_text
from warm_lightning.records import write_file


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


STYLE = (Path(__file__).parent / "report.css").read_text()
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body><main>
{body}
</main></body></html>
"""
Table = tuple[list[str], list[list[str]]]


def number(value: float) -> str:
    """Four digits, or three decimals where that is more: no score here is good for as many."""
    if isnan(value):
        return "–"
    return f"{value:.3f}".rstrip("0").rstrip(".") if 10 <= abs(value) < 1e6 else f"{value:.4g}"


def render(table: Table, left: int = 1) -> str:
    """A Markdown table whose first columns are words and the others numbers."""
    header, rows = table
    marks = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, marks, *rows])


def published(experiment: Experiment, cell: Cell) -> dict[str, str]:
    """The paper's numbers for a cell, by a name that says whose they are."""
    found = {}
    for entry in experiment.paper:
        names = {axis: str(label) for axis, label in entry.items() if axis in experiment.axes}
        if entry["data"] in cell.papers and all(cell.labels[axis] == label for axis, label in names.items()):
            for name, value in entry.items():
                if name != "data" and name not in experiment.axes:
                    found[f"paper: {name}, {entry['data']}"] = str(value)
    return found


def long_table(experiment: Experiment, found: Sequence[Group]) -> Table:
    """A line for each combination of values."""
    beside = [published(experiment, group.cell) for group in found]
    theirs = list(dict.fromkeys(name for entry in beside for name in entry))
    shown = list(dict.fromkeys(name for group in found for name in group.shown))
    spread = " ± std over trainings" if any(group.trainings > 1 for group in found) else ""
    uneven = len({group.trainings for group in found}) > 1
    counted = any("num_images" in group.about for group in found)
    words = list(dict.fromkeys(name for group in found for name in group.words))
    header = [*experiment.axes, *(f"measured: {name}{spread}" for name in shown), *words, "NFE"]
    rows = []
    for group, entry in zip(found, beside, strict=True):
        own = [cell_text(group, name) for name in shown]
        own += [group.words.get(name, "–") for name in words] + [str(group.about.get("nfe", "–"))]
        own += [f"{group.about['num_images']:,}"] if counted else []
        own += [str(group.trainings)] if uneven else []
        rows.append([*group.cell.labels.values(), *own, *(entry.get(name, "–") for name in theirs)])
    header += [*(["images"] if counted else []), *(["trainings"] if uneven else []), *theirs]
    return header, [*rows, *beside_rows(experiment, found, shown, len(header))]


def beside_rows(experiment: Experiment, found: Sequence[Group], shown: Sequence[str], width: int) -> list[list[str]]:
    """What the data and other things get, a line each."""
    values: dict[str, dict[str, float]] = {}
    for name in shown if experiment.axes else ():  # without, there is no column for what it is of
        for label, value, _ in yardsticks(found, name):
            values.setdefault(label, {})[name] = value
    rows = [
        [f"*{label}*", *["–"] * (len(experiment.axes) - 1), *(number(own.get(name, nan)) for name in shown)]
        for label, own in values.items()
    ]
    return [row + ["–"] * (width - len(row)) for row in rows]


def pivot(plot: Plot, found: Sequence[Group], name: str) -> Table:
    """One value with a line for each value of one axis and a column for each of another."""
    down = str(plot.lines)
    columns = list(dict.fromkeys(group.cell.labels[plot.x] for group in found))
    values = {(g.cell.labels[down], g.cell.labels[plot.x]): g for g in found}
    rows = []
    for line in dict.fromkeys(group.cell.labels[down] for group in found):
        here = [values.get((line, column)) for column in columns]
        rows.append([line, *(cell_text(group, name) if group else "–" for group in here)])
    return [f"measured: {name}, {down} \\ {plot.x}", *columns], rows


def cell_text(group: Group, name: str) -> str:
    """A mean, with its spread where there is one: two digits of that, and the mean to the same decimals."""
    mean, spread = group.mean(name), group.spread(name)
    if spread is None or not 1e-4 <= spread < 1e4:
        return number(mean) + (f" ± {number(spread)}" if spread is not None else "")
    decimals = max(0, 1 - floor(log10(spread)))
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"


def compared(found: Sequence[Group], name: str) -> list[str]:
    """What else gets which score, to read the others by."""
    known = [f"{label} {number(value)}" for label, value, _ in yardsticks(found, name)]
    return [f"For comparison: {'; '.join(known)}."] if known else []


def published_table(experiment: Experiment) -> Table:
    """All of the paper's numbers."""
    header = list(dict.fromkeys(name for entry in experiment.paper for name in entry))
    return [f"paper: {name}" for name in header], [[str(e.get(name, "–")) for name in header] for e in experiment.paper]


def compose(
    experiment: Experiment, results: Sequence[Result], failed: Sequence[str], protocol: Mapping[str, Any]
) -> tuple[str, dict[str, bytes]]:
    """The report in Markdown, and its pictures by the names of their files."""
    pictures: dict[str, bytes] = {}
    parts = [f"# {experiment.title}", f"*{experiment.source}.* {experiment.about}".strip()]
    if failed:
        parts += ["**Not complete:**", "\n".join(f"* {reason}" for reason in failed)]
    if len(results) < protocol["of"]:
        parts.append(
            f"**{len(results)} of {protocol['of']} measurements are done; the others are not in this report.**"
        )
    parts += [
        f"**{count:,} images of {result.cell.title} ({result.cell.data}, seed {result.cell.seed}) are no numbers.**"
        for result in results
        if (count := result.reading.about.get("nonfinite_images"))
    ]
    for measure in experiment.measures:
        mine = [result for result in results if result.measure.name == measure.name]
        for data in dict.fromkeys(result.cell.data for result in mine):
            found = groups([result for result in mine if result.cell.data == data])
            text, shown = section(experiment, measure, found)
            parts += text
            pictures |= shown
    if experiment.paper and experiment.plot and experiment.plot.lines:
        parts += ["## Published numbers", render(published_table(experiment))]
    parts += ["## What differs from the paper's setting", "\n".join(f"* {d}" for d in differences(experiment, results))]
    parts += ["## How it was made", "\n".join(f"* {line}" for line in made(results, protocol))]
    return "\n\n".join(parts) + "\n", pictures


def section(experiment: Experiment, measure: Measure, found: Sequence[Group]) -> tuple[list[str], dict[str, bytes]]:
    """What one measure found on one data set, and its pictures."""
    cell = found[0].cell
    title = f"{type(measure).__name__} on {cell.data_set.title}"
    parts, pictures = [f"## {title}"], {}
    plot = experiment.plot if measure.name == experiment.measures[0].name else None
    shown = list(dict.fromkeys(name for group in found for name in group.shown))
    if shown and not (plot and plot.lines):
        parts.append(render(long_table(experiment, found), len(experiment.axes)))
    for name in shown if plot and plot.lines else shown[:1] if plot else ():
        assert plot
        if plot.lines:
            parts += [render(pivot(plot, found, name)), *compared(found, name)]
        pictures[f"{name} on {cell.data}"] = png(scores(found, plot, name))
    several = measure.pictures([(group.cell, group.results[0].folder) for group in found])
    pictures |= {f"{name} ({cell.data})": content for name, content in several.items()}
    files = {f"{slug(name).lower()}.png": content for name, content in pictures.items()}
    return [*parts, *(f"![{name}]({file})" for name, file in zip(pictures, files, strict=True))], files


def page(text: str, pictures: Mapping[str, bytes]) -> str:
    """Markdown as one HTML page with its pictures in it."""
    body = markdown.markdown(text, extensions=["tables", "sane_lists"])
    for name, content in pictures.items():
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        body = body.replace(f'src="{name}"', f'src="{source}"')
    body = body.replace("<p><img", '<p class="wide"><img')
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    title = re.sub(r"<[^>]*>", "", body.partition("</h1>")[0])
    return PAGE.format(title=title, style=STYLE, body=body)


def write(
    experiment: Experiment, results: Sequence[Result], failed: Sequence[str], protocol: Mapping[str, Any], out: Path
) -> str:
    """Write report.md, its pictures and report.html into a folder; gives the Markdown."""
    text, pictures = compose(experiment, results, failed, protocol)
    for name, content in pictures.items():
        write_file(out / name, content)
    write_file(out / "report.md", text.encode())
    write_file(out / "report.html", page(text, pictures).encode())
    return text
