"""Plots of scores over the axes of an experiment, with error bars and reference lines."""

from collections.abc import Iterator, Sequence
from math import isnan

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.experiment import Plot
from experiments.measures import score_of
from experiments.results import Group
from warm_lightning.analysis.figures import new_figure

FAR = 3
"""A reference value this many times above or below all scores is not drawn."""
LINE_STYLES = ("--", ":", "-.")


def score_figure(groups: Sequence[Group], plot: Plot, name: str) -> Figure:
    """A score along one axis, with a line for each value of another; bars where the axis has no numbers.

    Args:
        groups: one for each combination of labels.
        plot: the axes.
        name: of the score.
    """
    labels = list(dict.fromkeys(group.cell.labels[plot.x] for group in groups))
    positions = as_numbers(labels)
    return bar_figure(groups, plot, name) if positions is None else line_figure(groups, plot, name, labels, positions)


def as_numbers(labels: Sequence[str]) -> list[float] | None:
    """Labels as numbers; None if one is none."""
    try:
        return [float(label) for label in labels]
    except ValueError:
        return None


def line_figure(
    groups: Sequence[Group], plot: Plot, name: str, labels: Sequence[str], positions: Sequence[float]
) -> Figure:
    """See `score_figure`; `positions` are the numbers of `labels` of the axis along the plot."""
    figure = new_figure(7.5, 5)
    axes = figure.subplots()
    lines = list(dict.fromkeys(group.cell.labels[plot.lines] for group in groups)) if plot.lines else [""]
    colours = mpl.colormaps["viridis"]
    for number, line in enumerate(lines):
        of_line = [group for group in groups if not plot.lines or group.cell.labels[plot.lines] == line]
        x, y = [float(group.cell.labels[plot.x]) for group in of_line], [group.mean(name) for group in of_line]
        if all(map(isnan, y)):
            continue
        colour = colours(0.9 * number / max(1, len(lines) - 1))
        label = f"{plot.lines} {line}" if plot.lines else ""
        axes.errorbar(x, y, error_bars(of_line, name), marker="o", capsize=3, label=label, color=colour)
    for label, value, style in near_references(groups, name):
        axes.axhline(value, color="0.4", linestyle=style, linewidth=1, label=label)
    if "x" in plot.log and min(positions) > 0:
        axes.set_xscale("log")
    elif "x" in plot.log:  # a logarithmic scale has no 0, which a BNR may be
        smallest = min((position for position in positions if position > 0), default=1)
        axes.set_xscale("symlog", linthresh=smallest)
        axes.set_xlim(left=-0.2 * smallest)
    axes.set_xticks(positions, labels)
    axes.minorticks_off()
    if "y" in plot.log:
        axes.set_yscale("log")
    axes.set(xlabel=plot.labels.get(plot.x, plot.x), ylabel=score_label(groups, name))
    axes.tick_params(axis="x", rotation=45 if len(labels) > 6 else 0)
    axes.grid(alpha=0.3)
    if len(lines) > 3:  # a legend would hide the lines
        figure.set_figwidth(9.5)
        figure.legend(fontsize=9, loc="outside right upper")
    elif axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)
    return figure


def bar_figure(groups: Sequence[Group], plot: Plot, name: str) -> Figure:
    """A bar for the score of each group."""
    groups = [group for group in groups if not isnan(group.mean(name))]
    figure = new_figure(8, 1.2 + 0.32 * len(groups))
    axes = figure.subplots()
    titles, means = [", ".join(g.cell.labels.values()) for g in groups], [g.mean(name) for g in groups]
    axes.barh(titles, means, xerr=error_bars(groups, name), color="tab:blue", capsize=3)
    for label, value, style in near_references(groups, name):
        axes.axvline(value, color="0.3", linestyle=style, linewidth=1, label=label)
    axes.invert_yaxis()
    if "y" in plot.log:
        axes.set_xscale("log")
    axes.set(xlabel=score_label(groups, name))
    axes.grid(alpha=0.3, axis="x")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)
    return figure


def score_label(groups: Sequence[Group], name: str) -> str:
    """The name and meaning of a score, with the number of trainings that its error bars are over."""
    bars = ""
    counts = sorted({group.trainings for group in groups})
    if counts[-1] > 1:
        trainings = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        bars = f"\nmean and standard deviation of {trainings} trainings"
    elif error_bars(groups, name):
        bars = "\nwith its standard error over images"
    meaning = next((known for group in groups if (known := group.first.meanings.get(name))), "")
    return ", ".join(filter(None, (name, meaning))) + bars


def error_bars(groups: Sequence[Group], name: str) -> list[float] | None:
    """Standard deviations over trainings, or standard errors that a measure gives; None where there are none."""
    spreads = [group.spread(name) for group in groups]
    if name == "bpd" and not any(spreads):
        spreads = [group.mean("standard_error") for group in groups]
    return [spread or 0.0 for spread in spreads] if any(spreads) else None


def references(groups: Sequence[Group], name: str) -> Iterator[tuple[str, float, str]]:
    """The values that a score is compared with: label, value and line style of each."""
    score = score_of(name)
    for (label, values), style in zip(groups[0].first.references.items(), LINE_STYLES, strict=False):
        if score in values:
            yield label, values[score], style


def near_references(groups: Sequence[Group], name: str) -> Iterator[tuple[str, float, str]]:
    """The `references` that are near enough to the scores to be drawn beside them."""
    means = [mean for group in groups if not isnan(mean := group.mean(name))]
    for label, value, style in references(groups, name):
        if means and min(means) / FAR <= value <= max(means) * FAR:
            yield label, value, style
