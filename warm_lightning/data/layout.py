"""What the folders around images mean: splits and classes."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from warm_lightning.data.readers import Reader
from warm_lightning.errors import UserError, check

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
HELD_OUT_FOLDERS = {"test", "val", "valid", "validation", "held_out"}


class ImageFile(NamedTuple):
    """An image file: its name in the reader, and the folders and file name left after wrapper and split."""

    name: str
    parts: tuple[str, ...]


def find_splits(reader: Reader) -> dict[str, list[ImageFile]]:
    """Image files by split, sorted: "train", and "held_out" where the top folders are train and one such.

    Folders that contain everything else are looked through; hidden files are left out.

    Raises:
        UserError: there are no images, or the splits are ambiguous.
    """
    files = [ImageFile(name, PurePosixPath(name).parts) for name in reader.names()]
    files = [file for file in files if _is_visible_image(file.parts)]
    check(bool(files), f"{reader.path} holds no images ({', '.join(sorted(SUFFIXES))}): check `path`")
    while len(files[0].parts) > 1 and len({file.parts[0] for file in files}) == 1:
        files = _inside(files)
    top = {file.parts[0] for file in files}
    held_out = top & HELD_OUT_FOLDERS
    if "train" not in top or not held_out:
        return {"train": files}
    if len(top) > 2:
        others = ", ".join(sorted(top - {"train"})[:4])
        raise UserError(
            f"{reader.path} has beside train: {others}; are these splits or classes? "
            "Leave train and one of them, or name two sources in `path` and `held_out_path`"
        )
    return {
        "train": _inside([file for file in files if file.parts[0] == "train"]),
        "held_out": _inside([file for file in files if file.parts[0] in held_out]),
    }


def find_classes(reader: Reader, files: Sequence[ImageFile]) -> tuple[str, ...]:
    """Sorted names of the first-level folders; empty where the images lie flat.

    Raises:
        UserError: some images lie in folders and some do not.
    """
    flat = [file for file in files if len(file.parts) == 1]
    if flat and len(flat) < len(files):
        where = reader.locate(flat[0].name)
        raise UserError(f"{where} lies beside class folders: move it into one, or all images into one folder")
    return () if flat else tuple(sorted({file.parts[0] for file in files}))


def find_labels(reader: Reader, files: Sequence[ImageFile], classes: Sequence[str]) -> Tensor:
    """Class indices, int64 [N], of files in the folders named by `classes`; zeros where there are no classes.

    Raises:
        UserError: an image lies in none of the folders.
    """
    if not classes:
        return torch.zeros(len(files), dtype=torch.int64)
    index = {name: i for i, name in enumerate(classes)}
    for file in files:
        if len(file.parts) == 1 or file.parts[0] not in index:
            where = reader.locate(file.name)
            raise UserError(
                f"{where} is in no class folder of the training images: move it, to {classes[0]} for instance"
            )
    return torch.tensor([index[file.parts[0]] for file in files])


def _is_visible_image(parts: tuple[str, ...]) -> bool:
    # "__MACOSX/._cat.png" is what macOS adds to zips: image names that hold no images.
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(parts[-1]).suffix.lower() in SUFFIXES


def _inside(files: list[ImageFile]) -> list[ImageFile]:
    return [ImageFile(file.name, file.parts[1:]) for file in files]
