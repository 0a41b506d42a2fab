"""Scores as text."""

from collections.abc import Mapping, Sequence

COLUMNS = {"samples": ("",), "halves of the data": ("_halves", "_data"), "Gaussian": ("_gaussian",)}
BETTER = {"f": "lower", "i": "higher", "p": "higher", "r": "higher", "m": "near 1"}  # by first letter


def table(values: Mapping[str, float], names: Sequence[str], notes: Sequence[str] = ()) -> str:
    """A row for each score, with what halves of the data and the moment-matched Gaussian get beside it.

    Args:
        values: scores by name, with companions under `<name>_halves` or `<name>_data` and `<name>_gaussian`.
        names: which scores, in order.
        notes: lines to put below.
    """
    rows = [["score", *COLUMNS, "better is"]]
    for name in names:
        cells = [_find(values, name, endings) for endings in COLUMNS.values()]
        rows.append([name, *cells, BETTER[name[0]]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:], *notes])


def _find(values: Mapping[str, float], name: str, endings: Sequence[str]) -> str:
    found = [values[name + ending] for ending in endings if name + ending in values]
    return f"{found[0]:.4g}" if found else "–"
