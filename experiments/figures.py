"""Pictures over the cells of an analysis."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.plots import png

Rows = Sequence[Mapping[str, Any]]
STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")


def colours(count: int) -> list[Any]:
    """As many, from dark to light."""
    return [mpl.colormaps["viridis"](0.92 * k / max(1, count - 1)) for k in range(count)]


def paths(described: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Fig. 6: every system's path through the blur-noise plane, the levels of its sampler as dots."""
    figure = Figure(figsize=(10.5, 6.5), layout="constrained")
    axes = figure.subplots()
    tints = [mpl.colormaps["tab20"](k % 20) for k in range(len(described))]
    styles = cycle(STYLES)  # some systems go the same way
    for (name, found), colour, style in zip(described.items(), tints, styles, strict=False):
        path, stops = found["path"], found["sampling"]
        axes.plot(path["alpha"], path["beta"], style, color=colour, label=name)
        few = slice(None, None, max(1, len(stops["alpha"]) // 40))
        axes.plot(stops["alpha"][few], stops["beta"][few], ".", color=colour, markersize=5)
        if path["alpha_low"] != path["alpha_high"]:
            axes.fill_betweenx(path["beta"], path["alpha_low"], path["alpha_high"], color=colour, alpha=0.12)
    axes.set_xscale("symlog", linthresh=1e-3)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set(xlabel="blur α (pixels), linear below 0.001", ylabel="noise β (images in [-1, 1]), linear below 0.001")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside right upper")
    return png(figure)


def drifts(found: Sequence[tuple[Mapping[str, str], Rows]]) -> bytes:
    """Noise that the network sees, and power, of trajectories beside true degraded images, against the level.

    Args:
        found: rows of `warm drift` by a cell's labels; the first axis is told by colour, others by the kind of line.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    bands = sorted({row["band"] for _, rows in found for row in rows} - {"all"})
    cells = [(*first_and_others(labels), rows) for labels, rows in found]
    first, others = (list(dict.fromkeys(cell[k] for cell in cells)) for k in (0, 1))
    tints, styles = dict(zip(first, colours(len(first)), strict=True)), dict(zip(others, cycle(STYLES), strict=False))
    wanted = [
        ("noise", "all", "noise seen: ln of trajectories over true"),
        ("noise", bands[-1], "the same, highest band"),
        ("power", "all", "power: ln of trajectories over expected"),
        ("power", bands[-1], "the same, highest band"),
    ]
    for panel, (quantity, band, title) in zip(figure.subplots(2, 2, sharex=True).flat, wanted, strict=True):
        for colour, style, rows in cells:
            mine = [row for row in rows if (row["quantity"], row["band"]) == (quantity, band) and number(row["drift"])]
            x, y = ([row[name] for row in mine] for name in ("beta", "drift"))
            panel.plot(x, y, styles[style], color=tints[colour], marker=".", markersize=4, linewidth=1)
        panel.axhline(0, color="0.5", linewidth=1)
        panel.set(xscale="log", title=title)
        panel.grid(alpha=0.3)
    figure.supxlabel("noise level β; sampling goes from right to left")
    handles = [Line2D([], [], color=tint, label=name) for name, tint in tints.items() if name]
    handles += [Line2D([], [], color="black", linestyle=style, label=name) for name, style in styles.items() if name]
    if handles:
        figure.legend(handles=handles, fontsize=8, loc="outside right upper")
    return png(figure)


def first_and_others(labels: Mapping[str, str]) -> tuple[str, str]:
    """Labels with the names of their axes: the first one, and all others together."""
    said = [f"{axis} {label}" for axis, label in labels.items()]
    return "".join(said[:1]), ", ".join(said[1:])


def number(value: Any) -> bool:
    """Whether there is something to plot."""
    return isinstance(value, int | float) and math.isfinite(value)
