"""The features of the Fréchet inception distance."""

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from warm_lightning.errors import UserError, check
from warm_lightning.metrics.extractors import FeatureExtractor, file_hash, short_count


class InceptionFeatures(FeatureExtractor):
    """Inception-v3 with the weights of 2015 that FID is defined with (Heusel et al. 2017), by torchmetrics.

    2,048 features after the last pooling, and 1,008 logits without bias. Images are resized to 299×299 as
    TensorFlow 1 did, without antialiasing, which is the protocol of published FIDs; grey ones become RGB.

    The weights are read when images first come, so that a configuration that names this extractor can train
    where they are not.

    Args:
        weights_path: torch-fidelity's weights as a file; None for torch hub's cached copy. Nothing is
            downloaded.

    Raises:
        UserError: when images first come, if torch-fidelity is not installed, or the weights are not there
            or are something else.
    """

    frechet_name = "fid"

    def __init__(self, weights_path: str | None = None) -> None:
        super().__init__()
        self.weights_path = weights_path

    @cached_property
    def path(self) -> Path:
        """The file with the weights, whether it is there or not."""
        if self.weights_path:
            return Path(self.weights_path).expanduser()
        return Path(torch.hub.get_dir()) / "checkpoints" / self._url.rpartition("/")[2]

    @property
    def _url(self) -> str:
        installed = find_spec("torch_fidelity") is not None
        check(installed, "InceptionFeatures needs torch-fidelity: pip install 'warm-lightning[inception]'")
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        return URL_INCEPTION_V3

    def _load(self, device: torch.device) -> nn.Module:
        url = self._url
        from torchmetrics.image.fid import NoTrainInceptionV3

        check(
            self.path.is_file(),
            f"{self.path}: no Inception weights: put {url} there, or set `weights_path` to a copy",
        )
        self._check_plain()
        try:
            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(self.path), antialias=False)
        except (RuntimeError, TypeError, AttributeError) as error:  # keys or shapes of something else
            message = f"{self.path} holds other weights than Inception's: put {url.rpartition('/')[2]} there"
            raise UserError(message) from error
        return network.to(device).requires_grad_(False)

    def _check_plain(self) -> None:
        # torch-fidelity reads the file with weights_only=False, which would run what a pickle asks for.
        try:
            torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{self.path} is not a readable file of plain tensors: copy the weights again") from error

    def label(self, num_images: int) -> str:
        return short_count(num_images)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if not hasattr(self, "network"):
            self.network = self._load(images.device)
        features = self.network(images.expand(-1, 3, -1, -1))
        return features, features @ self.network.get_parameter("fc.weight").T

    def describe(self) -> dict[str, Any]:
        return {
            "class": "InceptionFeatures",
            "file": self.path.name,
            "sha256": file_hash(self.path),
            "resize": "299x299, bilinear as in TensorFlow 1, no antialiasing",
        }
