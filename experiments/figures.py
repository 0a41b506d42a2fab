"""Pictures over the cells of an analysis."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.plots import png

Rows = Sequence[Mapping[str, Any]]


def colours(count: int) -> list[Any]:
    """As many, from dark to light."""
    return [mpl.colormaps["viridis"](0.92 * k / max(1, count - 1)) for k in range(count)]


def paths(described: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Fig. 6: every system's path through the blur-noise plane, the levels of its sampler as dots."""
    figure = Figure(figsize=(10.5, 6.5), layout="constrained")
    axes = figure.subplots()
    tints = [mpl.colormaps["tab20"](k % 20) for k in range(len(described))]
    styles = cycle(("-", "--", "-.", ":"))  # some systems go the same way
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


def drifts(found: Mapping[str, Rows]) -> bytes:
    """For each cell and level: noise that the network sees, and power, of trajectories beside true degraded images."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    bands = sorted({row["band"] for rows in found.values() for row in rows} - {"all"})
    wanted = [
        ("noise", "all", "noise seen: ln of trajectories over true"),
        ("noise", bands[-1], "the same, highest band"),
        ("power", "all", "power: ln of trajectories over expected"),
        ("power", bands[-1], "the same, highest band"),
    ]
    for panel, (quantity, band, title) in zip(figure.subplots(2, 2, sharex=True).flat, wanted, strict=True):
        for (name, rows), colour in zip(found.items(), colours(len(found)), strict=True):
            mine = [row for row in rows if (row["quantity"], row["band"]) == (quantity, band) and number(row["drift"])]
            panel.plot([r["beta"] for r in mine], [r["drift"] for r in mine], ".-", color=colour, label=name)
        panel.axhline(0, color="0.5", linewidth=1)
        panel.set(xscale="log", title=title)
        panel.grid(alpha=0.3)
    figure.supxlabel("noise level β; sampling goes from right to left")
    figure.axes[0].legend(fontsize=8)
    return png(figure)


def number(value: Any) -> bool:
    """Whether there is something to plot."""
    return isinstance(value, int | float) and math.isfinite(value)
