"""Where on a process's clock a level of blur and noise is."""

from typing import Literal

import torch
from torch import Tensor

from warm_lightning.processes.base import Process
from warm_lightning.types import Level

TOLERANCE = 0.01
"""By how much, relative to the larger, a blur or noise level may be beside a path and still count as on it."""
HALVINGS = 120
"""Of the clock's range in a search: enough for any float64, however small."""

Coordinate = Literal["alpha", "beta"]


def close(a: float, b: float) -> bool:
    """Whether two levels of blur or noise are the same within `TOLERANCE`."""
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def find_clock(process: Process, first: Tensor, coordinate: Coordinate, value: float) -> Tensor | None:
    """Where the blur level α or the noise level β has a value, between clock readings 0 and `first`.

    It asks no process what it is: both coordinates of every path grow with the clock, or are constant.

    Args:
        process: any.
        first: clock reading at which sampling starts, float64 [1].
        coordinate: which of the two.
        value: of it; up to `TOLERANCE` beyond the ends of the path it is at that end.

    Returns:
        The reading, float64 [1]; None where the path has no such value, or none but that.
    """

    def at(clock: Tensor) -> float:
        return getattr(process.level(clock), coordinate).item()

    low, high = torch.zeros_like(first), first
    smallest, largest = at(low), at(high)
    inside = smallest <= value <= largest or close(value, smallest) or close(value, largest)
    if smallest == largest or not inside:
        return None
    if value <= smallest:
        return low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) < value else (low, middle)
    return high


def find_level(process: Process, first: Tensor, alpha: float, beta: float) -> Level | None:
    """The level of a process with a blur of α pixels and noise β, within `TOLERANCE`; None if that is off its path.

    Found by its noise, or else by its blur.

    Args:
        process: any.
        first: clock reading at which sampling starts, float64 [1].
        alpha: α ≥ 0.
        beta: β ≥ 0.
    """
    clocks = find_clock(process, first, "beta", beta), find_clock(process, first, "alpha", alpha)
    for level in (process.level(clock) for clock in clocks if clock is not None):
        if close(level.alpha.item(), alpha) and close(level.beta.item(), beta):
            return level
    return None


def known_nearby(process: Process, first: Tensor, alpha: float, beta: float) -> str:
    """Which levels a model knows around one that is off its path, in words."""
    words = []
    least, most = (_partner(process.through(a, beta), first, "beta", beta) for a in (0.0, 1e9))
    if least is not None and most is not None:
        words.append(f"at noise {beta:g} it knows a blur of {_span(least, most)} pixels")
    least, most = (_partner(process.through(alpha, b), first, "alpha", alpha) for b in (0.0, 1e9))
    if least is not None and alpha > 0:
        words.append(
            f"at a blur of {alpha:g} pixels, noise "
            + (_span(least, most) if most is not None else f"{least:.4g} or more")
        )
    if words:
        return "; ".join(words)
    ends = [process.level(clock) for clock in (torch.zeros_like(first), first)]
    blur, noise = (_span(*(getattr(end, name).item() for end in ends)) for name in ("alpha", "beta"))
    return f"its blur is {blur} pixels and its noise {noise}"


def _partner(process: Process, first: Tensor, coordinate: Coordinate, value: float) -> float | None:
    """The other coordinate where one has a value."""
    clock = find_clock(process, first, coordinate, value)
    return None if clock is None else getattr(process.level(clock), "alpha" if coordinate == "beta" else "beta").item()


def _span(low: float, high: float) -> str:
    ends = dict.fromkeys(f"{end + 0:.4g}" for end in (low, high))
    return " to ".join(ends)
