"""The list of images of a source: their splits, order and classes, from folders or from EDM's `dataset.json`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from warm_lightning.data.readers import LMDB_FILE, CIFARArchive, LMDBReader, Reader
from warm_lightning.errors import UserError, check, error_text

DATASET_JSON = "dataset.json"
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
OTHER_SUFFIXES = {".apng", ".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl"} | {
    *(".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff")
}
"""Formats of images that are not read. Such files cause an error, so that they are not ignored silently."""

# ---- types


@dataclass(frozen=True)
class Listing:
    """The images of a split, in order.

    Attributes:
        names: the names of the files, at least one.
        labels: class indices, int64 [N]; zeros if there are no classes.
        class_names: the name of each class; empty if there are none.
    """

    names: tuple[str, ...]
    labels: Tensor
    class_names: tuple[str, ...]


class ImageFile(NamedTuple):
    """An image file.

    Attributes:
        name: its name in the reader.
        parts: its folders and file name, without the outer folder and the folder of the split.
    """

    name: str
    parts: tuple[str, ...]


# ---- EDM's format

IMAGES_PER_FOLDER = 1000
MAX_CLASS = 100_000  # every class is a column of the network's input


def image_name(i: int) -> str:
    """The name of image i in EDM's format."""
    return f"{i // IMAGES_PER_FOLDER:05}/img{i:08}.png"


def write_labels(names: Sequence[str], labels: Sequence[int] | None) -> bytes:
    """The content of `dataset.json` for images with these classes; None for images without classes."""
    pairs = None if labels is None else [list(pair) for pair in zip(names, labels, strict=True)]
    return json.dumps({"labels": pairs}).encode()


def find_metadata(reader: Reader, names: Sequence[str]) -> list[str]:
    """The names of all files `dataset.json` among `names`, at any depth, but for those in hidden folders.

    Raises:
        UserError: a folder has this name, or a file has it in other letters: it would be passed over without a word.
    """
    found = []
    for name in names:
        parts = PurePosixPath(name).parts
        if DATASET_JSON not in name.lower() or not _is_visible(parts):
            continue
        where = reader.locate(name)
        check(
            DATASET_JSON not in parts[:-1],
            f"{where}: {DATASET_JSON} is a folder, and EDM's format has a file: rename it",
        )
        if parts[-1].lower() == DATASET_JSON:
            check(parts[-1] == DATASET_JSON, f"{where}: EDM's format has {DATASET_JSON} in small letters: rename it")
            found.append(name)
    return found


def read_labels(reader: Reader, metadata: str, names: Sequence[str]) -> Tensor | None:
    """Read the classes of images, int64 [N], from `dataset.json`; None if the file says that there are none.

    Args:
        reader: the source.
        metadata: the name of the file in the reader.
        names: the names of the images in the reader, all below the folder of the file, which names them from there.

    Raises:
        UserError: the file is not in EDM's format, or it has no class for one of the images, two classes for one, or
            a class for an image that does not exist.
    """
    where, folder = reader.locate(metadata), _folder(metadata)
    names = [name.removeprefix(folder) for name in names]
    try:
        content = json.loads(reader.read(metadata))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error_text(error)}): make or download the data set again") from error
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


# ---- splits and classes from folders

HELD_OUT_FOLDERS = {"test", "val", "valid", "validation", "held_out"}


def find_splits(reader: Reader, files: list[ImageFile]) -> dict[str, list[ImageFile]]:
    """Divide image files into splits by their folders.

    If the first-level folders are `train` and one of `HELD_OUT_FOLDERS`, there are the splits "train" and "held_out";
    otherwise all files are "train". Outer folders that contain all the others are skipped first.

    Raises:
        UserError: the splits are ambiguous.
    """
    while len(files[0].parts) > 1 and len({file.parts[0] for file in files}) == 1:
        files = _without_first_folder(files)
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
        "train": _without_first_folder([file for file in files if file.parts[0] == "train"]),
        "held_out": _without_first_folder([file for file in files if file.parts[0] in held_out]),
    }


def find_classes(reader: Reader, files: Sequence[ImageFile]) -> tuple[str, ...]:
    """The sorted names of the first-level folders, which are the classes; empty if no image is in a folder.

    Raises:
        UserError: some images are in folders and some are not.
    """
    flat = [file for file in files if len(file.parts) == 1]
    if flat and len(flat) < len(files):
        where = reader.locate(flat[0].name)
        raise UserError(f"{where} is beside class folders: move it into one, or all images into one folder")
    return () if flat else tuple(sorted({file.parts[0] for file in files}))


