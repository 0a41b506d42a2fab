"""Plots of a score over the axes of an experiment, with paired differences below and reference values as lines.

Intervals are at 95 %, over trainings where there are several. Text can be read where a figure is as wide as a phone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, isnan, log
from textwrap import fill
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from warm_lightning.analysis.figures import PHONE_WIDTH, legend_columns, new_figure

from .experiment import Plot
from .measures import score_of
from .paired import Comparison, baseline_title, comparisons, half_width, line_of, place_of
from .results import Group, labels_of

FAR = 3
"""Values that differ by more than this factor have a logarithmic axis, and a reference value this many times above or
below all scores is not drawn."""
MOST_LINES = 8
"""The largest number of lines whose colours can be told apart."""
LINE_STYLES = ("--", ":", "-.")
NORMAL_95 = 1.96
APART = 0.012
"""Distance between the markers of lines at the same place, as a part of the axis."""
LEGEND_ROW = 0.22
"""Height in inches of a row of the legend."""
ROW_LETTERS = 30
"""Characters in a line of the title of a row."""

Which = Literal["x", "y"]


@dataclass(frozen=True)
class Point:
    """A value with the ends of its interval, which are the value itself where there is no interval."""

    value: float
    low: float
    high: float


# ---------------------------------------------------------------------- values and intervals


def score_point(group: Group, name: str) -> Point:
    """The mean score of a group with its 95 % interval: over trainings, or over images where a measure knows it.

    The interval over trainings is relative, by the spread of ln score, where scores are positive: it has no negative
    end.
    """
    mean, values = group.mean(name), group.values(name)
    if len(values) > 1 and min(values) > 0:
        factor = exp(half_width([log(value) for value in values]))
        return Point(mean, mean / factor, mean * factor)
    half = half_width(values) if len(values) > 1 else NORMAL_95 * group.mean("standard_error") if name == "bpd" else 0.0
    half = 0.0 if isnan(half) else half
    return Point(mean, mean - half, mean + half)


def difference_point(comparison: Comparison) -> Point:
    """A paired difference with its interval; a ratio where it is relative."""
    low, high = comparison.interval or (comparison.value, comparison.value)
    one = 1.0 if comparison.relative else 0.0
    return Point(comparison.value + one, low + one, high + one)


def is_far(values: Sequence[float]) -> bool:
    """Whether an axis of these values is logarithmic: where they are positive and differ by more than `FAR`."""
    values = [value for value in values if not isnan(value)]
    return bool(values) and min(values) > 0 and max(values) > FAR * min(values)


# ---------------------------------------------------------------------- figures


def score_figure(groups: Sequence[Group], plot: Plot, name: str) -> Figure:
    """A score along one axis, with a line for each value of another, and paired differences from the baseline below.

    Where the axis has no numbers, each of its values has a row. More lines than have colours of their own are rows
    instead, in which the values of the axis have colours. Differences without intervals are left out.

    Args:
        groups: one for each combination of labels.
        plot: the axes.
        name: of the score.
    """
    found = [comparison for comparison in comparisons(plot, groups, name) if comparison.interval]
    baseline = baseline_title(plot, groups)
    groups = [group for group in groups if not isnan(group.mean(name))]
    if not groups:
        return new_figure(PHONE_WIDTH, 1)
    if len({line_of(group, plot) for group in groups}) > MOST_LINES:
        turned = [replace(comparison, arm=comparison.place, place=comparison.arm) for comparison in found]
        return row_figure(groups, Plot(str(plot.lines), plot.x, plot.labels), name, turned, baseline)
    positions = as_numbers(labels_of(groups, plot.x))
    if positions is None:
        return row_figure(groups, plot, name, found, baseline)
    return line_figure(groups, plot, name, found, baseline, positions)


def as_numbers(labels: Sequence[str]) -> dict[str, float] | None:
    """Labels with their numbers; None if one is none."""
    try:
        return {label: float(label) for label in labels}
    except ValueError:
        return None


def line_figure(
    groups: Sequence[Group],
    plot: Plot,
    name: str,
    found: Sequence[Comparison],
    baseline: str,
    positions: dict[str, float],
) -> Figure:
    """A figure with a line for each value of an axis; see `score_figure`.

    Args:
        groups: those that have the score.
        plot: the axes.
        name: of the score.
        found: the paired differences, each with an interval.
        baseline: the name of what they are differences from.
        positions: the numbers of the labels of the axis along the plot.
    """
    lines = list(dict.fromkeys(line_of(group, plot) for group in groups))
    titles = lines if len(lines) > 1 else [""]
    heights = [3.6, 2.4] if found else [3.6]
    figure = new_figure(PHONE_WIDTH, sum(heights))
    panels = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    set_places(panels[-1], plot, positions)
    # Intervals would hide each other; the places at both ends have room for shifts of 0.05.
    apart = min(APART, 0.09 / len(lines)) if any(group.trainings > 1 for group in groups) else 0.0
    for number, (line, title) in enumerate(zip(lines, titles, strict=True)):
        shift = apart * (number - (len(lines) - 1) / 2)
        colour = mpl.colormaps["viridis"](0.9 * number / max(1, len(lines) - 1))
        of_line = [group for group in groups if line_of(group, plot) == line]
        x = shifted(panels[0], [positions[place_of(group, plot)] for group in of_line], shift)
        draw_points(panels[0], x, [score_point(group, name) for group in of_line], "y", "-", colour, title)
        differences = [comparison for comparison in found if not plot.lines or comparison.arm == line]
        if differences:
            x = shifted(panels[1], [positions[comparison.place] for comparison in differences], shift)
            draw_points(panels[1], x, [difference_point(comparison) for comparison in differences], "y", "", colour)
    draw_scores(panels[0], groups, name, "y")
    if found:
        draw_differences(panels[1], found, baseline, "y")
    add_legend(figure, panels[0], plot.title(plot.lines) if plot.lines and len(lines) > 1 else "")
    return figure


def set_places(axes: Axes, plot: Plot, positions: dict[str, float]) -> None:
    """Label the axis along a plot and its places, and choose its scale and limits."""
    numbers = list(positions.values())
    smallest = min((number for number in numbers if number > 0), default=1.0)
    if min(numbers) >= 0 and is_far([number for number in numbers if number > 0]):
        if min(numbers) > 0:
            axes.set_xscale("log")
        else:  # a logarithmic scale has no 0, which a BNR may be
            axes.set_xscale("symlog", linthresh=smallest)
    axes.set_xticks(numbers, list(positions))
    axes.minorticks_off()
    axes.set_xlim(min(numbers), max(numbers) if len(numbers) > 1 else min(numbers) + 1)
    axes.set_xlim(shifted(axes, [min(numbers)], -0.05)[0], shifted(axes, [max(numbers)], 0.05)[0])
    axes.set(xlabel=plot.title(plot.x))
    axes.tick_params(axis="x", rotation=90 if len(numbers) > 6 else 0)


def shifted(axes: Axes, numbers: Sequence[float], part: float) -> list[float]:
    """Numbers moved along the x axis, on its scale, by a part of its length."""
    scale = axes.xaxis.get_transform()
    low, high = scale.transform(axes.get_xlim())
    return [float(scale.inverted().transform(scale.transform(number) + part * (high - low))) for number in numbers]


def row_figure(groups: Sequence[Group], plot: Plot, name: str, found: Sequence[Comparison], baseline: str) -> Figure:
    """A figure with a row for each place, in which each line has a colour; see `score_figure` and `line_figure`."""
    lines = list(dict.fromkeys(line_of(group, plot) for group in groups))
    places = labels_of(groups, plot.x)
    compared = list(dict.fromkeys(comparison.place if plot.lines else comparison.arm for comparison in found))
    panel_rows = [places, compared] if found else [places]
    titles = [[fill(row, ROW_LETTERS) for row in rows] for rows in panel_rows]
    text = [max(title.count("\n") + 1 for title in rows) for rows in titles]
    heights = [
        0.9 + max(0.1 + 0.16 * n, 0.1 + 0.11 * len(lines)) * len(rows) for n, rows in zip(text, titles, strict=True)
    ]
    figure = new_figure(PHONE_WIDTH, sum(heights))
    panels = list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    for number, line in enumerate(lines):
        shift = 0.75 * (number - (len(lines) - 1) / 2) / len(lines)
        colour = mpl.colormaps["viridis"](0.9 * number / max(1, len(lines) - 1)) if len(lines) > 1 else "tab:blue"
        of_line = [group for group in groups if line_of(group, plot) == line]
        y = [places.index(place_of(group, plot)) + shift for group in of_line]
        draw_points(
            panels[0], y, [score_point(group, name) for group in of_line], "x", "", colour, line if plot.lines else ""
        )
        differences = [comparison for comparison in found if not plot.lines or comparison.arm == line]
        if differences:
            y = [compared.index(c.place if plot.lines else c.arm) + shift for c in differences]
            draw_points(panels[1], y, [difference_point(comparison) for comparison in differences], "x", "", colour)
    draw_scores(panels[0], groups, name, "x")
    if found:
        draw_differences(panels[1], found, baseline, "x")
    add_legend(figure, panels[0], plot.title(plot.lines) if plot.lines and len(lines) > 1 else "")
    for axes, rows in zip(panels, titles, strict=True):
        axes.set_yticks(range(len(rows)), rows, fontsize=9)
        axes.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def add_legend(figure: Figure, axes: Axes, title: str) -> None:
    """Make room below a figure for a legend of all that has a name in a panel, if anything has, with a title."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = legend_columns(labels)
        rows = -(-len(labels) // columns) + bool(title)
        figure.set_figheight(figure.get_figheight() + LEGEND_ROW * rows)
        figure.legend(
            handles, labels, title=title, fontsize=9, title_fontsize=9, loc="outside lower center", ncols=columns
        )


# ---------------------------------------------------------------------- panels


def draw_points(
    axes: Axes,
    places: Sequence[float],
    points: Sequence[Point],
    which: Which,
    line: str = "",
    colour: str | tuple[float, ...] = "tab:blue",
    label: str = "",
) -> None:
    """Draw points with their intervals.

    Args:
        axes: where to draw them.
        places: of the points along the other axis.
        points: values and intervals.
        which: the axis of the values.
        line: style of the line through the points.
        colour: of line, points and intervals.
        label: in the legend.
    """
    values = [point.value for point in points]
    ends = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
    other: Which = "x" if which == "y" else "y"
    options: dict[str, Any] = {which: values, other: places, f"{which}err": ends}
    options |= {"fmt": f"o{line}", "color": colour, "markersize": 4, "capsize": 2, "linewidth": 1, "label": label}
    axes.errorbar(**options)


def draw_scores(axes: Axes, groups: Sequence[Group], name: str, which: Which) -> None:
    """Label the panel of scores, choose its scale, and draw the values that scores are compared with."""
    far = is_far([group.mean(name) for group in groups])
    across = axes.axhline if which == "y" else axes.axvline
    for label, value, style in near_references(groups, name):
        across(value, color="0.4", linestyle=style, linewidth=1, label=label)
    set_scale(axes, which, score_label(groups, name), far, plain)
    axes.grid(alpha=0.3, axis="both" if which == "y" else "x")


def draw_differences(axes: Axes, found: Sequence[Comparison], baseline: str, which: Which) -> None:
    """Label the panel of paired differences and choose its scale: percent, or ratios where they are far apart."""
    relative = found[0].relative
    points = [difference_point(comparison) for comparison in found]
    ends = [1.0, *(point.value for point in points)]
    far = relative and is_far(ends)
    (axes.axhline if which == "y" else axes.axvline)(1.0 if relative else 0.0, color="0.4", linewidth=1)
    label = f"paired {'ratio to' if far else 'difference from'}\n{fill(baseline, ROW_LETTERS)}"
    set_scale(axes, which, label, far, percent if relative and not far else plain)
    axes.grid(alpha=0.3, axis="both" if which == "y" else "x")


def set_scale(axes: Axes, which: Which, label: str, far: bool, text: Callable[[float], str]) -> None:
    """Label an axis and its ticks, on a logarithmic scale or not."""
    axes.set(**{f"{which}label": label})
    axis = axes.yaxis if which == "y" else axes.xaxis
    if far:
        axes.set(**{f"{which}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def plain(value: float) -> str:
    """A number as the text of a tick."""
    return f"{value:.4g}"


def percent(ratio: float) -> str:
    """A ratio's difference from 1 as the text of a tick."""
    return f"{100 * (ratio - 1):+.3g} %" if abs(ratio - 1) > 1e-9 else "0 %"


def score_label(groups: Sequence[Group], name: str) -> str:
    """The name and meaning of a score, with what its intervals are over."""
    counts = sorted({group.trainings for group in groups})
    meaning = next((known for group in groups if (known := group.first.meanings.get(name))), "")
    over = ""
    if counts[-1] > 1:
        over = f"\nmean of {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} trainings, 95 % interval"
    elif name == "bpd":
        over = "\n95 % interval over images"
    return ", ".join(filter(None, (name, meaning))) + over


# ---------------------------------------------------------------------- values for comparison


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
        if min(means, default=inf) / FAR <= value <= max(means, default=0) * FAR:
            yield label, value, style
