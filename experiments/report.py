"""The report of an experiment: Markdown with pictures beside it, and a single HTML page that needs nothing else."""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from math import floor, isnan, log10, nan
from pathlib import Path
from typing import Any

import markdown
from matplotlib.figure import Figure

from warm_lightning.analysis.figures import save_figure
from warm_lightning.config import as_text
from warm_lightning.records import markdown_table, write_file

from .cells import PRECISION, Cell, slug
from .experiment import Experiment, Plot, data_set
from .measures import Measure
from .paired import paired_pivot, paired_table, panels, place_of
from .plots import references, score_figure
from .results import Group, Result, duration, group_by_seed, labels_of, shown_names

Pictures = dict[str, Figure | bytes]
"""Figures, or contents of PNG files, by their titles or the names of their files."""
Table = tuple[list[str], list[list[str]]]
"""Header and rows."""


def write(
    experiment: Experiment,
    results: Sequence[Result],
    failures: Sequence[str],
    invocations: Sequence[str],
    expected: int,
    out: Path,
) -> str:
    """Write report.md, its pictures and report.html into a folder.

    Args:
        experiment: whose report it is.
        results: of all cells that are done.
        failures: reasons why others are not.
        invocations: a line on each invocation of the runner.
        expected: the number of measurements of the experiment.
        out: the folder.

    Returns:
        The Markdown.
    """
    text, pictures = compose(experiment, results, failures, invocations, expected)
    for name, picture in pictures.items():
        if isinstance(picture, bytes):
            write_file(out / name, picture)
        else:
            save_figure(picture, out / name)
    write_file(out / "report.md", text.encode())
    write_file(out / "report.html", html_page(text, {name: (out / name).read_bytes() for name in pictures}).encode())
    return text


def compose(
    experiment: Experiment,
    results: Sequence[Result],
    failures: Sequence[str],
    invocations: Sequence[str],
    expected: int,
) -> tuple[str, Pictures]:
    """The report in Markdown, and its pictures by the names of their files; see `write`."""
    pictures: Pictures = {}
    parts = [f"# {experiment.title}", f"*{experiment.source}.* {experiment.about}".strip()]
    if failures:
        parts += ["**Not complete:**", bullets(failures)]
    if len(results) < expected:
        parts.append(f"**{len(results)} of {expected} measurements are done; the others are not in this report.**")
    parts += [
        f"**{count:,} images of {result.cell.title} ({result.cell.data}, seed {result.cell.seed}) have NaN or infinite "
        "pixels.**"
        for result in results
        if (count := result.reading.protocol.get("nonfinite_images"))
    ]
    for measure in experiment.measures:
        of_measure = [result for result in results if result.measure.name == measure.name]
        for data in dict.fromkeys(result.cell.data for result in of_measure):
            groups = group_by_seed([result for result in of_measure if result.cell.data == data])
            section_parts, section_pictures = section(experiment, measure, groups)
            parts += section_parts
            pictures |= section_pictures
    if experiment.published and experiment.plot and experiment.plot.lines:
        parts += ["## Published numbers", markdown_table(*published_table(experiment))]
    parts += ["## What differs from the paper's setting", bullets(differences(experiment, results))]
    parts += ["## How it was made", bullets(provenance_lines(results, invocations))]
    return "\n\n".join(parts) + "\n", pictures


def bullets(lines: Sequence[str]) -> str:
    """A list in Markdown."""
    return "\n".join(f"* {line}" for line in lines)