def find_labels(reader: Reader, files: Sequence[ImageFile], classes: Sequence[str]) -> Tensor:
    """Class indices, int64 [N], of files in the folders named by `classes`; zeros if there are no classes.

    Raises:
        UserError: an image is in none of the folders.
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


def _without_first_folder(files: list[ImageFile]) -> list[ImageFile]:
    return [ImageFile(file.name, file.parts[1:]) for file in files]


# ---- all images of a source


def list_images(reader: Reader, classes: tuple[str, ...] | None = None) -> dict[str, Listing]:
    """List the images of a source by split: "train", and "held_out" if there is such a split.

    A source with a `dataset.json` above all its images, at any depth, is in EDM's format: it has one split, the file
    gives the classes, and their names are their numbers. Splits as of `find_splits` may have such a file each. An LMDB
    is one split without classes. In other sources, see `find_splits` and `find_classes`.

    Args:
        reader: the source.
        classes: the names of the classes if another source determines them; None for the source's own classes.

    Raises:
        UserError: there are no images, or images of a format that is not read, or their splits or classes are
            ambiguous, or a `dataset.json` does not hold for all images of a split.
    """
    names = reader.names()
    metadata = find_metadata(reader, names)
    if isinstance(reader, LMDBReader):
        check(bool(names), f"{reader.path} holds no images: it is an empty LMDB")
        check(not metadata, f"{reader.path} has a key {DATASET_JSON}, but an LMDB has no classes here: remove it")
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
    holds_lmdb = any(PurePosixPath(name).name == LMDB_FILE.name for name in names)
    advice = "unpack the LMDB that is in it" if holds_lmdb else "check the path"
    check(bool(files), f"{reader.path} holds no images ({', '.join(sorted(SUFFIXES))}): {advice}")
    if metadata:
        return _edm_listings(reader, files, metadata, classes)
    splits = find_splits(reader, files)
    if isinstance(reader, CIFARArchive):
        labels, classes = reader.labels(), reader.class_names
        return {s: _listing(f, torch.tensor([labels[file.name] for file in f]), classes) for s, f in splits.items()}
    if classes is None:
        classes = find_classes(reader, splits["train"])
    return {s: _listing(f, find_labels(reader, f, classes), classes) for s, f in splits.items()}


def _edm_listings(
    reader: Reader, files: list[ImageFile], metadata: list[str], classes: tuple[str, ...] | None
) -> dict[str, Listing]:
    if len(metadata) == 1:
        splits = {"train": files}
        outside = [file.name for file in files if not file.name.startswith(_folder(metadata[0]))]
        if outside:
            raise UserError(
                f"{reader.locate(metadata[0])} is not above {outside[0][:80]}: leave one data set, or give the "
                "path of one"
            )
        above = [metadata]
    else:
        splits = find_splits(reader, files)
        above = [
            [name for name in metadata if all(file.name.startswith(_folder(name)) for file in images)]
            for images in splits.values()
        ]
        if sorted(above) != [[name] for name in metadata]:
            raise UserError(
                f"{reader.locate(metadata[0])} is one of {len(metadata)} files of this name: leave one, above all "
                "images, or one in each of the folders train and test"
            )
    listings = {}
    for (split, images), (name,) in zip(splits.items(), above, strict=True):
        listings[split] = _edm_listing(reader, name, images, classes)
        classes = listings["train"].class_names
    return listings


def _edm_listing(reader: Reader, metadata: str, files: Sequence[ImageFile], classes: tuple[str, ...] | None) -> Listing:
    labels = read_labels(reader, metadata, [file.name for file in files])
    where = reader.path / _folder(metadata)
    if labels is None:
        check(not classes, f"{where} has no classes (its {DATASET_JSON} says null), but the training images have")
        return _listing(files, torch.zeros(len(files), dtype=torch.int64), ())
    if classes is None:
        classes = tuple(map(str, range(int(labels.max()) + 1)))
    elif classes and int(labels.max()) >= len(classes):
        raise UserError(f"{where} has class {labels.max()}, but the training images have only {len(classes)}")
    return _listing(files, labels if classes else torch.zeros_like(labels), classes)


def _listing(files: Sequence[ImageFile], labels: Tensor, classes: tuple[str, ...]) -> Listing:
    return Listing(tuple(file.name for file in files), labels, classes)


def _is_visible(parts: tuple[str, ...]) -> bool:
    # macOS adds files such as "__MACOSX/._cat.png" to zips: they have names of images, but hold none.
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _folder(name: str) -> str:
    """The folder of a file with a slash at its end; empty for the root."""
    return name[: name.rfind("/") + 1]


def _suffix(file: ImageFile) -> str:
    return PurePosixPath(file.parts[-1]).suffix.lower()
