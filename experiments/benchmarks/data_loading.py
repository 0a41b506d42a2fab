"""The images per second that one worker of the data loader delivers, by the format in which they are stored:

    python -m experiments.benchmarks.data_loading

The images are smooth noise, which PNG, JPEG and WebP compress about as well as photographs. With `--datasets`, the
files of the zip in EDM's format are also read from a table of the library `datasets`, which must be installed.
"""

import argparse
import contextlib
import io
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from warm_lightning.commands.dataset import dataset
from warm_lightning.data import HuggingFaceImages, ImageFolder, ImageSet, LSUNChurch
from warm_lightning.data.stream import InOrder, Loader
from warm_lightning.records import text_table

BATCH = 64


def photograph(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """An image of some width and height whose power spectrum falls with frequency, as that of a photograph does."""
    layers = [generator.normal(0, 128 / 2**k, (2 ** (k + 2), 2 ** (k + 2), 3)) for k in range(6)]
    total = np.full((size[1], size[0], 3), 128.0)
    for layer in layers:
        channels = [Image.fromarray(channel.astype(np.float32)) for channel in layer.transpose(2, 0, 1)]
        total += np.stack([np.asarray(c.resize(size, Image.Resampling.BICUBIC)) for c in channels], axis=-1)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The content of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_formats(folder: Path, resolution: int, count: int) -> dict[str, Callable[[], ImageSet]]:
    """Write the same images in every format into a folder; returns functions that open them, by the format."""
    generator = np.random.default_rng(0)
    images = [photograph(generator, (resolution, resolution)) for _ in range(count)]
    (folder / "png").mkdir()
    with zipfile.ZipFile(folder / "jpeg.zip", "w") as archive:
        for i, image in enumerate(images):
            (folder / "png" / f"{i:05}.png").write_bytes(encode(image, "PNG"))
            archive.writestr(f"{i:05}.jpg", encode(image, "JPEG", quality=95))
    with contextlib.redirect_stdout(io.StringIO()):
        dataset(str(folder / "png"), str(folder / "edm.zip"), workers=0)

    def opener(name: str, cache: bool = False) -> Callable[[], ImageSet]:
        return lambda: ImageFolder(str(folder / name), cache=cache).train_images()

    return {
        "memory": opener("edm.zip", cache=True),
        "EDM zip": opener("edm.zip"),
        "JPEG zip": opener("jpeg.zip"),
        "PNG folder": opener("png"),
    }


def write_table(folder: Path) -> dict[str, Callable[[], ImageSet]]:
    """Write the images of the zip in EDM's format as a data set of the library `datasets`."""
    from datasets import Dataset, Image, disable_progress_bars

    disable_progress_bars()
    with zipfile.ZipFile(folder / "edm.zip") as archive:
        files = [archive.read(name) for name in archive.namelist() if name.endswith(".png")]
    rows = Dataset.from_dict({"image": [{"bytes": file, "path": None} for file in files]})
    rows.cast_column("image", Image()).save_to_disk(folder / "table")
    return {"datasets, EDM's files": lambda: HuggingFaceImages(str(folder / "table")).train_images()}


def write_lmdb(folder: Path, count: int) -> dict[str, Callable[[], ImageSet]]:
    """Write an LMDB like LSUN's, of WebP files whose shorter side has 256 pixels; it is read at 128×128."""
    import lmdb

    generator = np.random.default_rng(0)
    with lmdb.open(str(folder / "lmdb"), map_size=2**30) as database, database.begin(write=True) as transaction:
        for i in range(count):
            transaction.put(b"%040x" % i, encode(photograph(generator, (341, 256)), "WEBP", quality=90))
    return {"LMDB of 341×256, cropped and resampled": lambda: LSUNChurch(str(folder / "lmdb")).train_images()}


def images_per_second(images: ImageSet, seconds: float) -> float:
    """The rate of one worker, measured for some seconds after its start."""
    batches = [range(i, min(i + BATCH, len(images))) for i in range(0, len(images), BATCH)]
    loader = iter(Loader(InOrder(images), sampler=cycle(batches), num_workers=1))
    for _ in islice(loader, 4):  # two wait ready from the start
        pass
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        count += len(next(loader).images)
    return count / (time.perf_counter() - began)


def measure_reading(count: int = 512, seconds: float = 1.0, datasets: bool = False) -> dict[str, dict[str, float]]:
    """The images/s of one worker, by resolution and format.

    Args:
        count: images to write in each format.
        seconds: to read each for.
        datasets: whether to measure the library `datasets`, too.
    """
    rates_by_size = {}
    for resolution in (32, 64, 128):
        with tempfile.TemporaryDirectory() as folder:
            formats = write_formats(Path(folder), resolution, count)
            if datasets:
                formats |= write_table(Path(folder))
            if resolution == LSUNChurch.lmdb_resize.resolution:
                formats |= write_lmdb(Path(folder), count // 4)
            rates_by_size[f"{resolution}x{resolution}"] = {
                n: images_per_second(make(), seconds) for n, make in formats.items()
            }
    return rates_by_size


def table(rates_by_size: Mapping[str, Mapping[str, float]]) -> str:
    """The rates as a table for a terminal."""
    rows = [[size, name, f"{rate:,.0f}"] for size, rates in rates_by_size.items() for name, rate in rates.items()]
    return text_table([["size", "format", "images/s"], *rows], "<<>")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=512, help="images in each format")
    parser.add_argument("--datasets", action="store_true", help="measure the library datasets, too")
    arguments = parser.parse_args()
    print(table(measure_reading(arguments.count, datasets=arguments.datasets)))
