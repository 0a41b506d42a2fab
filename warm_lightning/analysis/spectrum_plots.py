"""The figures of `warm spectrum`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from warm_lightning.analysis.figures import PHONE_WIDTH, new_figure, save_figure
from warm_lightning.analysis.power_law import LEVELS, attenuation_rows, chosen_row
from warm_lightning.images import quantise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]
POWER_LABEL = "variance of DCT coefficients (images in [−1, 1])"
RADIANS_LABEL = "radial frequency √λ in radians/pixel"
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


def plot_spectrum(rows: Rows, fits: Rows, below: float, title: str, out: Path) -> None:
    """Draw S by radius for each channel and their mean, with the laws fitted below λ = `below`."""
    figure = new_figure(PHONE_WIDTH, 4)
    axes = figure.subplots()
    rings = rows[1:]
    x = [row["radians_per_pixel"] for row in rings]
    channels = len(rings[0]["power_channels"])
    for k, colour in zip(range(channels), ("tab:red", "tab:green", "tab:blue") if channels == 3 else (), strict=False):
        y = [row["power_channels"][k] for row in rings]
        axes.plot(x, y, color=colour, lw=0.8, alpha=0.7, label=f"channel {'RGB'[k]}")
    mean, error = ([row[name] for row in rings] for name in ("power", "power_se"))
    axes.errorbar(x, mean, yerr=error, fmt="o", color="black", ms=3, lw=1, label="S" + ", mean" * (channels > 1))
    fit = chosen_row(list(fits), below)
    for c, s, style in ((fit["c"], fit["s"], "--"), (fit["c_at_s1"], 1.0, ":")):
        law = [c / radians ** (2 * s) for radians in x]
        label = f"{c:.3g}/λ" + (f"^{s:.2f}" if s != 1 else "")
        axes.plot(x, law, style, color="tab:orange", lw=2, label=f"{label}, fitted {_range(fit['below'])}")
    if fit["below"] is not None:
        axes.axvspan(x[0] * 0.9, math.sqrt(fit["below"]), color="tab:orange", alpha=0.08, lw=0)
    axes.set(yscale="log", xlabel=RADIANS_LABEL, ylabel=POWER_LABEL, title=title)
    _frequency_axis(axes, x)
    top = axes.secondary_xaxis("top", functions=(_cycles, _radians))
    top.set_xticks([tick for tick in TICKS if 0.9 * x[0] < _radians(tick) < 1.1 * x[-1]])
    top.xaxis.set_major_formatter("{x:g}")
    top.minorticks_off()
    top.set_xlabel("cycles/pixel")
    _finish(figure, axes, out)


def plot_bnr(power: Tensor, c: float | None, suggestions: Rows, tolerance: float, out: Path) -> None:
    """Draw the attenuation at SNR = 1 against the BNR, by the formula and as measured, and the suggested BNRs.

    Args:
        power: S, [H, W].
        c: of the law fitted with s = 1; None if it does not hold, and then nothing is suggested.
        suggestions: the rows of `suggestion_rows` for this fit.
        tolerance: the requested attenuation, drawn in red.
        out: PNG file.
    """
    figure = new_figure(PHONE_WIDTH, 4)
    axes = figure.subplots()
    suggestions = [row for row in suggestions if row["bnr"] is not None]
    highest = 1.5 * max((row["bnr"] for row in suggestions), default=2.0)
    bnrs = [highest * k / LEVELS for k in range(LEVELS + 1)]
    rows = attenuation_rows(power, c, bnrs)
    attenuation = {name: [100 * (1 - row[name]) for row in rows] for name in ("measured", "lowest", "highest")}
    axes.fill_between(
        bnrs, attenuation["highest"], attenuation["lowest"], color="tab:blue", alpha=0.15, lw=0, label="range over β"
    )
    axes.plot(bnrs, attenuation["measured"], color="tab:blue", label="measured, mean over ln β")
    if c is not None:
        by_law = [100 * (1 - row["formula"]) for row in rows]
        axes.plot(bnrs, by_law, "k--", label=f"1 − exp(−c·BNR²/2), c = {c:.3g}")
    for row in suggestions:
        requested = row["tolerance"] == tolerance
        colour = "tab:red" if requested else "0.6"
        level = 100 * row["tolerance"]
        axes.plot([0, row["bnr"], row["bnr"]], [level, level, 0], color=colour, lw=1.5 if requested else 0.8)
        text = f"{level:g} % → BNR {row['bnr']:.2f}"
        axes.annotate(
            text, (row["bnr"], level), (4, -3), textcoords="offset points", color=colour, fontsize=8, va="top"
        )
    top = 130 * max((row["tolerance"] for row in suggestions), default=1.0)
    axes.set(xlabel="blur-to-noise ratio in pixels per unit of noise", xlim=(0, highest), ylim=(0, min(top, 100)))
    title = "No power law holds: no BNR is suggested" if c is None else "The tolerance is a choice; the BNR follows"
    axes.set(ylabel="attenuation 1 − M where signal = noise, in %", title=title)
    _finish(figure, axes, out)


TITLES = ("observed", "denoising\ntarget", "deblurring\ntarget")


def plot_targets(rows: Rows, pictures: Tensor, noise: float, out: Path) -> None:
    """Draw Fig. 3: the observed image and both training targets for each BNR, as images and as spectra by radius.

    Args:
        rows: of `target_rows`.
        pictures: of `target_pictures`, [BNRs, 3, N, C, H, W].
        noise: β.
        out: PNG file.
    """
    bnrs = list(dict.fromkeys(row["bnr"] for row in rows))
    images = pictures.shape[2]
    heights = [0.6 + 0.8 * images, 3.4]
    figure = new_figure(PHONE_WIDTH, sum(heights) * len(bnrs))
    limits = min(min(row["power"], row["noise"]) for row in rows) / 30, 2 * max(row["observed"] for row in rows[1:])
    for i, (bnr, part) in enumerate(zip(bnrs, figure.subfigures(len(bnrs), 1, squeeze=False)[:, 0], strict=True)):
        upper, lower = part.subfigures(2, 1, height_ratios=heights)
        upper.suptitle(f"BNR {bnr:g}: noise β = {noise:g}, blur α = {bnr * noise:g} pixels", fontsize=10)
        cells = upper.subplots(images, 3, squeeze=False)
        for (row, column), axes in np.ndenumerate(cells):
            axes.imshow(_pixels(pictures[i, column, row]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(TITLES[column], fontsize=9)
        rings = [row for row in rows if row["bnr"] == bnr][1:]
        axes = lower.subplots()
        _target_spectra(axes, rings, limits)
        axes.set_ylabel(POWER_LABEL, fontsize=9)
        axes.legend(fontsize=8)
    save_figure(figure, out)


def _target_spectra(axes: "Axes", rings: Rows, limits: tuple[float, float]) -> None:
    lines = {
        "power": ("image S", "0.6", ":", 1.5),
        "observed": ("observed M²S + β²", "black", "-", 2.5),
        "noise": ("noise β²", "0.6", "-", 1.2),
        "denoising_target": ("signal and denoising target M²S", "tab:red", "-", 1.5),
        "deblurring_target": ("deblurring target (1 − M)²S", "tab:blue", "-", 1.5),
    }
    x = [row["radians_per_pixel"] for row in rings]
    for name, (label, colour, style, width) in lines.items():
        axes.plot(x, [row[name] or math.nan for row in rings], style, color=colour, lw=width, label=label)
    axes.set(yscale="log", xlabel=RADIANS_LABEL, ylim=limits)
    _frequency_axis(axes, x)
    axes.grid(alpha=0.3)


def plot_compared(rows: Rows, name: str, out: Path) -> None:
    """Draw the ratio of the spectrum of other images to that of the data, with the interval for halves of the data."""
    figure = new_figure(PHONE_WIDTH, 4)
    axes = figure.subplots()
    rings = rows[1:]
    x = [row["cycles_per_pixel"] for row in rings]
    low, high = ([row[end] for row in rings] for end in ("halves_low", "halves_high"))
    axes.fill_between(x, low, high, color="0.75", label="half of the data over the other, 95 % of splits")
    axes.axhline(1, color="black", lw=0.8)
    ratios, errors = ([row[value] for row in rings] for value in ("ratio", "ratio_se"))
    axes.errorbar(x, ratios, yerr=errors, fmt="o-", color="tab:blue", ms=4, lw=1, label=f"{name}, ± standard error")
    different = [row for row in rings if row["differs"]]
    axes.plot(
        [row["cycles_per_pixel"] for row in different],
        [row["ratio"] for row in different],
        "o",
        color="tab:red",
        ms=5,
        zorder=3,
        label="differs (by chance anywhere: 5 %)",
    )
    axes.set(yscale="log", xlabel="radial frequency in cycles/pixel", ylabel="power / power of the data")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:.2g}")
    _frequency_axis(axes, x)
    _finish(figure, axes, out)


def samples_figure(radii: Sequence[float], spectra: Mapping[str, Tensor]) -> "Figure":
    """Draw S by radius of samples and, dashed, of the data.

    Args:
        radii: √λ of each ring of frequencies.
        spectra: S in each ring, [rings], by what the legend says; the samples first.
    """
    figure = new_figure(PHONE_WIDTH, 4)
    axes = figure.subplots()
    for (label, power), style in zip(spectra.items(), ("C0o-", "k--"), strict=False):
        axes.plot(radii[1:], power[1:], style, ms=4, label=label)
    axes.legend(fontsize=9)
    _power_axes(axes, radii[1:], torch.cat([power[1:] for power in spectra.values()]), lowest=0.0)
    axes.set(xlabel=RADIANS_LABEL, ylabel=POWER_LABEL)
    return figure


def trajectory_figure(
    radii: Sequence[float], levels: Sequence[tuple[str, Mapping[str, Tensor]]], reference: Tensor
) -> "Figure":
    """Draw S by radius of the parts of a trajectory, a panel for each with a line for each level.

    Args:
        radii: √λ of each ring of frequencies.
        levels: from the first level to the last, a label and S of each part at that level, [rings].
        reference: S of the data or of the samples, [rings], which is dashed in all panels.
    """
    from matplotlib import colormaps

    parts = list(levels[0][1])
    rows = (len(parts) + 1) // 2
    figure = new_figure(PHONE_WIDTH, 0.6 + 2.1 * rows)
    panels = dict(zip(parts, figure.subplots(rows, 2, squeeze=False).flat, strict=False))
    for k, (label, powers) in enumerate(levels):
        colour = colormaps["viridis"](0.9 * k / max(1, len(levels) - 1))
        in_legend = k in (0, len(levels) // 2, len(levels) - 1)
        for name, power in powers.items():
            panels[name].plot(radii[1:], power[1:], color=colour, lw=1.3, label=label if in_legend else None)
    for name, axes in panels.items():
        axes.plot(radii[1:], reference[1:], "k--", lw=1.2)
        shown = torch.cat([reference[1:], *(powers[name][1:] for _, powers in levels if name in powers)])
        _power_axes(axes, radii[1:], shown, lowest=reference[1:].min().item() / 30)
        axes.set_title(name, fontsize=10)
        axes.tick_params(labelsize=8)
    figure.legend(*panels[parts[0]].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _power_axes(axes: "Axes", x: Sequence[float], powers: Tensor, lowest: float) -> None:
    """Make both axes of a spectrum logarithmic, from the least power above 0 that is not below `lowest`."""
    # Parameterizations that divide by the blur amplify a network's errors without limit; that is off the figure.
    shown = powers[(powers > 1e-12) & (powers < 1e12)].tolist() or [1.0]
    low, high = max(min(shown), lowest), max(shown)
    axes.set_ylim(low / 1.5, 1.5 * max(high, 2 * low))
    axes.set_yscale("log")
    _frequency_axis(axes, x)
    axes.grid(alpha=0.3)


def _frequency_axis(axes: "Axes", x: Sequence[float]) -> None:
    """Make the axis of frequencies logarithmic, with ticks written as plain numbers."""
    axes.set_xscale("log")
    axes.set_xlim(0.9 * x[0], 1.1 * x[-1])
    axes.set_xticks([tick for tick in TICKS if 0.9 * x[0] < tick < 1.1 * x[-1]])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.minorticks_off()


def _cycles(radians: Any) -> Any:
    return radians / (2 * math.pi)


def _radians(cycles: Any) -> Any:
    return cycles * 2 * math.pi


def _range(below: float | None) -> str:
    return "to all" if below is None else f"below λ = {below:g}"


def _pixels(image: Tensor) -> Any:
    """Convert a float image [C, H, W] in [-1, 1] to an array that matplotlib shows; other values are clamped."""
    return quantise(image).permute(1, 2, 0).squeeze(-1).numpy()


def _finish(figure: "Figure", axes: "Axes", out: Path) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, out)
