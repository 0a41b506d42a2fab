"""Image files, folders and zips for the tests of data."""

import io
import zipfile
from pathlib import Path

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


def refused(data: ImageDataModule, *mentions: str) -> str:
    """The message, of one line and with all mentions, with which the data are refused."""
    with pytest.raises(UserError) as caught:
        data.setup("test")
    message = str(caught.value)
    assert "\n" not in message
    for mention in mentions:
        assert mention in message
    return message
