"""A small classifier of scikit-learn's digits, whose last hidden layer gives the features of `fd_digits`."""

import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from warm_lightning.distributed import progress
from warm_lightning.errors import UserError, check
from warm_lightning.images import dequantise
from warm_lightning.metrics.features import FeatureExtractor
from warm_lightning.paths import expand
from warm_lightning.records import write_file

VERSION = 1  # of the recipe below: another recipe is another score
SEED = 0
EPOCHS = 10
BATCH = 64
LEARNING_RATE = 4e-3


class DigitsFeatures(FeatureExtractor):
    """64 features and 10 logits of a convolutional classifier of 8×8 digits.

    It is trained when first needed, which takes a few seconds, and cached in `cache_path()`.
    """

    name = "digits"
    counted = False

    def __init__(self) -> None:
        super().__init__()
        self.network: nn.Sequential | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        shape = tuple(images.shape[1:])
        check(shape == (1, 8, 8), f"DigitsFeatures takes images of 1×8×8, not {shape}: use other extractors")
        if self.network is None:
            self.network = load_classifier().to(images.device)
        features = self.network[:-1](dequantise(images))
        return features, self.network[-1](features)

    def describe(self) -> dict[str, Any]:
        state = (self.network or load_classifier()).state_dict().values()
        digest = hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in state)).hexdigest()
        return {"class": "DigitsFeatures", "version": VERSION, "sha256": digest[:16]}


def cache_path() -> Path:
    """The classifier's file: in `warm_lightning/` under $WARM_CACHE, $XDG_CACHE_HOME or ~/.cache."""
    folder = os.environ.get("WARM_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(folder) / "warm_lightning" / f"digits-classifier-v{VERSION}.pt"


def load_classifier() -> nn.Sequential:
    """The classifier in evaluation mode, from the cache, or trained and stored there.

    Processes that do this at the same time train the same bits, each stores a whole file, and the last file stays.

    Raises:
        UserError: the cache cannot be written; WARM_CACHE names another folder.
    """
    path = cache_path()
    network = _network(torch.float32)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
    except Exception as error:  # a damaged file makes torch raise nearly anything
        if not isinstance(error, FileNotFoundError):
            warnings.warn(f"{path} cannot be read and is made anew ({type(error).__name__})", stacklevel=2)
        state = train_classifier()
        content = io.BytesIO()
        torch.save(state, content)
        try:
            write_file(path, content.getvalue())
        except UserError as error:
            raise UserError(f"{error}, or set WARM_CACHE to a folder elsewhere") from error
        network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def train_classifier() -> dict[str, Tensor]:
    """Train on all 1,797 digits; the weights do not depend on the caller's random state, threads or contexts.

    In float64, so that other processors' rounding rarely survives the final rounding to float32.

    Returns:
        The weights in float32, by name.
    """
    from warm_lightning.data import Digits

    with _defined_state():
        data = Digits().train_images()
        images, labels = dequantise(data.as_tensor(), torch.float64), data.labels
        generator = torch.Generator().manual_seed(SEED)
        network = _network(torch.float64).to_empty(device="cpu")
        for layer in network:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.get_parameter("bias"))
        steps = len(images) // BATCH
        optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, EPOCHS * steps)
        for _ in progress(range(EPOCHS), "training the digits classifier, once"):
            order = torch.randperm(len(images), generator=generator)
            for batch in order[: steps * BATCH].split(BATCH):
                loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return {name: tensor.detach().float() for name, tensor in network.state_dict().items()}


def _network(dtype: torch.dtype) -> nn.Sequential:
    with torch.device("meta"):  # elsewhere, initial weights would be drawn from the global generator
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.SiLU(),
            nn.Linear(64, 10),
        ).to(dtype)


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
