"""Scores as text, and several rounds of them as one."""

from collections.abc import Mapping, Sequence

import numpy as np

BESIDE = {"halves of the data": ("_halves", "_data"), "Gaussian": ("_gaussian",)}
BETTER = {"f": "lower", "i": "higher", "k": "lower", "p": "higher", "r": "higher", "m": "near 1"}  # by first letter
BEST = {"lower": "min", "higher": "max"}


def summarise_rounds(rounds: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    """One set of scores from those of rounds of as many samples each.

    A single round's keep their names. Of several, all are there as `<name>_round1`, …; and of those in `names` the
    mean over rounds as `<name>_mean`, the sample standard deviation as `_std` and the best, as `_min` where lower is
    better and `_max` where higher is. (Memorisation, which should be 1, has no best.)
    """
    if len(rounds) == 1:
        return dict(rounds[0])
    values: dict[str, float] = {}
    for name in rounds[0]:
        over = [scores[name] for scores in rounds]
        values |= {f"{name}_round{k}": value for k, value in enumerate(over, start=1)}
        if name in names:
            best = BEST.get(BETTER[name[0]])
            if best:
                values[f"{name}_{best}"] = min(over) if best == "min" else max(over)
            values |= {f"{name}_mean": float(np.mean(over)), f"{name}_std": float(np.std(over, ddof=1))}
    return values


def table(values: Mapping[str, float], names: Sequence[str], rounds: int = 1, notes: Sequence[str] = ()) -> str:
    """A row for each score, with what halves of the data and the moment-matched Gaussian get beside it.

    Args:
        values: scores by name, with companions under `<name>_halves` or `<name>_data` and `<name>_gaussian`; of
            several rounds as `summarise_rounds` gives them.
        names: which scores, in order.
        rounds: number of rounds.
        notes: lines to put below.
    """
    columns: dict[str, tuple[str, ...]] = {"samples": ("",)}
    if rounds > 1:
        columns = {f"best of {rounds}": ("_min", "_max"), "mean": ("_mean",), "std": ("_std",)}
    columns |= BESIDE
    rows = [["score", *columns, "better is"]]
    for name in names:
        cells = [_find(values, name, endings) for endings in columns.values()]
        rows.append([name, *cells, BETTER[name[0]]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:], *notes])


def _find(values: Mapping[str, float], name: str, endings: Sequence[str]) -> str:
    found = [values[name + ending] for ending in endings if name + ending in values]
    return f"{found[0]:.4g}" if found else "–"
