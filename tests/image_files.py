"""Image files, folders and zips for the tests of data."""

import io
import json
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from warm_lightning.data import ImageDataModule
from warm_lightning.errors import UserError

RNG = np.random.default_rng(0)


def pixels(size: int = 8, channels: int = 3) -> np.ndarray:
    """Random uint8 image, [H, W] or [H, W, channels]."""
    return RNG.integers(0, 256, (size, size, channels), np.uint8).squeeze(-1 if channels == 1 else ())


def encode(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def chw(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image[None] if image.ndim == 2 else image.transpose(2, 0, 1).copy())


def store(where: Path, files: dict[str, bytes], kind: str) -> str:
    """Write files to a new folder or zip; their order in the zip is not the sorted one."""
    path = where / ("images.zip" if kind == "zip" else "images")
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files, reverse=True):
                archive.writestr(name, files[name])
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return str(path)


def store_lmdb(path: Path, files: dict[str, bytes]) -> str:
    """Write files to a new LMDB with their names as keys."""
    with lmdb.open(str(path), map_size=2**28) as database, database.begin(write=True) as transaction:
        for name, content in files.items():
            transaction.put(name.encode(), content)
    return str(path)


def store_edm(where: Path, images: list[np.ndarray], labels: list[int] | None = None, kind: str = "zip") -> str:
    """Write images to a new zip or folder in EDM's format, as its paper's tool names them."""
    names = [f"{i // 1000:05d}/img{i:08d}.png" for i in range(len(images))]
    files = {name: encode(image) for name, image in zip(names, images, strict=True)}
    pairs = None if labels is None else [[name, label] for name, label in zip(names, labels, strict=True)]
    return store(where, files | {"dataset.json": json.dumps({"labels": pairs}).encode()}, kind)


def photographs(cifar10_zip: Path, n: int) -> list[np.ndarray]:
    """Some of CIFAR-10's test images of different classes, uint8 [32, 32, 3]."""
    with zipfile.ZipFile(cifar10_zip) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("test/") and name.endswith(".jpg"))
        chosen = names[:: len(names) // n][:n]
        return [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in chosen]


def refused(data: ImageDataModule, *mentions: str) -> str:
    """The message, of one line and with all mentions, with which the data are refused."""
    with pytest.raises(UserError) as caught:
        data.setup("test")
    message = str(caught.value)
    assert "\n" not in message
    for mention in mentions:
        assert mention in message
    return message
