"""What the commands that look at images share."""

from pathlib import Path

import torch
from torch.backends import mps

from warm_lightning.data import ImageSet
from warm_lightning.data.folder import read_split
from warm_lightning.errors import UserError, check
from warm_lightning.metrics import FeatureExtractor, Observer
from warm_lightning.metrics.statistics import SUFFIX
from warm_lightning.pictures import writable_folder


def make_observer(extractor: FeatureExtractor, device: str, batch_size: int) -> Observer:
    """An extractor on a device, "auto" being the best there is.

    Raises:
        UserError: there is no such device.
    """
    check(batch_size > 0, f"--batch_size is {batch_size}: it must be at least 1")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built for the device
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: {reason}: use auto, cpu, cuda or mps") from error
    return Observer(extractor, batch_size, device)


def open_images(path: str) -> ImageSet:
    """The images of a folder or zip, its training images where it has splits, decoded as they are needed.

    Raises:
        UserError: see `read_split`; the path is that of statistics.
    """
    check(not path.endswith(SUFFIX), f"{path}: images are needed here, not statistics: give a folder or zip")
    images = read_split(path, "train", cache=False)
    assert images is not None
    return images


def check_out(path: str | None) -> None:
    """Raise UserError unless a result can be written to a path, if one is given; before the work that leads to it."""
    if path:
        check(not Path(path).is_dir(), f"{path}: is a folder: name a file")
        writable_folder(Path(path).parent)
