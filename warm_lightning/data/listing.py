"""Which images a source has: their splits, order and classes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from warm_lightning.data.readers import DATA_FILE, CIFARArchive, LMDBReader, Reader, reason
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


SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
OTHER_SUFFIXES = {".apng", ".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl"} | {
    *(".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff")
}
HELD_OUT_FOLDERS = {"test", "val", "valid", "validation", "held_out"}


@dataclass(frozen=True)
class Listing:
    """The images of a split, in order.

    Attributes:
        names: their files, at least one.
        labels: class indices, int64 [N]; zeros where there are no classes.
        class_names: the name of each class; empty where there are none.
    """

    names: tuple[str, ...]
    labels: Tensor
    class_names: tuple[str, ...]


class ImageFile(NamedTuple):
    """An image file: its name in the reader, and the folders and file name left after wrapper and split."""

    name: str
    parts: tuple[str, ...]


def list_images(reader: Reader, classes: tuple[str, ...] | None = None) -> dict[str, Listing]:
    """The images of a source by split: "train", and "held_out" where there is such a split.

    A source with a `dataset.json` is one split in EDM's format, and its file gives the classes, which are named by
    their numbers. An LMDB is one split without classes. Elsewhere `find_splits` and `find_classes` tell.

    Args:
        reader: the source.
        classes: names of the classes, where they are those of another source.

    Raises:
        UserError: there are no images, or some of a format that is not read, or their splits or classes are ambiguous.
    """
    names = reader.names()
    if isinstance(reader, LMDBReader):
        check(bool(names), f"{reader.path} holds no images: it is an empty LMDB")
        return {"train": Listing(tuple(names), torch.zeros(len(names), dtype=torch.int64), ())}
    files = [ImageFile(name, PurePosixPath(name).parts) for name in names]
    files = [file for file in files if _is_visible(file.parts)]
    others = [file.name for file in files if _suffix(file) in OTHER_SUFFIXES]
    if others:
        raise UserError(
            f"{reader.locate(others[0])} is of a format that is not read, as are {len(others) - 1} more files: convert "
            "them to PNG, or remove them"
        )
    files = [file for file in files if _suffix(file) in SUFFIXES]
    packed = any(PurePosixPath(name).name == DATA_FILE.name for name in names)
    advice = "unpack the LMDB that is in it" if packed else "check the path"
    check(bool(files), f"{reader.path} holds no images ({', '.join(sorted(SUFFIXES))}): {advice}")
    where = reader.locate(DATASET_JSON)
    folder = (reader.path / DATASET_JSON).is_dir() or any(name.startswith(f"{DATASET_JSON}/") for name in names)
    check(not folder, f"{where} is a folder, where EDM's format has a file: rename it")
    if DATASET_JSON in names:
        return {"train": _edm_listing(reader, files, classes)}
    splits = find_splits(reader, files)
    if isinstance(reader, CIFARArchive):
        labels, classes = reader.labels(), reader.class_names
        return {s: _listing(f, torch.tensor([labels[file.name] for file in f]), classes) for s, f in splits.items()}
    if classes is None:
        classes = find_classes(reader, splits["train"])
    return {s: _listing(f, find_labels(reader, f, classes), classes) for s, f in splits.items()}


def _edm_listing(reader: Reader, files: Sequence[ImageFile], classes: tuple[str, ...] | None) -> Listing:
    labels = read_labels(reader, [file.name for file in files])
    if labels is None:
        check(not classes, f"{reader.path} has no classes (its {DATASET_JSON} says null), but the training images have")
        return _listing(files, torch.zeros(len(files), dtype=torch.int64), ())
    if classes is None:
        classes = tuple(map(str, range(int(labels.max()) + 1)))
    elif classes and int(labels.max()) >= len(classes):
        raise UserError(f"{reader.path} has class {labels.max()}, but the training images have only {len(classes)}")
    return _listing(files, labels if classes else torch.zeros_like(labels), classes)


def find_splits(reader: Reader, files: list[ImageFile]) -> dict[str, list[ImageFile]]:
    """Image files by split: "train", and "held_out" where the top folders are train and one such.

    Folders that contain everything else are looked through.

    Raises:
        UserError: the splits are ambiguous.
    """
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


def _listing(files: Sequence[ImageFile], labels: Tensor, classes: tuple[str, ...]) -> Listing:
    return Listing(tuple(file.name for file in files), labels, classes)


def _is_visible(parts: tuple[str, ...]) -> bool:
    # "__MACOSX/._cat.png" is what macOS adds to zips: image names that hold no images.
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _suffix(file: ImageFile) -> str:
    return PurePosixPath(file.parts[-1]).suffix.lower()


def _inside(files: list[ImageFile]) -> list[ImageFile]:
    return [ImageFile(file.name, file.parts[1:]) for file in files]
