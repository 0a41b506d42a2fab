"""The picture of `experiments.solvers`."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from warm_lightning.pictures import write_file

COLOURS = {
    "Euler": "0.6",
    "Heun": "black",
    "2M in ln SNR": "tab:orange",
    "3M in ln SNR": "tab:red",
    "Multistep 2": "tab:cyan",
    "Multistep 3": "tab:blue",
}
SHOWN_RHO, SHOWN_BNR = 7.0, 0.5


def plot(rows: list[dict[str, Any]], out: Path) -> None:
    """Squared Fréchet error to the data against NFE: a panel a BNR at ρ 7, then a panel a solver at BNR 0.5."""
    bnrs = list(dict.fromkeys(row["bnr"] for row in rows))
    figure = Figure(figsize=(15, 11), layout="constrained")
    panels = iter(figure.subplots(3, 4, sharex=True, sharey=True).flat)
    for bnr in bnrs:
        axes = next(panels)
        at_bnr = [row for row in rows if (row["bnr"], row["rho"]) == (bnr, SHOWN_RHO)]
        for solver, colour in COLOURS.items():
            line(axes, [row for row in at_bnr if row["solver"] == solver], solver, colour)
        dress(axes, f"BNR {bnr:g}, ρ {SHOWN_RHO:g}")
    for solver in ("Heun", "2M in ln SNR", "Multistep 2", "Multistep 3"):
        axes = next(panels)
        of_solver = [row for row in rows if (row["bnr"], row["solver"]) == (SHOWN_BNR, solver)]
        for rho, colour in zip(
            dict.fromkeys(row["rho"] for row in rows), ("tab:green", "black", "tab:purple"), strict=True
        ):
            line(axes, [row for row in of_solver if row["rho"] == rho], f"ρ {rho:g}", colour)
        dress(axes, f"{solver}, BNR {SHOWN_BNR:g}")
        axes.set_xlabel("network calls (NFE)")
    figure.axes[0].legend(fontsize=9)
    figure.axes[8].legend(fontsize=9)
    figure.supylabel("squared Fréchet distance to the data, Gaussian oracle")
    content = io.BytesIO()
    with mpl.rc_context({"font.size": 11}):
        figure.savefig(content, dpi=100)
    write_file(out, content.getvalue())


def line(axes: Axes, rows: list[dict[str, Any]], label: str, colour: str) -> None:
    """Error against NFE."""
    axes.plot([row["nfe"] for row in rows], [row["frechet"] for row in rows], "o-", ms=4, label=label, color=colour)


def dress(axes: Axes, title: str) -> None:
    """Logarithmic, with the NFEs that were measured as ticks."""
    axes.set(xscale="log", yscale="log", title=title, xticks=[10, 18, 35, 79], ylim=(4e-3, 2e3))
    axes.set_xticklabels(["10", "18", "35", "79"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