def section(experiment: Experiment, measure: Measure, groups: Sequence[Group]) -> tuple[list[str], Pictures]:
    """The parts on one measure on one data set, and its pictures by the names of their files."""
    cell, shown = groups[0].cell, shown_names(groups)
    parts: list[str] = [f"## {type(measure).__name__} on {cell.data_set.title}"]
    pictures: Pictures = {}
    plot = experiment.plot
    if plot and plot.lines:
        plotted = [name for name in shown if any(name in group.first.meanings for group in groups)] or shown
        for panel, members in panels(plot, groups).items():
            parts += [f"### {panel}"] if panel else []
            for name in shown:
                parts += [markdown_table(*pivot_table(plot, members, name)), *comparison(members, name)]
                if name not in plotted:
                    continue
                parts += paired_pivot(plot, members, name)
                if plot.compared_with:
                    ordered = sorted(members, key=lambda group: place_of(group, plot) != plot.compared_with)
                    parts += paired_pivot(Plot(plot.lines, plot.x), ordered, name)
                title = ", ".join(filter(None, (f"{name} on {cell.data}", panel)))
                pictures[title] = score_figure(members, plot, name)
    elif shown:
        parts.append(markdown_table(*long_table(experiment, groups), words=len(experiment.axes)))
        parts += [part for name in shown for part in paired_table(groups, name)]
        if plot:
            pictures[f"{shown[0]} on {cell.data}"] = score_figure(groups, plot, shown[0])
    over_cells = measure.pictures([(group.cell, group.results[0].folder) for group in groups])
    pictures |= {f"{title} ({cell.data})": picture for title, picture in over_cells.items()}
    files = {f"{slug(title).lower()}.png": picture for title, picture in pictures.items()}
    return [*parts, *(f"![{title}]({file})" for title, file in zip(pictures, files, strict=True))], files


# ---------------------------------------------------------------------- tables


def long_table(experiment: Experiment, groups: Sequence[Group]) -> Table:
    """A table with a row for each combination of labels, measured values first and published ones last."""
    published = [published_numbers(experiment, group.cell) for group in groups]
    published_names = list(dict.fromkeys(name for numbers in published for name in numbers))
    shown = shown_names(groups)
    words = list(dict.fromkeys(name for group in groups for name in group.first.words))
    spread = " ± std over trainings" if any(group.trainings > 1 for group in groups) else ""
    has_images = any("num_images" in group.first.protocol for group in groups)
    has_trainings = len({group.trainings for group in groups}) > 1
    header = [*experiment.axes, *(f"measured: {name}{spread}" for name in shown), *words, "NFE"]
    header += [*(["images"] if has_images else []), *(["trainings"] if has_trainings else []), *published_names]
    rows = []
    for group, numbers in zip(groups, published, strict=True):
        row = [*group.cell.labels.values(), *(cell_text(group, name) for name in shown)]
        row += [group.first.words.get(name, "–") for name in words]
        row += [str(group.first.protocol.get("nfe", "–"))]
        row += [f"{group.first.protocol['num_images']:,}"] if has_images else []
        row += [str(group.trainings)] if has_trainings else []
        rows.append([*row, *(numbers.get(name, "–") for name in published_names)])
    return header, [*rows, *reference_rows(experiment, groups, shown, len(header))]


def reference_rows(
    experiment: Experiment, groups: Sequence[Group], shown: Sequence[str], width: int
) -> list[list[str]]:
    """Rows of the values that scores are compared with; none where no column could hold their labels."""
    values: dict[str, dict[str, float]] = {}
    for name in shown if experiment.axes else ():
        for label, value, _ in references(groups, name):
            values.setdefault(label, {})[name] = value
    rows = [
        [f"*{label}*", *["–"] * (len(experiment.axes) - 1), *(number(of_label.get(name, nan)) for name in shown)]
        for label, of_label in values.items()
    ]
    return [row + ["–"] * (width - len(row)) for row in rows]


def pivot_table(plot: Plot, groups: Sequence[Group], name: str) -> Table:
    """A table of one value, with a row for each label of one axis and a column for each of another."""
    down = str(plot.lines)
    columns = labels_of(groups, plot.x)
    by_labels = {(group.cell.labels[down], group.cell.labels[plot.x]): group for group in groups}
    rows = []
    for line in dict.fromkeys(group.cell.labels[down] for group in groups):
        of_line = [by_labels.get((line, column)) for column in columns]
        rows.append([line, *(cell_text(group, name) if group else "–" for group in of_line)])
    return [f"measured: {name}, {down} \\ {plot.x}", *columns], rows


