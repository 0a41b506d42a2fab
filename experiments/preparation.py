"""What jobs will need from the network or from disk, before the first of them starts."""

import json
from collections.abc import Iterable
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.resolved import resolved
from experiments.schema import REPOSITORY
from warm_lightning.errors import check

if TYPE_CHECKING:
    from experiments.cells import Cell


def prepare(cells: "Iterable[Cell]", scored: "Iterable[Cell]") -> None:
    """Download or find the data of some cells, and the weights of what scores some, once for all jobs.

    Jobs that run at the same time would each download them to the same place; and what is missing would be missed
    after days of training.

    Raises:
        UserError: something is not there and cannot be had.
    """
    data = {json.dumps(resolved(cell.sampling)["data"], sort_keys=True) for cell in cells}
    scored = list(scored)
    named = [one for cell in scored for one in resolved(cell.sampling)["scores"]["extractors"]]
    extractors = {json.dumps(one, sort_keys=True) for one in named}
    statistics = {resolved(cell.sampling)["scores"]["reference_stats"] for cell in scored} - {None}
    with chdir(REPOSITORY):  # where jobs run, whose paths may be relative
        for text in sorted(data):
            make(json.loads(text)).prepare_data()
        for text in sorted(extractors):
            make(json.loads(text)).prepare()
        for path in sorted(statistics):
            check(Path(path).expanduser().is_file(), f"--scores.reference_stats {path}: no such file")


def make(described: dict[str, Any]) -> Any:
    """The object of a class's path and arguments, as configurations describe it."""
    module, _, name = described["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**described.get("init_args", {}))
