"""Figures as files. They need matplotlib, which not every installation has."""

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

from warm_lightning.errors import check
from warm_lightning.records import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_matplotlib() -> None:
    """Raise UserError where matplotlib is not installed; to be asked before any work."""
    found = importlib.util.find_spec("matplotlib") is not None
    check(found, "the pictures need matplotlib: pip install 'warm-lightning[plots]'")


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG file at 100 dots an inch; raises as `write_file` does."""
    content = io.BytesIO()
    figure.savefig(content, dpi=100)
    write_file(path, content.getvalue())
