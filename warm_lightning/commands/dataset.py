"""`warm dataset`: converts images of any source to one zip in EDM's format."""

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

from warm_lightning.data.decode import CropResize
from warm_lightning.data.image_set import ImageFiles, image_files
from warm_lightning.data.listing import DATASET_JSON, Listing, image_name, list_images, write_labels
from warm_lightning.data.sources import open_reader
from warm_lightning.data.stream import WORKER_DIED, Loader
from warm_lightning.distributed import progress
from warm_lightning.errors import UserError, check, error_text
from warm_lightning.paths import PathText, expand
from warm_lightning.records import writable_folder

MAX_RESOLUTION = 4096  # an RGB image of this size takes 50 MB


def dataset(
    src: PathText,
    dst: PathText,
    resolution: int | None = None,
    crop: Literal["none", "center", "stretch"] = "none",
    split: Literal["train", "held_out", "all"] = "train",
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Convert the images of any source to a data set in EDM's format: one zip of PNG files and their classes.

    Equal sources and options give equal bytes. The zip appears under its name only when it is complete.

    Args:
        src: a folder or zip of images, CIFAR-10's archive for Python (cifar-10-python.tar.gz or its folder), or the
            folder of an LMDB such as LSUN's. Class folders and dataset.json become the classes.
        dst: the zip to make.
        resolution: height and width to which images are resampled by Lanczos' filter; unchanged if not given.
        crop: center cuts out the largest centred square; stretch resamples the whole image to a square; none refuses
            images that are not square.
        split: the images to convert if the source has train and test folders.
        workers: number of processes that decode and encode; one per CPU core if not given, 0 for this process alone.
        overwrite: replace a zip that already exists.
    """
    allowed = resolution is None or 1 <= resolution <= MAX_RESOLUTION
    check(allowed, f"--resolution {resolution}: it must be from 1 to {MAX_RESOLUTION}")
    check(crop != "stretch" or resolution is not None, "--crop stretch: give the --resolution to stretch images to")
    check(workers is None or workers >= 0, f"--workers {workers}: it must be at least 0")
    target = check_target(src, dst, overwrite)
    reader = open_reader(src)
    splits = list_images(reader)
    names, labels = choose_images(splits, split, src)
    images = image_files(reader, names, None, CropResize(crop, resolution))
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with exit_on_sigterm(), atomic_file(target, overwrite) as file:
        write_zip(file, images, labels, workers, f"writing {target.name}")
    left_out = sum(len(listing.names) for listing in splits.values()) - len(names)
    rest = f"; {left_out} others left out, see --split" if left_out else ""
    kind = "grey" if images.channels == 1 else "RGB"
    print(f"{target}: {len(images)} {kind} images of {images.size}×{images.size}, {describe_classes(labels)}{rest}")


def check_target(src: str, dst: str, overwrite: bool) -> Path:
    """Check that the data set can be written to `dst`; makes its folder.

    Raises:
        UserError: the name does not end in .zip, is that of the source or of an existing file, or cannot be written.
    """
    check(Path(dst).suffix == ".zip", f"{dst}: the name of the data set must end in .zip")
    try:
        target = expand(dst)
        same = os.path.realpath(target) == os.path.realpath(expand(src))
        check(not same, f"{dst} is the source itself: choose another name")
        if target.exists():
            check(overwrite and target.is_file(), f"{dst} exists already: choose another name, or add --overwrite true")
    except (OSError, RuntimeError, ValueError) as error:  # no permission, too long, no such user, NUL
        raise UserError(f"{dst}: cannot be written ({error_text(error)}): choose another folder or name") from error
    writable_folder(target.parent)
    return target


def choose_images(splits: dict[str, Listing], split: str, src: str) -> tuple[Sequence[str], list[int] | None]:
    """Names and classes of the images of a split; the classes are None if the source has none."""
    check(split != "held_out" or split in splits, f"{src} has no folder of held-out images: leave --split out")
    chosen = list(splits.values()) if split == "all" else [splits[split]]
    names = [name for listing in chosen for name in listing.names]
    if not chosen[0].class_names:
        return names, None
    return names, torch.cat([listing.labels for listing in chosen]).tolist()


def describe_classes(labels: list[int] | None) -> str:
    """The number of classes in words: the highest class plus one, of which some may have no images."""
    if labels is None:
        return "no classes"
    number = max(labels) + 1
    empty = number - len(set(labels))
    return f"{number} classes" + (f", {empty} of them without images" if empty else "")


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exit with code 143 inside the `with` block, so that temporary files are removed."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def atomic_file(target: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a file that gets the target's name when the `with` block ends, and is removed if an error ends it.

    Until then it lies beside the target under a hidden name and is locked. A killed process loses its lock, and the
    next process writes over the file that it left.

    Raises:
        UserError: another process is writing this target, or a file of this name has appeared meanwhile and must not
            be overwritten, or the file cannot be written.
    """
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    temporary = target.with_name(f".warm-dataset-{digest[:16]}.partial")
    try:
        with open_locked(temporary, target) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                publish(temporary, target, overwrite)
            finally:
                with suppress(OSError):
                    if os.path.samestat(
                        temporary.stat(), os.fstat(file.fileno())
                    ):  # not if another process has made it anew
                        temporary.unlink()
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error_text(error)}): choose another folder") from error


