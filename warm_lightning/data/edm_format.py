"""EDM's format for data sets (Karras et al. 2022): PNG files and, beside them, `dataset.json`.

    {"labels": [["00000/img00000000.png", 6], …]}    or    {"labels": null}

In a folder or a zip; images are in the order of their names.
"""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from warm_lightning.data.readers import Reader, reason
from warm_lightning.errors import UserError, check

DATASET_JSON = "dataset.json"
IMAGES_PER_FOLDER = 1000
MAX_CLASS = 100_000  # every class is a column of the network's input


def image_name(i: int) -> str:
    """The name of image i."""
    return f"{i // IMAGES_PER_FOLDER:05}/img{i:08}.png"


def write_labels(names: Sequence[str], labels: Sequence[int] | None) -> bytes:
    """`dataset.json` for images of these classes, or without classes."""
    pairs = None if labels is None else [list(pair) for pair in zip(names, labels, strict=True)]
    return json.dumps({"labels": pairs}).encode()


def read_labels(reader: Reader, names: Sequence[str]) -> Tensor | None:
    """The classes of images, int64 [N], from `dataset.json`; None where it says that there are none.

    Raises:
        UserError: the file is not what EDM's format says, has no class for one of the images, two for one, or one
            for an image that is not there.
    """
    where = reader.locate(DATASET_JSON)
    try:
        content = json.loads(reader.read(DATASET_JSON))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({reason(error)}): make or download the data set again") from error
    check(
        isinstance(content, dict) and "labels" in content,
        f"{where} has no entry `labels`: it must be null or a list of [file name, class]; remove the file if the "
        "images are not in EDM's format",
    )
    pairs = content["labels"]
    if pairs is None:
        return None
    check(isinstance(pairs, list), f"{where}: `labels` must be null or a list of [file name, class]")
    classes: dict[str, int] = {}
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int):
            shown = json.dumps(pair)[:80]
            raise UserError(f"{where}: the label {shown} is not of the form [file name, class], class being an integer")
        name, label = pair
        if not 0 <= label <= MAX_CLASS:
            raise UserError(f"{where}: class {str(label)[:20]} of {name[:80]} is not from 0 to {MAX_CLASS}")
        other = classes.setdefault(name, label)
        check(other == label, f"{where} gives {name[:80]} two classes, {other} and {label}: remove the wrong one")
    for name in names:
        check(name in classes, f"{where} has no class for {name}: add it, or make `labels` null")
    absent = sorted(set(classes) - set(names))
    if absent:
        raise UserError(
            f"{where} has classes for files that are not there, {len(absent)} of them, {absent[0][:80]} for instance: "
            "copy the data set again, or remove these entries"
        )
    return torch.tensor([classes[name] for name in names])
