"""Inception-v3, whose features the Fréchet inception distance compares, and the default choice of an extractor."""

import os
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from warm_lightning.distributed import rank_and_world_size
from warm_lightning.errors import UserError, check
from warm_lightning.metrics.features import FeatureExtractor, Pixels
from warm_lightning.paths import PathText, expand
from warm_lightning.records import file_hash

VARIABLE = "WARM_INCEPTION_WEIGHTS"
SMALL = 32
"""Height and width of images up to which pixels are the default features."""


def default_extractor(resolution: int) -> FeatureExtractor:
    """The extractor where the configuration names none: pixels up to 32×32, else Inception."""
    return Pixels() if resolution <= SMALL else InceptionFeatures()


class InceptionFeatures(FeatureExtractor):
    """Inception-v3 with the weights of 2015 that FID is defined with (Heusel et al. 2017), by torchmetrics.

    2,048 features after the last pooling, and 1,008 logits without bias. Images are resized to 299×299 as
    TensorFlow 1 did, without antialiasing, which is the protocol of published FIDs; grey ones become RGB. The
    Inception score is the mean over 10 splits, as it is published (Salimans et al. 2016).

    The weights, torch-fidelity's, are the file that `weights_path` names, or else the one that the environment
    variable WARM_INCEPTION_WEIGHTS names, or torch hub's cached copy, or a download to there. They are read for the
    first images, so that a configuration that names this extractor can train where they are missing.

    Args:
        weights_path: file with the weights; see above.

    Raises:
        UserError: for the first images, if torch-fidelity is not installed, or the weights cannot be downloaded or are
            of another network.
    """

    name = ""
    frechet_name = "fid"
    splits = 10

    def __init__(self, weights_path: PathText | None = None) -> None:
        super().__init__()
        self.weights_path = weights_path

    @cached_property
    def path(self) -> Path:
        """The file with the weights, which may be missing."""
        given = self.weights_path or os.environ.get(VARIABLE)
        if given:
            return expand(given)
        return Path(torch.hub.get_dir()) / "checkpoints" / self._url.rpartition("/")[2]

    def prepare(self) -> None:
        """Find or download the weights, once per machine; all processes must call this, and all succeed or none."""
        problem: str | None = None
        if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
            try:
                self._obtain()
            except UserError as error:
                problem = str(error)
        problems = [problem]
        world_size = rank_and_world_size()[1]
        if world_size > 1:
            problems = [None] * world_size
            dist.all_gather_object(problems, problem)
        for problem in problems:
            check(problem is None, str(problem))

    def _obtain(self) -> None:
        url = self._url
        if self.path.is_file():
            return
        given = "weights_path" if self.weights_path else VARIABLE if os.environ.get(VARIABLE) else None
        check(given is None, f"{self.path}: no such file: set {given} to a copy of {url}, or leave it out")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # To another name first, and moved when whole; the file's name ends with the start of its SHA-256.
            torch.hub.download_url_to_file(url, str(self.path), hash_prefix=self._hash_prefix)
        except (OSError, RuntimeError) as error:  # no network is an OSError, a wrong hash a RuntimeError
            raise UserError(
                f"{self.path}: no Inception weights, and they cannot be downloaded ({error}): put {url} there, or set "
                f"`weights_path` or {VARIABLE} to a copy"
            ) from error

    @property
    def _url(self) -> str:
        installed = find_spec("torch_fidelity") is not None
        check(installed, "InceptionFeatures needs torch-fidelity: pip install 'warm-lightning[inception]'")
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        return URL_INCEPTION_V3

    @property
    def _hash_prefix(self) -> str:
        return Path(self._url).stem.rpartition("-")[2]

    def _load(self, device: torch.device) -> nn.Module:
        self._obtain()
        from torchmetrics.image.fid import NoTrainInceptionV3

        self._check_plain()
        try:
            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(self.path), antialias=False)
        except (RuntimeError, TypeError, AttributeError) as error:  # keys or shapes of something else
            name = self._url.rpartition("/")[2]
            raise UserError(f"{self.path} holds other weights than Inception's: put {name} there") from error
        return network.to(device).requires_grad_(False)

    def _check_plain(self) -> None:
        # torch-fidelity reads the file with weights_only=False, which would run what a pickle asks for.
        try:
            torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{self.path} is not a readable file of plain tensors: copy the weights again") from error

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if not hasattr(self, "network"):
            self.network = self._load(images.device)
        features = self.network(images.expand(-1, 3, -1, -1))
        return features, features @ self.network.get_parameter("fc.weight").T

    def describe(self) -> dict[str, Any]:
        digest = file_hash(self.path)[:16]
        return {
            "class": "InceptionFeatures",
            "file": self.path.name,
            "sha256": digest,
            "published_weights": digest.startswith(self._hash_prefix),
            "resize": "299x299, bilinear as in TensorFlow 1, no antialiasing",
        }
