"""The LightningDataModule that all data sets extend."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from warm_lightning.data.decode import UNCHANGED, CropResize
from warm_lightning.data.image_set import ImageSet
from warm_lightning.data.stream import InOrder, Loader, StreamSampler, TrainingStream
from warm_lightning.distributed import strided_batches
from warm_lightning.errors import UserError, check
from warm_lightning.records import tensors_hash
from warm_lightning.types import Batch, Split

VALIDATION_IMAGES = 1000
"""Number of training images that validation uses where none are held out."""

IDENTITY_IMAGES = 16
"""Number of training images by which a resumed run knows them again."""


class _TrainingModule(Protocol):
    """The attributes of the LightningModule that the loaders need."""

    seed: int
    images_seen: int


class ImageDataModule(LightningDataModule, ABC):
    """A data set of square uint8 images.

    A new data set is a subclass that defines `load`, and `prepare_data` if something must be downloaded first.
    The Trainer must have `use_distributed_sampler=False`: the stream itself gives each device its own images.

    Args:
        batch_size: images per optimizer step, summed over all devices and accumulated micro-batches.
        xflip: whether to train on the left-right mirror image of each image, too.
        num_workers: number of processes that prepare batches; 0 prepares them in the training process.
    """

    def __init__(self, batch_size: int = 128, xflip: bool = False, num_workers: int = 0) -> None:
        super().__init__()
        check(batch_size >= 1, f"batch_size must be at least 1, not {batch_size}")
        check(num_workers >= 0, f"num_workers must be at least 0, not {num_workers}")
        self.batch_size = batch_size
        self.xflip = xflip
        self.num_workers = num_workers
        self._sets: dict[str, ImageSet | None] = {}

    @abstractmethod
    def load(self, split: Split) -> ImageSet | None:
        """Read one split.

        Args:
            split: "train" or "held_out".

        Returns:
            The images; None if there is no held-out split.

        Raises:
            UserError: the data are missing or not in the expected form.
        """

    @property
    def resized(self) -> CropResize:
        """The cropping and resizing of each image when it is read."""
        return UNCHANGED

    @property
    def resolution(self) -> int:
        """Height and width of the images."""
        return self.train_images().shape[-1]

    @property
    def image_channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return self.train_images().shape[0]

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for data without classes."""
        return len(self.train_images().class_names)

    def train_images(self) -> ImageSet:
        """The training images without their mirror images; read at the first call."""
        if "train" not in self._sets:
            self._sets["train"] = self.load("train")
        return cast(ImageSet, self._sets["train"])

    def held_out_images(self) -> ImageSet | None:
        """The held-out images, or None if there are none; read at the first call."""
        if "held_out" not in self._sets:
            held_out = self.load("held_out")
            self._sets["held_out"] = None if held_out is None else self._match_training(held_out)
        return self._sets["held_out"]

    def split(self, name: Split) -> ImageSet:
        """The images of a split, prepared.

        Raises:
            UserError: the data have no held-out images.
        """
        self.prepare_data()
        images = self.train_images() if name == "train" else self.held_out_images()
        check(
            images is not None, "the data have no held-out images: set them aside in --data, or ask for --split train"
        )
        return cast(ImageSet, images)

    def identity(self) -> dict[str, Any]:
        """Facts by which a resumed run knows its training images, wherever they are now; plain data."""
        images = self.train_images()
        some = torch.linspace(0, len(images) - 1, min(IDENTITY_IMAGES, len(images))).round().long()
        return {
            "number of images": len(images),
            "shape": list(images.shape),
            "classes": list(images.class_names),
            "sha256": tensors_hash([("images", images.take(some)), ("labels", images.labels)]),
            "xflip": self.xflip,
        }

    def check_same(self, identity: Mapping[str, Any] | None) -> None:
        """Check that the training images are those of a run.

        Raises:
            UserError: they are others.

        Args:
            identity: of the run's data; None if it is not known, as in checkpoints of older versions.
        """
        ours = self.identity()
        different = [
            f"{name} {value} there, {ours.get(name)} here"
            for name, value in (identity or {}).items()
            if ours.get(name) != value
        ]
        check(
            not different,
            f"the data are not those that this run is trained on ({'; '.join(different[:1])}): give its own, or start "
            "another run with --model.init_from and --trainer.default_root_dir",
        )

    def setup(self, stage: str) -> None:
        """Read both splits.

        Raises:
            UserError: the batch cannot be divided equally among the devices, or is larger than the training set.
        """
        if stage == "fit" and self.trainer is not None:
            _ = self.micro_batch  # checked first, because reading the images may take minutes
        images = self.train_images()
        self.held_out_images()
        if stage == "fit":
            check(
                len(images) >= self.batch_size,
                f"batch_size {self.batch_size} is more than the {len(images)} training images: lower it",
            )

    def train_dataloader(self) -> DataLoader:
        """An endless loader of this device's micro-batches, which begins after the images that training has seen.

        Each item is a `Batch` of batch_size / (devices × accumulate_grad_batches) images. Needs a Trainer whose
        LightningModule has `seed` and `images_seen`.
        """
        micro_batch = self.micro_batch
        trainer = self._attached_trainer()
        module = cast(_TrainingModule, trainer.lightning_module)
        sampler = StreamSampler(lambda: module.images_seen, micro_batch, trainer.global_rank, trainer.world_size)
        return self._loader(self.training_batches(module.seed), sampler)

    def training_batches(self, seed: int) -> Dataset[Batch]:
        """The batches of the training stream by position, for a training seed."""
        return TrainingStream(self.train_images(), seed, self.xflip)

    def val_dataloader(self) -> DataLoader:
        """A loader of the held-out images, or else of a few training images; each image once over all devices."""
        held_out = self.held_out_images()
        images = self.train_images() if held_out is None else held_out
        count = len(images) if held_out is not None else min(VALIDATION_IMAGES, len(images))
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        micro_batch = max(1, self.batch_size // world_size)
        return self._loader(InOrder(images), strided_batches(range(count), micro_batch, rank, world_size))

    def test_dataloader(self) -> Any:
        """The loaders of seeds to sample, which the LightningModule makes; Lightning asks the data for them."""
        return self._attached_trainer().lightning_module.test_dataloader()

    def _loader(self, dataset: Dataset[Batch], sampler: Iterable[range]) -> DataLoader:
        return Loader(
            dataset,
            sampler=sampler,  # its elements are whole micro-batches
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def micro_batch(self) -> int:
        """Number of images of a micro-batch on one device.

        Raises:
            UserError: batch_size cannot be shared equally.
        """
        trainer = self._attached_trainer()
        parts = trainer.world_size * trainer.accumulate_grad_batches
        check(parts > 0, f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}: it must be 1 or more")
        if self.batch_size % parts:
            raise UserError(
                f"batch_size {self.batch_size} cannot be shared equally by {trainer.world_size} devices × "
                f"{trainer.accumulate_grad_batches} accumulated batches: use a multiple of {parts}"
            )
        return self.batch_size // parts

    def _attached_trainer(self) -> Trainer:
        check(self.trainer is not None, "training batches need a Trainer: call Trainer().fit(model, datamodule)")
        return cast(Trainer, self.trainer)

    def _match_training(self, held_out: ImageSet) -> ImageSet:
        """Give held-out images the channels of the training images, and check their shape."""
        channels, size = self.image_channels, self.resolution
        if held_out.shape[0] == 1 < channels:
            held_out = held_out.as_rgb()
        if held_out.shape != (channels, size, size):
            raise UserError(
                f"held-out images are {held_out.shape} (channels, height, width) but training images "
                f"{(channels, size, size)}: convert them"
            )
        return held_out
