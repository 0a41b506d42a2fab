"""Pictures of results: scores with error bars and reference lines, and samples of the same seeds."""

from collections.abc import Iterator, Sequence
from math import isnan

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.experiment import Plot
from experiments.results import Group, said_trainings

FAR = 3
"""How many times above or below all scores a yardstick may be to be drawn."""
DASHES = ("--", ":", "-.")
MEANINGS = {
    "frechet_ode": ", squared Fréchet distance to the exact ODE's samples",
    "frechet": ", squared Fréchet distance to the data",
    "fid": ", Fréchet inception distance, lower is better",
    "fd": ", Fréchet distance, lower is better",
    "is": ", inception-style score, higher is better",
    "drift": ", rms over levels of ln(noise seen / noise of true images)",
    "power_drift": ", rms over levels of ln(power / expected power)",
    "residual_drift": ", rms over levels of ln(detail added / for true images)",
    "bpd": ", bits per dimension, lower is better",
    "nearest_mse": ", mean square distance to the nearest image",
    "rms_ode": ", root mean square distance to the exact ODE's samples",
}
"""What values are, by how their names begin."""


def numbers(labels: Sequence[str]) -> list[float] | None:
    """Labels as numbers, if all are."""
    try:
        return [float(label) for label in labels]
    except ValueError:
        return None


def ordinate(groups: Sequence[Group], name: str) -> str:
    """What the scores are, with the number of seeds."""
    several = any(group.trainings > 1 for group in groups)
    spread = f"\nmean and standard deviation of {said_trainings(groups)} trainings" if several else ""
    if not several and errors(groups, name):
        spread = "\nwith its standard error over images"
    said = next((meaning for start, meaning in MEANINGS.items() if name.startswith(start)), "")
    return f"{name}{said}{spread}"


def scores(groups: Sequence[Group], plot: Plot, main: str) -> Figure:
    """A score along one axis, a line for each value of another; bars where the axis has no numbers."""
    labels = list(dict.fromkeys(group.cell.labels[plot.x] for group in groups))
    places = numbers(labels)
    if places is None:
        return bars(groups, plot, main)
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    lines = list(dict.fromkeys(group.cell.labels[plot.lines] for group in groups)) if plot.lines else [""]
    colours = mpl.colormaps["viridis"]
    for number, line in enumerate(lines):
        mine = [group for group in groups if not plot.lines or group.cell.labels[plot.lines] == line]
        at = [float(group.cell.labels[plot.x]) for group in mine]
        if all(isnan(group.mean(main)) for group in mine):
            continue
        colour = colours(0.9 * number / max(1, len(lines) - 1))
        name = f"{plot.lines} {line}" if plot.lines else ""
        means = [group.mean(main) for group in mine]
        axes.errorbar(at, means, errors(mine, main), marker="o", capsize=3, label=name, color=colour)
    for label, value, dashes in near(groups, main):
        axes.axhline(value, color="0.4", linestyle=dashes, linewidth=1, label=label)
    if "x" in plot.log and min(places) > 0:
        axes.set_xscale("log")
    elif "x" in plot.log:  # a logarithm has no 0, which a BNR may be
        smallest = min((place for place in places if place > 0), default=1)
        axes.set_xscale("symlog", linthresh=smallest)
        axes.set_xlim(left=-0.2 * smallest)
    axes.set_xticks(places, labels)
    axes.minorticks_off()
    if "y" in plot.log:
        axes.set_yscale("log")
    axes.set(xlabel=plot.labels.get(plot.x, plot.x), ylabel=ordinate(groups, main))
    axes.tick_params(axis="x", rotation=45 if len(labels) > 6 else 0)
    axes.grid(alpha=0.3)
    if len(lines) > 3:  # which leave no room among them
        figure.set_figwidth(9.5)
        figure.legend(fontsize=9, loc="outside right upper")
    elif axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)
    return figure


def yardsticks(groups: Sequence[Group], name: str) -> Iterator[tuple[str, float, str]]:
    """What the data and other things get, with how to draw their lines."""
    base = name.removesuffix("_min")
    for (label, values), dashes in zip(groups[0].results[0].reading.yardsticks.items(), DASHES, strict=False):
        if base in values:
            yield label, values[base], dashes


def errors(groups: Sequence[Group], name: str) -> list[float] | None:
    """Standard deviations over trainings, or what single ones know of their errors; None where nothing is known."""
    spreads = [group.spread(name) for group in groups]
    if name == "bpd" and not any(spreads):
        spreads = [group.mean("standard_error") for group in groups]
    return [spread or 0.0 for spread in spreads] if any(spreads) else None


def near(groups: Sequence[Group], name: str) -> Iterator[tuple[str, float, str]]:
    """Those of the yardsticks that do not make everything else small; tables have all."""
    means = [mean for group in groups if not isnan(mean := group.mean(name))]
    for label, value, dashes in yardsticks(groups, name):
        if means and min(means) / FAR <= value <= max(means) * FAR:
            yield label, value, dashes


def bars(groups: Sequence[Group], plot: Plot, main: str) -> Figure:
    """A score of each group beside its name."""
    groups = [group for group in groups if not isnan(group.mean(main))]
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(groups)), layout="constrained")
    axes = figure.subplots()
    names = [", ".join(group.cell.labels.values()) for group in groups]
    spread = errors(groups, main)
    axes.barh(names, [group.mean(main) for group in groups], xerr=spread, color="tab:blue", capsize=3)
    for label, value, dashes in near(groups, main):
        axes.axvline(value, color="0.3", linestyle=dashes, linewidth=1, label=label)
    axes.invert_yaxis()
    if "y" in plot.log:
        axes.set_xscale("log")
    axes.set(xlabel=ordinate(groups, main))
    axes.grid(alpha=0.3, axis="x")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)
    return figure
