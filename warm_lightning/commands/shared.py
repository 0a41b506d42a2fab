"""Parts of several commands: models with overridden settings, classes, devices that share the work, image sets."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.backends import mps
from tqdm import tqdm

from warm_lightning.commands.image_records import check_listed
from warm_lightning.config import load_checkpoint
from warm_lightning.data.image_set import ImageSet
from warm_lightning.data.sources import Source
from warm_lightning.distributed import strided_batches
from warm_lightning.errors import UserError, check
from warm_lightning.images import dequantise
from warm_lightning.model import DiffusionModel, TrainedModel
from warm_lightning.rng import key
from warm_lightning.spectral import dct
from warm_lightning.types import Weights

if TYPE_CHECKING:
    from warm_lightning.metrics import Extraction, FeatureExtractor

Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]
"""The precision of the network; the state of the sampler is always float64."""


def load(ckpt_path: str, weights: Weights, chosen: Mapping[str, Any], override: list[str] | None) -> TrainedModel:
    """The model of a checkpoint with some of its settings replaced.

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
        trained = load_checkpoint(ckpt_path, {name: overrides[name] for name in outer_first})
    except UserError as error:
        # jsonargparse says "Problem with given class_path '…Euler': … Option 'eta' is not accepted"; a test holds it.
        message = re.search(r"class_path '[\w.]*?(\w+)'.*[Oo]ption '(\w+)' is not accepted", str(error))
        asked = {name.rpartition(".")[2] for name, value in chosen.items() if value is not None}
        if message is None or message[2] not in asked:
            raise
        raise UserError(
            f"--{message[2]}: {message[1]}, with which this model samples, has no {message[2]}; leave it out"
        ) from error
    model = trained.model(weights)  # raises for weights that an exported folder lacks
    for part in model.learners:
        if part is not model.guide or model.guidance != 1:
            part.checked_learned()  # raises for a part that was put in and knows nothing of images
    return trained


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
        raise UserError(f"--labels {labels}: write one class, or one per image separated by commas") from error
    unknown = [c for c in classes if not 0 <= c < label_dim]
    check(not unknown, f"--labels: class {unknown[:1]} is not one of the model's, which are 0 to {label_dim - 1}")
    check(
        len(classes) in (1, count),
        f"--labels: {len(classes)} classes for {count} images; give one, or one per image",
    )
    return classes * count if len(classes) == 1 else classes


def find_device(name: str, option: str) -> torch.device:
    """A device by its name, "auto" being the best there is.

    Args:
        name: auto, cpu, cuda, gpu (the same) or mps.
        option: of the command, for the message.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if mps.is_available() else "cpu"
    try:
        device = torch.device("cuda" if name == "gpu" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built for the device
        reason = str(error).splitlines()[0]
        raise UserError(f"{option} {name}: {reason}: use auto, cpu, cuda or mps") from error
    return device


def check_finite(images: torch.Tensor, names: Sequence[object]) -> torch.Tensor:
    """Check that images [B, C, H, W] have finite pixels only, and return them.

    Raises:
        UserError: one has not; it says which, by its name.
    """
    bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    check(
        not bad,
        f"the image {names[bad[0]] if bad else ''} has pixels that are not finite: use other weights, --precision "
        "32-true, less guidance or more steps",
    )
    return images


class Devices:
    """The devices that share the images of a command, started.

    One device is plain PyTorch; several are Lightning Fabric's, which is imported for them only.

    Args:
        accelerator: cpu, gpu, mps or auto.
        devices: number of devices, or which, as Lightning takes them.
        precision: of the network.

    Attributes:
        rank: number of this device among them.
        count: number of devices.

    Raises:
        UserError: there are no such devices.
    """

    def __init__(self, accelerator: str, devices: int | str, precision: Precision) -> None:
        self.dtype = torch.float64 if precision == "64-true" else torch.float32
        self.mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
        self.rank, self.count = 0, 1
        self.wait: Callable[[], None] = lambda: None
        launched = max(int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_NTASKS"))
        if str(devices) == "1" and launched == 1:
            self.device = find_device(accelerator, "--accelerator")
            return
        from lightning.fabric import Fabric
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        try:
            fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)
        except (RuntimeError, ValueError, TypeError, MisconfigurationException) as error:
            raise UserError(f"--accelerator {accelerator} --devices {devices}: {error}") from error
        fabric.launch()
        self.device, self.wait = fabric.device, fabric.barrier
        self.rank, self.count = fabric.global_rank, fabric.world_size

    @property
    def first(self) -> bool:
        """Whether this is the first of the devices, which does what is done once."""
        return self.rank == 0

    def move(self, model: DiffusionModel) -> DiffusionModel:
        """Move a model's network to this device, in the precision of its weights."""
        model.network.to(self.device, self.dtype)
        return model

    def batches(self, items: range, batch_size: int, title: str) -> Iterator[range]:
        """Batches of this device's share of some indices, with progress; each runs in the network's precision.

        After the last one, the devices wait for each other.
        """
        batches = strided_batches(items, batch_size, self.rank, self.count)
        with tqdm(total=sum(map(len, batches)), unit=" images", desc=title, disable=not self.first) as bar:
            for batch in batches:
                with torch.autocast(self.device.type, self.mixed, enabled=self.mixed is not None):
                    yield batch
                bar.update(len(batch))
        self.wait()


def measured_model(
    trained_model: TrainedModel, settings: list[str], ckpt_path: str, weights: Weights
) -> dict[str, Any]:
    """The record of the model that a command has measured, and of the options and the file that gave it."""
    return {"settings": settings, "ckpt_path": ckpt_path, **trained_model.record(weights)}


def random_images(
    images: ImageSet, count: int, seed: int, batches: Iterator[range]
) -> Iterator[tuple[range, torch.Tensor, list[int]]]:
    """Read `count` images, chosen by the seed, in batches.

    Args:
        images: the set to choose from.
        count: number of images.
        seed: of the choice.
        batches: ranges within 0 … count - 1, of which each is a batch.

    Yields:
        The range, the DCT coefficients of its images, float64 [b, C, H, W], and their classes.
    """
    # The names under which the choice is keyed are those of the command that first made one.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(key(seed, "drift", "images")))[:count]
    for batch in batches:
        chosen = order[batch.start : batch.stop]
        yield batch, dct(dequantise(images.take(chosen), torch.float64)), images.labels[chosen].tolist()


def make_extraction(extractor: "FeatureExtractor", device: str, batch_size: int) -> "Extraction":
    """A feature extractor on a device, "auto" being the best there is.

    Raises:
        UserError: there is no such device.
    """
    from warm_lightning.metrics import Extraction

    check(batch_size > 0, f"--batch_size is {batch_size}: it must be at least 1")
    return Extraction(extractor, batch_size, find_device(device, "--device"))


def open_images(path: str) -> ImageSet:
    """The images of a folder or zip, its training images where it has splits, decoded as they are needed.

    Raises:
        UserError: see `Source`; the path is that of statistics, or `warm generate` has not made all of the images.
    """
    check(not path.endswith(".npz"), f"{path}: images are needed here, not statistics: give a folder or zip")
    source = Source.open(path)
    check_listed(source.reader, path)
    images = source.read("train", cache=False)
    assert images is not None
    return images
