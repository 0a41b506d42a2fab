"""Pictures over the cells of an analysis."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.cells import Cell
from warm_lightning.images import read_png
from warm_lightning.records import finite

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
        if path["alpha_low"] != path["alpha_high"]:
            low, high = path["alpha_low"], path["alpha_high"]
            axes.fill_betweenx(path["beta"], low, high, color="0.85", label=f"{name}: all BNRs that it knows", zorder=0)
            continue
        axes.plot(path["alpha"], path["beta"], style, color=colour, label=name)
        few = slice(None, None, max(1, len(stops["alpha"]) // 40))
        axes.plot(stops["alpha"][few], stops["beta"][few], ".", color=colour, markersize=5)
    axes.set_xscale("symlog", linthresh=1e-3)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set(xlabel="blur α (pixels), linear below 0.001", ylabel="noise β (images in [-1, 1]), linear below 0.001")
    axes.set_xlim(left=-2e-4)  # without blur: beside the frame, not on it
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside right upper")
    return png(figure)


def drifts(found: Sequence[tuple[str, Mapping[str, Any]]]) -> bytes:
    """Trajectories beside truly degraded images, against the noise level, a colour for each cell.

    Args:
        found: what `warm drift` found, by a cell's name.
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    highest = list(found[0][1]["edges"])[-1]
    low, high = found[0][1]["edges"][highest]
    solid = "trajectories solid, true images dashed"
    panels = [
        (
            "noise",
            "all",
            ["trajectory", "truth"],
            "Noise that the network sees, all frequencies",
            f"ln(‖u - D‖/(B√N))\n{solid}",
        ),
        (
            "noise",
            highest,
            ["trajectory", "truth"],
            f"The same, √λ from {low:.2f} to {high:.2f} (radians a pixel)",
            f"ln(‖u - D‖/(B√N))\n{solid}",
        ),
        ("power", "all", ["trajectory"], "Power, all frequencies", "ln(power of trajectories / of true images)"),
        (
            "residual",
            "all",
            ["drift"],
            "Detail that the network adds to what blur took",
            "ln(energy for trajectories / for true images)",
        ),
    ]
    for axes, (quantity, band, names, title, label) in zip(
        figure.subplots(2, 2, sharex=True).flat, panels, strict=True
    ):
        for (_, content), colour in zip(found, colours(len(found)), strict=True):
            mine = [row for row in content["rows"] if (row["quantity"], row["band"]) == (quantity, band)]
            for name, style in zip(names, STYLES, strict=False):
                here = [row for row in mine if finite(row[name])]
                x, y = ([row[column] for row in here] for column in ("beta", name))
                axes.plot(x, y, style, color=colour, marker=".", markersize=4, linewidth=1)
        axes.axhline(0, color="0.5", linewidth=1)
        axes.set(xscale="log", title=title, ylabel=label)
        axes.grid(alpha=0.3)
    figure.supxlabel("noise level β; sampling goes from right to left")
    tints = zip(found, colours(len(found)), strict=True)
    handles = [Line2D([], [], color=tint, label=name) for (name, _), tint in tints]
    figure.legend(handles=handles, fontsize=9, loc="outside right upper")
    return png(figure)


SHOWN = 12
"""Samples in a row."""


def png(figure: Figure) -> bytes:
    """A figure as a file's content."""
    content = io.BytesIO()
    with mpl.rc_context({"font.size": 11}):
        figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def sample_rows(cells: Sequence[tuple[Cell, Path]]) -> Figure:
    """Images of the same seeds, a row a cell."""
    paths = [sorted((folder / "images").glob("*.png"))[:SHOWN] for _, folder in cells]
    columns = max(map(len, paths))
    figure = Figure(figsize=(columns * 0.6 + 3, len(cells) * 0.62), layout="constrained")
    grid = figure.subplots(len(cells), columns, squeeze=False)
    for line, (cell, _), row in zip(grid, cells, paths, strict=True):
        for axes in line:
            axes.set_axis_off()
        for axes, path in zip(line, row, strict=False):
            image = read_png(path)
            axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        line[0].text(-0.15, 0.5, cell.title, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    return figure
