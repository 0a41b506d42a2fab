"""Pictures over the cells of an experiment: paths, drift along trajectories, and samples of the same seeds."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from warm_lightning.analysis.figures import PHONE_WIDTH, legend_columns, new_figure
from warm_lightning.images import read_png
from warm_lightning.records import finite

from .cells import Cell

STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
SAMPLES_IN_A_ROW = 12
LEGEND_ROW = 0.2
"""Height in inches of a row of a legend below a figure."""


def path_figure(described: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Fig. 6 of the paper: the path of each system through the blur-noise plane, with the sampler's levels as dots.

    Args:
        described: contents of describe.json by the name of the system.
    """
    figure = new_figure(PHONE_WIDTH, 4.5 + LEGEND_ROW * len(described))
    axes = figure.subplots()
    colours = [mpl.colormaps["tab20"](k % 20) for k in range(len(described))]
    styles = cycle(STYLES)  # the paths of some systems coincide
    for (name, content), colour, style in zip(described.items(), colours, styles, strict=False):
        path, levels = content["path"], content["sampling"]
        if path["alpha_low"] != path["alpha_high"]:
            low, high = path["alpha_low"], path["alpha_high"]
            axes.fill_betweenx(path["beta"], low, high, color="0.85", label=f"{name}: all BNRs that it knows", zorder=0)
            continue
        axes.plot(path["alpha"], path["beta"], style, color=colour, label=name)
        some = slice(None, None, max(1, len(levels["alpha"]) // 40))
        axes.plot(levels["alpha"][some], levels["beta"][some], ".", color=colour, markersize=5)
    axes.set_xscale("symlog", linthresh=1e-3)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set(xlabel="blur α (pixels), linear below 0.001", ylabel="noise β, linear below 0.001")
    axes.set_xlim(left=-2e-4)  # a path without blur is drawn beside the frame, not on it
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside lower center")
    return figure


def snr_figure(described: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The signal-to-noise ratio of frequencies through the steps of each system's sampler, a panel each.

    Args:
        described: contents of describe.json by the name of the system.
    """
    rows = -(-len(described) // 2)
    figure = new_figure(PHONE_WIDTH, 0.8 + 1.9 * rows)
    axes = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(described) :]:
        axis.remove()
    for axis, (name, content) in zip(axes.flat, described.items(), strict=False):
        snr = content["snr"]
        colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(snr["frequency"])))
        for frequency, values, colour in zip(snr["frequency"], snr["db"], colours, strict=True):
            decibels = [math.nan if value is None else value for value in values]
            axis.plot(snr["share"], decibels, color=colour, lw=1.2, label=f"√λ = {frequency:.2f}")
        axis.set_title("\n".join(wrap(name, 28)), fontsize=9)
        axis.set_xlim(1, 0)
        axis.set_ylim(-60, 60)
        axis.axhline(0, color="0.6", lw=0.8, zorder=0)
        axis.grid(alpha=0.3)
    # Not `supxlabel`, which a legend outside would cover.
    for axis in axes.flat[max(0, len(described) - 2) : len(described)]:
        axis.set_xlabel("share of steps left", fontsize=9)
    figure.supylabel("SNR (dB): A² S/B²", fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, loc="outside lower center", ncols=legend_columns(labels))
    return figure


def drift_figure(contents: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure:
    """Trajectories beside truly degraded images, against the noise level, in a colour for each cell.

    Args:
        contents: names of cells with the contents of their drift.json.
    """
    columns = legend_columns([name for name, _ in contents])
    figure = new_figure(PHONE_WIDTH, 11.5 + LEGEND_ROW * -(-len(contents) // columns))
    edges = contents[0][1]["edges"]
    highest = list(edges)[-1]
    low, high = edges[highest]
    band_title = f"The same, √λ from {low:.2f} to {high:.2f} (radians a pixel)"
    noise = "ln(‖u - D‖/(B√N))\ntrajectories solid, true images dashed"
    power = "ln(power of trajectories / of true images)"
    residual = "ln(energy for trajectories / for true images)"
    panels = [
        ("noise", "all", ["trajectory", "truth"], "Noise that the network sees, all frequencies", noise),
        ("noise", highest, ["trajectory", "truth"], band_title, noise),
        ("power", "all", ["trajectory"], "Power, all frequencies", power),
        ("residual", "all", ["drift"], "Detail that the network adds to what blur took", residual),
    ]
    colours = [mpl.colormaps["viridis"](0.92 * k / max(1, len(contents) - 1)) for k in range(len(contents))]
    for axes, (quantity, band, shown, title, label) in zip(figure.subplots(4, 1, sharex=True), panels, strict=True):
        for (_, content), colour in zip(contents, colours, strict=True):
            rows = [row for row in content["rows"] if (row["quantity"], row["band"]) == (quantity, band)]
            for column, style in zip(shown, STYLES, strict=False):
                known = [row for row in rows if finite(row[column])]
                x, y = [row["beta"] for row in known], [row[column] for row in known]
                axes.plot(x, y, style, color=colour, marker=".", markersize=4, linewidth=1)
        axes.axhline(0, color="0.5", linewidth=1)
        axes.set(xscale="log", ylabel=label)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    axes.set(xlabel="noise level β; sampling goes from right to left")
    handles = [Line2D([], [], color=colour, label=name) for (name, _), colour in zip(contents, colours, strict=True)]
    figure.legend(handles=handles, fontsize=9, loc="outside lower center", ncols=columns)
    return figure


def sample_figure(cells: Sequence[tuple[Cell, Path]]) -> Figure:
    """Samples of the same seeds, in a row for each cell, below its name.

    Args:
        cells: each with its folder, which holds PNG files in images/.
    """
    paths = [sorted((folder / "images").glob("*.png"))[:SAMPLES_IN_A_ROW] for _, folder in cells]
    columns = max(map(len, paths))
    figure = new_figure(PHONE_WIDTH, len(cells) * (PHONE_WIDTH / columns + 0.24))
    # A figure for each row, since the layout would make room for a long title beside the first image.
    rows = figure.subfigures(len(cells), squeeze=False)[:, 0]
    for part, (cell, _), row in zip(rows, cells, paths, strict=True):
        line = part.subplots(1, columns, squeeze=False)[0]
        for axes in line:
            axes.set_axis_off()
        for axes, path in zip(line, row, strict=False):
            image = read_png(path)
            axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        part.suptitle(cell.title, fontsize=9, x=0.01, ha="left")
    return figure
