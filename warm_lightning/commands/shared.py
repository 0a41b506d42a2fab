"""What the commands that sample share: overrides, classes, and devices that share the work."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.backends import mps
from tqdm import tqdm

from warm_lightning.config import load_checkpoint
from warm_lightning.data import ImageSet
from warm_lightning.data.sources import read_split
from warm_lightning.errors import UserError, check
from warm_lightning.metrics import Extraction, FeatureExtractor
from warm_lightning.metrics.reference_file import SUFFIX
from warm_lightning.model import DiffusionModel, Weights
from warm_lightning.module import DiffusionModule

Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]
"""Of the network; the sampler's state is float64 in any case."""


def load(ckpt_path: str, weights: Weights, chosen: Mapping[str, Any], override: list[str] | None) -> DiffusionModule:
    """The module of a checkpoint with some of its settings replaced.

    Args:
        ckpt_path: see `load_checkpoint`.
        weights: which will be asked for.
        chosen: dotted names and values; None for as trained.
        override: settings as NAME=VALUE, which win where both give the same.

    Raises:
        UserError: see `load_checkpoint`; a setting is not of that form, or one of something that the model has not; or
            the file does not hold the weights.
    """
    overrides: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    for setting in override or []:
        name, equals, value = setting.partition("=")
        check(bool(equals), f"--override {setting!r}: write NAME=VALUE, such as sampler.rule=Euler")
        overrides[name] = value
    # A rule that replaces another drops settings that it does not know, silently; after it, they are errors.
    outer_first = sorted(overrides, key=lambda name: name.removesuffix(".class_path").count("."))
    try:
        module = load_checkpoint(ckpt_path, {name: overrides[name] for name in outer_first})
    except UserError as error:
        lacking = re.search(r"class_path '[\w.]*?(\w+)'.*[Oo]ption '(\w+)' is not accepted", str(error))
        asked = {name.rpartition(".")[2] for name, value in chosen.items() if value is not None}
        if lacking is None or lacking[2] not in asked:
            raise
        raise UserError(
            f"--{lacking[2]}: {lacking[1]}, with which this model samples, has no {lacking[2]}; leave it out"
        ) from error
    module.model(weights)  # refuses weights that an exported folder lacks
    return module


def parse_labels(labels: str | None, count: int, label_dim: int) -> list[int] | None:
    """Classes for `count` images from "3" or "0,1,2,…"; None where not given.

    Raises:
        UserError: if the model has no classes, or they are not one or `count` of its own.
    """
    if labels is None:
        return None
    check(label_dim > 0, "--labels: the model was trained without classes; leave the option out")
    try:
        classes = [int(label) for label in str(labels).split(",")]
    except ValueError as error:
        raise UserError(f"--labels {labels}: write one class, or one an image separated by commas") from error
    unknown = [c for c in classes if not 0 <= c < label_dim]
    check(not unknown, f"--labels: class {unknown[:1]} is not one of the model's, which are 0 to {label_dim - 1}")
    check(
        len(classes) in (1, count),
        f"--labels: {len(classes)} classes for {count} images; give one, or one an image",
    )
    return classes * count if len(classes) == 1 else classes


class Devices:
    """The devices that share images, started.

    Args:
        accelerator: cpu, gpu, mps or auto.
        devices: how many.
        precision: of the network.

    Raises:
        UserError: there are no such devices.
    """

    def __init__(self, accelerator: str, devices: int | str, precision: Precision) -> None:
        try:
            self.fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)
        except (RuntimeError, ValueError, TypeError, MisconfigurationException) as error:
            raise UserError(f"--accelerator {accelerator} --devices {devices}: {error}") from error
        self.fabric.launch()
        self.dtype = torch.float64 if precision == "64-true" else torch.float32

    @property
    def first(self) -> bool:
        """Whether this is the first of them, which does what is done once."""
        return self.fabric.global_rank == 0

    def take(self, model: DiffusionModel) -> DiffusionModel:
        """A model, its network moved to this device."""
        self.fabric.to_device(model.network.to(self.dtype))
        return model

    def batches(self, count: int, batch_size: int, what: str) -> Iterator[range]:
        """Batches of this device's share of 0 … count-1, in the network's precision and with progress; then it waits
        for the others."""
        mine = range(self.fabric.global_rank, count, self.fabric.world_size)
        with tqdm(total=len(mine), unit=" images", desc=what, disable=not self.first) as bar:
            for i in range(0, len(mine), batch_size):
                batch = mine[i : i + batch_size]
                with self.fabric.autocast():
                    yield batch
                bar.update(len(batch))
        self.fabric.barrier()


def make_extraction(extractor: FeatureExtractor, device: str, batch_size: int) -> Extraction:
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
    return Extraction(extractor, batch_size, device)


def open_images(path: str) -> ImageSet:
    """The images of a folder or zip, its training images where it has splits, decoded as they are needed.

    Raises:
        UserError: see `read_split`; the path is that of statistics.
    """
    check(not path.endswith(SUFFIX), f"{path}: images are needed here, not statistics: give a folder or zip")
    images = read_split(path, "train", cache=False)
    assert images is not None
    return images