def comparison(groups: Sequence[Group], name: str) -> list[str]:
    """A line with the values that a score is compared with, if there are any."""
    values = [f"{label} {number(value)}" for label, value, _ in references(groups, name)]
    return [f"For comparison: {'; '.join(values)}."] if values else []


def published_table(experiment: Experiment) -> Table:
    """A table of all the paper's numbers."""
    header = list(dict.fromkeys(name for entry in experiment.published for name in entry))
    rows = [[str(entry.get(name, "–")) for name in header] for entry in experiment.published]
    return [f"paper: {name}" for name in header], rows


def published_numbers(experiment: Experiment, cell: Cell) -> dict[str, str]:
    """The paper's numbers for a cell, by a name that says that they are the paper's."""
    numbers = {}
    for entry in experiment.published:
        labels = {axis: str(label) for axis, label in entry.items() if axis in experiment.axes}
        if entry["data"] in cell.paper_data and labels.items() <= cell.labels.items():
            for name, value in entry.items():
                if name != "data" and name not in experiment.axes:
                    numbers[f"paper: {name}, {entry['data']}"] = str(value)
    return numbers


def cell_text(group: Group, name: str) -> str:
    """A mean with its spread, where there is one: two digits of the spread, and the mean to the same decimals."""
    mean, spread = group.mean(name), group.spread(name)
    if spread is None or not 1e-4 <= spread < 1e4:
        return number(mean) + (f" ± {number(spread)}" if spread is not None else "")
    decimals = max(0, 1 - floor(log10(spread)))
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"


def number(value: float) -> str:
    """A number with four significant digits, and with three decimals from 10 to 10⁶; a dash for NaN."""
    if isnan(value):
        return "–"
    return f"{value:.3f}".rstrip("0").rstrip(".") if 10 <= abs(value) < 1e6 else f"{value:.4g}"


# ---------------------------------------------------------------------- differences and provenance


def differences(experiment: Experiment, results: Sequence[Result]) -> list[str]:
    """Lines on how data, models and budgets differ from the paper's."""
    cells = {result.cell.name: result.cell for result in results}
    needs_model = any(result.measure.needs_model for result in results)
    published = bool(experiment.published)
    lines = [line for cell in cells.values() for line in data_differences(cell, needs_model, published)]
    lines += setting_differences(list(cells.values()), published)
    for data in dict.fromkeys(result.cell.data for result in results):
        lines += image_counts([result for result in results if result.cell.data == data])
    if experiment.evaluated:
        lines.append(f"The published numbers: {experiment.evaluated}")
    extra = results[0].cell.extra
    if extra:
        exact = "; samples were drawn in float32" if any(option.startswith(PRECISION) for option in extra) else ""
        lines.append(f"All runs had the options {' '.join(f'`{option}`' for option in extra)}{exact}.")
    return list(dict.fromkeys(lines)) or ["Nothing that the files say: data, model and budget are the paper's."]


def data_differences(cell: Cell, needs_model: bool, published: bool) -> Iterator[str]:
    """Lines on how the data set and budget of a cell differ from the paper's."""
    for paper_dataset in cell.paper_data:
        if cell.data != paper_dataset:
            yield f"The data are {cell.data_set.title}; the paper's are {data_set(paper_dataset).title}."
        elif cell.budget != "paper" and published:
            yield f"The budget is “{cell.budget}”, not the paper's."
        if cell.scale.differs and needs_model:
            yield f"This means {cell.scale.differs}."


