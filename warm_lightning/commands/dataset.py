"""`warm dataset`: images from anywhere as one zip in EDM's format."""

import fcntl
import hashlib
import io
import os
import signal
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Literal, NoReturn

import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from warm_lightning.data.decode import Framing
from warm_lightning.data.image_set import StoredImages, store_images
from warm_lightning.data.listing import DATASET_JSON, Listing, image_name, list_images, write_labels
from warm_lightning.data.readers import reason
from warm_lightning.data.sources import expand, open_reader
from warm_lightning.data.stream import Loader
from warm_lightning.errors import UserError, check
from warm_lightning.records import writable_folder

CHUNK = 32
MAX_RESOLUTION = 4096  # an RGB image of this size takes 50 MB
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip knows


def dataset(
    src: str,
    dst: str,
    resolution: int | None = None,
    crop: Literal["none", "center", "stretch"] = "none",
    split: Literal["train", "held_out", "all"] = "train",
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Make a data set in EDM's format, PNG files and their classes in one zip, of the images of any source.

    The same source and options give the same bytes. The zip appears under its name when it is complete.

    Args:
        src: a folder or zip of images, CIFAR-10's archive for Python (cifar-10-python.tar.gz or its folder), or the
            folder of an LMDB such as LSUN's. Class folders and dataset.json become the classes.
        dst: the zip to make.
        resolution: pixels a side, to which images are resampled by Lanczos' filter. As they are if not given.
        crop: center keeps the largest centred square; stretch resamples all of an image to a square; none refuses
            images that are not square.
        split: which images to take where the source has train and test folders.
        workers: processes that decode and encode; one a CPU core if not given, 0 for this process alone.
        overwrite: replace a zip that is already there.
    """
    allowed = resolution is None or 1 <= resolution <= MAX_RESOLUTION
    check(allowed, f"--resolution {resolution}: it must be from 1 to {MAX_RESOLUTION}")
    check(crop != "stretch" or resolution is not None, "--crop stretch: give the --resolution to stretch images to")
    check(workers is None or workers >= 0, f"--workers {workers}: it must be at least 0")
    target = check_target(src, dst, overwrite)
    reader = open_reader(src)
    splits = list_images(reader)
    names, labels = choose(splits, split, src)
    images = store_images(reader, names, None, Framing(crop, resolution))
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ended_by_sigterm(), whole_file(target, overwrite) as file:
        write_zip(file, images, labels, workers, f"writing {target.name}")
    left_out = sum(len(listing.names) for listing in splits.values()) - len(names)
    rest = f"; {left_out} others left out, for which there is --split" if left_out else ""
    kind = "grey" if images.channels == 1 else "RGB"
    print(f"{target}: {len(images)} {kind} images of {images.size}×{images.size}, {count_classes(labels)}{rest}")


def check_target(src: str, dst: str, overwrite: bool) -> Path:
    """Where to write, in a folder that exists. Raises UserError if that would be no zip, or something else's."""
    check(Path(dst).suffix == ".zip", f"{dst}: the name of the data set must end in .zip")
    try:
        target = Path(dst).expanduser()
        same = os.path.realpath(target) == os.path.realpath(expand(src))
        check(not same, f"{dst} is the source itself: choose another name")
        if target.exists():
            check(overwrite and target.is_file(), f"{dst} exists already: choose another name, or add --overwrite true")
    except (OSError, RuntimeError, ValueError) as error:  # no permission, too long, no such user, NUL
        raise UserError(f"{dst}: cannot be written ({reason(error)}): choose another folder or name") from error
    writable_folder(target.parent)
    return target


def choose(splits: dict[str, Listing], split: str, src: str) -> tuple[Sequence[str], list[int] | None]:
    """Names and classes of the images of a split; None for the latter where there are no classes."""
    check(split != "held_out" or split in splits, f"{src} has no folder of held-out images: leave --split out")
    chosen = list(splits.values()) if split == "all" else [splits[split]]
    names = [name for listing in chosen for name in listing.names]
    if not chosen[0].class_names:
        return names, None
    return names, torch.cat([listing.labels for listing in chosen]).tolist()


def count_classes(labels: list[int] | None) -> str:
    """How many classes training will see: as many as the highest number says, with images or without."""
    if labels is None:
        return "no classes"
    number = max(labels) + 1
    empty = number - len(set(labels))
    return f"{number} classes" + (f", {empty} of them without images" if empty else "")


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the program with code 143, but by an exception, so that nothing stays behind."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the tidying
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def whole_file(target: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A file that gets the target's name when it is complete, and else is removed.

    Until then it lies beside the target under a hidden name. Its lock ends with the process: what a killed one has
    left is written over by the next.

    Raises:
        UserError: another process writes the same, something has got the name meanwhile and is not to be overwritten,
            or the file cannot be written.
    """
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    temporary = target.with_name(f".warm-dataset-{digest[:16]}.partial")
    try:
        with locked(temporary, target) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                publish(temporary, target, overwrite)
            finally:
                with suppress(OSError):
                    if os.path.samestat(temporary.stat(), os.fstat(file.fileno())):  # not the next process's
                        temporary.unlink()
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({reason(error)}): choose another folder") from error


def locked(temporary: Path, target: Path) -> BinaryIO:
    """An empty file of that name, which no other process writes to. Raises UserError where one does."""
    while True:
        file = os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by the workers
            if os.path.samestat(temporary.stat(), os.fstat(file.fileno())):
                file.truncate()
                return file
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise UserError(f"{target} is being written by another conversion: wait, or choose another name") from error
        except FileNotFoundError:
            pass
        file.close()  # it has become the other's complete file, or was removed, before we had the lock


def publish(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give a file its name; unlike renaming, a link replaces nothing. Raises UserError where something has the name."""
    if not overwrite:
        try:
            os.link(temporary, target)
        except FileExistsError as error:
            raise UserError(f"{target} exists by now: choose another name, or add --overwrite true") from error
        except OSError as error:  # some file systems know no links
            if os.path.lexists(target):
                raise UserError(f"{target} exists by now: choose another name, or add --overwrite true") from error
        else:
            return
    os.replace(temporary, target)


def write_zip(file: BinaryIO, images: StoredImages, labels: list[int] | None, workers: int, description: str) -> None:
    """Write images as PNG files and `dataset.json`, uncompressed, showing progress.

    Raises:
        UserError: an image cannot be read, or a worker has died.
        OSError: the file cannot be written.
    """
    names = [image_name(i) for i in range(len(images))]
    chunks = [range(i, min(i + CHUNK, len(images))) for i in range(0, len(images), CHUNK)]
    loader = Loader(PNGFiles(images), sampler=chunks, num_workers=workers)
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        tqdm(total=len(images), desc=description, unit="img") as progress,
    ):
        for chunk, contents in zip(chunks, living(loader), strict=True):
            for i, content in zip(chunk, contents, strict=True):
                add(archive, names[i], content)
            progress.update(len(chunk))
        add(archive, DATASET_JSON, write_labels(names, labels))


def living(loader: Loader) -> Iterator[list[bytes]]:
    """What the workers make. Raises UserError where one has died or cannot be started."""
    try:
        yield from loader
    except OSError as error:
        raise UserError(f"the workers cannot be run ({reason(error)}): use fewer --workers") from error
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # PyTorch's words for a worker that the system ended
            raise
        raise UserError(f"a worker has died ({reason(error)}): is there enough memory? Use fewer --workers") from error


def add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file, of which nothing depends on when or by whom it is added."""
    info = zipfile.ZipInfo(name, EPOCH)
    info.create_system, info.external_attr = 3, 0o644 << 16
    archive.writestr(info, content)


class PNGFiles(Dataset[list[bytes]]):
    """Images as PNG files, a range of them at a time."""

    def __init__(self, images: StoredImages) -> None:
        self.images = images

    def __getitem__(self, index: range) -> list[bytes]:
        return [encode_png(image) for image in self.images.pictures(index)]


def encode_png(image: Image.Image) -> bytes:
    """A PNG file without metadata or compression, which would make reading half as fast for a third of the size."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=0)
    return file.getvalue()