def open_locked(temporary: Path, target: Path) -> BinaryIO:
    """Open the temporary file of a target, empty and locked against other processes.

    Raises:
        UserError: another process holds the lock.
    """
    while True:
        file = os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike the lock of flock, not inherited by the workers
            if os.path.samestat(temporary.stat(), os.fstat(file.fileno())):
                file.truncate()
                return file
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise UserError(f"{target} is being written by another conversion: wait, or choose another name") from error
        except FileNotFoundError:
            pass
        file.close()  # before we got the lock, another process removed the file or gave it its final name: try again


def publish(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give the complete file its final name.

    Without `overwrite` this is done by a link, which, unlike a rename, never replaces a file.

    Raises:
        UserError: there is a file of this name, and `overwrite` is false.
    """
    if not overwrite:
        try:
            os.link(temporary, target)
        except FileExistsError as error:
            raise UserError(f"{target} exists by now: choose another name, or add --overwrite true") from error
        except OSError as error:  # some file systems have no links
            if os.path.lexists(target):
                raise UserError(f"{target} exists by now: choose another name, or add --overwrite true") from error
        else:
            return
    os.replace(temporary, target)


CHUNK = 32  # images in a task of a worker


def write_zip(file: BinaryIO, images: ImageFiles, labels: list[int] | None, workers: int, title: str) -> None:
    """Write images as PNG files and `dataset.json` to an uncompressed zip; shows progress under this title.

    Raises:
        UserError: an image cannot be read, or a worker has died.
        OSError: the file cannot be written.
    """
    names = [image_name(i) for i in range(len(images))]
    chunks = [range(i, min(i + CHUNK, len(images))) for i in range(0, len(images), CHUNK)]
    loader = Loader(PNGFiles(images), sampler=chunks, num_workers=workers)
    contents = (content for chunk in items_of_workers(loader) for content in chunk)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in zip(progress(names, title), contents, strict=True):
            add_member(archive, name, content)
        add_member(archive, DATASET_JSON, write_labels(names, labels))


def items_of_workers(loader: Loader) -> Iterator[list[bytes]]:
    """The items of a loader.

    Raises:
        UserError: a worker has died or cannot be started.
    """
    try:
        yield from loader
    except OSError as error:
        raise UserError(f"the workers cannot be run ({error_text(error)}): use fewer --workers") from error
    except RuntimeError as error:
        if not str(error).startswith(WORKER_DIED):
            raise
        raise UserError(
            f"a worker has died ({error_text(error)}): is there enough memory? Use fewer --workers"
        ) from error


FIRST_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can store


def add_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to a zip; the bytes depend neither on the time nor on the user or system."""
    info = zipfile.ZipInfo(name, FIRST_TIME)
    info.create_system, info.external_attr = 3, 0o644 << 16
    archive.writestr(info, content)


class PNGFiles(Dataset[list[bytes]]):
    """Images as a data set whose item for a range of indices is the list of their PNG files."""

    def __init__(self, images: ImageFiles) -> None:
        self.images = images

    def __getitem__(self, index: range) -> list[bytes]:
        return [encode_png(image) for image in self.images.decode(index)]


def encode_png(image: Image.Image) -> bytes:
    """Encode a PNG file without metadata and without compression.

    Compression would save a third of the size and make reading half as fast.
    """
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=0)
    return file.getvalue()