def setting_differences(cells: Sequence[Cell], published: bool) -> Iterator[str]:
    """Lines on settings that cells have because of their data set or budget, first on those that all have."""
    by_title = {cell.title: unpublished_settings(cell, published) for cell in cells}
    first = next(iter(by_title.values()))
    shared = {n: value for n, value in first.items() if all(of.get(n, ...) == value for of in by_title.values())}
    if shared and len(by_title) > 1:
        yield f"All: {settings_text(shared)}."
        by_title = {title: {n: v for n, v in of.items() if n not in shared} for title, of in by_title.items()}
    for title, settings in by_title.items():
        if settings:
            yield f"{title}: {settings_text(settings)}."


def unpublished_settings(cell: Cell, published: bool) -> dict[str, Any]:
    """The settings that a cell has because of its data set or budget, unless they are those of a published table."""
    if published and cell.data in cell.paper_data and cell.budget == "paper":
        return {}
    return cell.for_data | ({} if cell.budget == "paper" else cell.point.quick)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings in words."""
    return ", ".join(f"`{name}` {as_text(value)}" for name, value in settings.items())


def image_counts(results: Sequence[Result]) -> Iterator[str]:
    """A line on how many images the models of one data set were trained on and are measured by."""
    images_seen = protocol_values(results, "images_seen")
    if not images_seen:
        return
    parts = [f"trained on {' or '.join(f'{count:,}' for count in images_seen)} images"]
    for measure in dict.fromkeys(result.measure.name for result in results):
        of_measure = [result for result in results if result.measure.name == measure]
        counts = protocol_values(of_measure, "num_images")
        rounds = f"{of_measure[0].cell.scale.rounds} × " if measure == "scores" else ""
        if counts:
            parts.append(f"{measure} of {rounds}{' or '.join(f'{count:,}' for count in counts)} images")
    yield f"On {results[0].cell.data_set.title}: {', '.join(parts)}."


def provenance_lines(results: Sequence[Result], invocations: Sequence[str]) -> list[str]:
    """Lines on invocations, machines, commits, seeds and time."""

    def known(*names: str) -> str:
        return ", ".join(sorted({str(r.provenance[name]) for r in results for name in names if r.provenance.get(name)}))

    versions = sorted(
        {f"warm_lightning {r.provenance['package_version']}, torch {r.provenance['torch_version']}" for r in results}
    )
    trainings = {r.cell.training_name: r.seconds[0] for r in results}
    seconds = sum(trainings.values()) + sum(r.seconds[1] for r in results)
    lines = [
        *invocations,
        f"machine: {known('machine', 'training_machine')}",
        f"commit: {known('git_commit', 'training_git_commit')} ({'; '.join(versions)})",
        f"training seeds: {', '.join(sorted({str(r.cell.seed) for r in results}))}",
        f"time of all runs, one after the other, without those that were killed: {duration(seconds)}",
    ]
    seeds, weights = (map(str, protocol_values(results, name)) for name in ("sample_seeds", "weights"))
    samples = f"seeds of samples: {', '.join(sorted(seeds))}; weights: {', '.join(weights)}"
    return [*lines, *([samples] if protocol_values(results, "sample_seeds") else [])]


def protocol_values(results: Sequence[Result], name: str) -> list[Any]:
    """All values that an entry of the protocol has, sorted."""
    return sorted({value for r in results if (value := r.reading.protocol.get(name))})


# ---------------------------------------------------------------------- HTML

STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body><main>
{body}
</main></body></html>
"""


def html_page(text: str, pictures: Mapping[str, bytes]) -> str:
    """Markdown as a single HTML page that contains its pictures, given by the names of their files."""
    body = markdown.markdown(text, extensions=["tables", "sane_lists"])
    for name, content in pictures.items():
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        body = body.replace(f'src="{name}"', f'src="{source}"')
    body = body.replace("<p><img", '<p class="wide"><img')
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    title = re.sub(r"<[^>]*>", "", body.partition("</h1>")[0])
    return PAGE.format(title=title, style=STYLE, body=body)
