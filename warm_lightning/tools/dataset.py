"""`warm dataset`: images from anywhere as one zip in EDM's format."""

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from warm_lightning.data.decode import Framing
from warm_lightning.data.edm_format import DATASET_JSON, image_name, write_labels
from warm_lightning.data.layout import Listing, list_images
from warm_lightning.data.loader import Loader
from warm_lightning.data.sources import open_reader
from warm_lightning.data.stored import StoredImages, store_images
from warm_lightning.errors import UserError, check
from warm_lightning.pictures import writable_folder

CHUNK = 32
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip knows


def dataset(
    src: str,
    dst: str,
    resolution: int | None = None,
    crop: Literal["none", "center"] = "none",
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
        crop: center keeps the largest centred square; none refuses images that are not square.
        split: which images to take where the source has train and test folders.
        workers: processes that decode and encode; one a CPU core if not given, 0 for this process alone.
        overwrite: replace a zip that is already there.
    """
    check(resolution is None or resolution >= 1, f"--resolution {resolution}: it must be at least 1")
    check(workers is None or workers >= 0, f"--workers {workers}: it must be at least 0")
    target = check_target(src, dst, overwrite)
    reader = open_reader(src)
    splits = list_images(reader)
    names, labels = choose(splits, split, src)
    images = store_images(reader, names, None, Framing(crop, resolution))
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with whole_file(target) as temporary:
        write_zip(temporary, images, labels, workers)
    classes = "no classes" if labels is None else f"{len(set(labels))} classes"
    left_out = sum(len(listing.names) for listing in splits.values()) - len(names)
    rest = f"; {left_out} others left out, for which there is --split" if left_out else ""
    kind = "grey" if images.channels == 1 else "RGB"
    print(f"{target}: {len(images)} {kind} images of {images.size}×{images.size}, {classes}{rest}")


def check_target(src: str, dst: str, overwrite: bool) -> Path:
    """Where to write, in a folder that exists. Raises UserError if that would be no zip, or something else's."""
    target = Path(dst).expanduser()
    check(target.suffix == ".zip", f"{dst}: the name of the data set must end in .zip")
    check(target.resolve() != Path(src).expanduser().resolve(), f"{dst} is the source itself: choose another name")
    if target.exists():
        check(overwrite and target.is_file(), f"{dst} exists already: choose another name, or add --overwrite true")
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


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A name beside the target for a file that gets the target's name when it is complete, and else is removed."""
    temporary = target.with_name(f".{target.name}.partial")
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_zip(path: Path, images: StoredImages, labels: list[int] | None, workers: int) -> None:
    """Write images as PNG files and `dataset.json`, uncompressed, showing progress.

    Raises:
        UserError: an image cannot be read, or a worker has died.
    """
    names = [image_name(i) for i in range(len(images))]
    chunks = [range(i, min(i + CHUNK, len(images))) for i in range(0, len(images), CHUNK)]
    loader = Loader(PNGFiles(images), sampler=chunks, num_workers=workers)
    try:
        with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with tqdm(total=len(images), desc=f"writing {path.name[1:-8]}", unit="img") as progress:
                for chunk, contents in zip(chunks, loader, strict=True):
                    for i, content in zip(chunk, contents, strict=True):
                        add(archive, names[i], content)
                    progress.update(len(chunk))
            add(archive, DATASET_JSON, write_labels(names, labels))
            archive.close()
            os.fsync(file.fileno())
    except RuntimeError as error:  # what PyTorch says of a worker that the system has ended
        raise UserError(f"a worker has died ({error}): is there enough memory? Use fewer --workers") from error


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
