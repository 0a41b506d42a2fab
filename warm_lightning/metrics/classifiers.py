"""Small classifiers of the data sets that need no download, whose last hidden layers give features for scores."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from warm_lightning.cache import cached
from warm_lightning.data.image_set import ImageSet
from warm_lightning.data.leaves import RESOLUTIONS, read_leaves
from warm_lightning.data.leaves import VERSION as LEAVES_VERSION
from warm_lightning.distributed import progress
from warm_lightning.errors import check
from warm_lightning.images import dequantise
from warm_lightning.metrics.features import FeatureExtractor

SEED = 0
BATCH = 64
FEATURES = 64
NUM_CLASSES = 10


class ClassifierFeatures(FeatureExtractor):
    """64 features and 10 logits of a convolutional classifier, which is trained when first needed, and cached.

    A subclass gives the images, the layers and the recipe of training.

    Attributes:
        version: of the recipe: another recipe is another score.
        epochs: number of passes over the training images.
        lr: the highest learning rate.
        shape: (C, H, W) of the images.
    """

    counted = False
    version: ClassVar[int]
    epochs: int
    lr: ClassVar[float]
    shape: tuple[int, int, int]

    def __init__(self) -> None:
        super().__init__()
        self.network: nn.Sequential | None = None

    @abstractmethod
    def training_images(self) -> ImageSet:
        """The images that the classifier is trained on."""

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The convolutions, each followed by an activation, up to 4×4 pixels."""

    def vary(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images of the same classes, which the classifier sees in place of those of a batch, [B, C, H, W]."""
        return images

    @property
    def file_name(self) -> str:
        """The name of the classifier's file in the cache."""
        return f"{self.name}-classifier-v{self.version}.pt"

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        shape, size = tuple(images.shape[1:]), "×".join(map(str, self.shape))
        check(shape == self.shape, f"{type(self).__name__} takes images of {size}, not {shape}: use other extractors")
        if self.network is None:
            self.network = self.load_classifier().to(images.device)
        features = self.network[:-1](dequantise(images))
        return features, self.network[-1](features)

    def describe(self) -> dict[str, Any]:
        state = (self.network or self.load_classifier()).state_dict().values()
        digest = hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in state)).hexdigest()
        return {"class": type(self).__name__, "version": self.version, "sha256": digest[:16]}

    def load_classifier(self) -> nn.Sequential:
        """The classifier in evaluation mode, from the cache, or trained and stored there; raises as `cached` does."""
        network = self._build(torch.float32)
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        network.load_state_dict(cached(self.file_name, shapes, self.train_classifier), assign=True)
        return network.eval().requires_grad_(False)

    def train_classifier(self) -> dict[str, Tensor]:
        """Train on all images; the weights do not depend on the caller's random state, threads or contexts.

        In float64, so that other processors' rounding rarely survives the final rounding to float32.

        Returns:
            The weights in float32, by name.
        """
        with _defined_state():
            data = self.training_images()
            generator = torch.Generator().manual_seed(SEED)
            network = self._build(torch.float64).to_empty(device="cpu")
            for layer in network:
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_uniform_(layer.weight, generator=generator)
                    nn.init.zeros_(layer.get_parameter("bias"))
            steps = len(data) // BATCH
            optimizer = torch.optim.AdamW(network.parameters(), self.lr)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, self.epochs * steps)
            orders = (torch.randperm(len(data), generator=generator) for _ in range(self.epochs))
            batches = [batch for order in orders for batch in order[: steps * BATCH].split(BATCH)]
            for batch in progress(batches, f"training the {self.name} classifier, once"):
                images = self.vary(dequantise(data.take(batch), torch.float64), generator)
                loss = nn.functional.cross_entropy(network(images), data.labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            return {name: tensor.detach().float() for name, tensor in network.state_dict().items()}

    def _build(self, dtype: torch.dtype) -> nn.Sequential:
        with torch.device("meta"):  # elsewhere, initial weights would be drawn from the global generator
            layers = self.layers()
            channels = next(layer.out_channels for layer in reversed(layers) if isinstance(layer, nn.Conv2d))
            hidden = nn.Linear(channels * 4 * 4, FEATURES)
            head = nn.Linear(FEATURES, NUM_CLASSES)
            return nn.Sequential(*layers, nn.Flatten(), hidden, nn.SiLU(), head).to(dtype)


class DigitsFeatures(ClassifierFeatures):
    """64 features and 10 logits of a classifier of scikit-learn's digits, 8×8; training takes a few seconds, once."""

    name = "digits"
    version = 1
    epochs = 10
    lr = 4e-3
    shape = (1, 8, 8)

    def training_images(self) -> ImageSet:
        """All 1,797 digits."""
        from warm_lightning.data import Digits

        return Digits().train_images()

    def layers(self) -> list[nn.Module]:
        return [
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
        ]


class LeavesFeatures(ClassifierFeatures):
    """64 features and 10 logits of a classifier of the ten classes of `DeadLeaves`.

    It is trained when first needed, on the first 50,000 images, which takes some minutes, once. Leaves that are turned
    by 90 degrees, mirrored or of the opposite colours are as probable, and so it sees them, too.

    Args:
        resolution: height and width of the images: 8, 16, 32 or 64.
    """

    name = "leaves"
    version = 1
    lr = 2e-3

    def __init__(self, resolution: int = 16) -> None:
        super().__init__()
        check(
            resolution in RESOLUTIONS,
            f"LeavesFeatures: resolution must be one of {RESOLUTIONS}, as the images', not {resolution}",
        )
        self.shape = (3, resolution, resolution)
        self.epochs = 160 // resolution

    @property
    def file_name(self) -> str:
        """The name of the file, which depends on the images, too."""
        return f"leaves{self.shape[-1]}-classifier-v{self.version}-images-v{LEAVES_VERSION}.pt"

    def training_images(self) -> ImageSet:
        """The first 50,000 training images of seed 0."""
        return read_leaves(self.shape[-1], 0, 50_000)

    def vary(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The images of a batch, each under one of 16 symmetries of the law of dead leaves."""
        for symmetry in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2), lambda x: -x):
            chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
            images = torch.where(chosen, symmetry(images), images)
        return images

    def layers(self) -> list[nn.Module]:
        layers, channels = [nn.Conv2d(3, 16, 3, padding=1), nn.SiLU()], 16
        for _ in range((self.shape[-1] // 8).bit_length()):
            layers += [nn.Conv2d(channels, min(2 * channels, 64), 3, stride=2, padding=1), nn.SiLU()]
            channels = min(2 * channels, 64)
        return layers


@contextmanager
def _defined_state() -> Iterator[None]:
    """A context with one thread, gradients, the CPU and no autocast, whatever context it is used in."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.device("cpu"),
        ):
            yield
    finally:
        torch.set_num_threads(threads)
