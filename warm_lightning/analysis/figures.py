"""Figures as PNG files, by matplotlib, which is an optional dependency."""

import importlib.util
import io
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from warm_lightning.errors import check
from warm_lightning.records import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PHONE_WIDTH = 5.0
"""Width in inches of figures whose text of 9 or 10 points can be read where they are as wide as a phone."""
DOTS = 160
"""Dots per inch of PNG files."""
ROOM = 66
"""Characters of 9 points that fit in a line of a figure of `PHONE_WIDTH`."""


def check_matplotlib() -> None:
    """Check that matplotlib is installed; commands call this before any work.

    Raises:
        UserError: it is not.
    """
    installed = importlib.util.find_spec("matplotlib") is not None
    check(installed, "the pictures need matplotlib: pip install 'warm-lightning[plots]'")


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty figure of this width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def legend_columns(labels: Collection[str]) -> int:
    """The number of columns of a legend below a figure of `PHONE_WIDTH`, so that all labels of 9 points fit."""
    return max(1, min(4, len(labels), ROOM // (max(map(len, labels), default=0) + 9)))


def figure_png(figure: "Figure") -> bytes:
    """The content of a PNG file of a figure, with `DOTS` per inch.

    A figure without images has a palette of 256 colours, which makes the file three times smaller.
    """
    content, smaller = io.BytesIO(), io.BytesIO()
    figure.savefig(content, dpi=DOTS)
    if not any(axes.images for axes in figure.axes):
        whole = Image.open(content).convert("RGB")
        whole.quantize(256, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True, dpi=(DOTS, DOTS))
    return (smaller if smaller.tell() else content).getvalue()


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG file; see `figure_png`. Raises as `write_file` does."""
    write_file(path, figure_png(figure))
