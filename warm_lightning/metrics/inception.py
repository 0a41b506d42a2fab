"""Extractors whose networks come from torch-fidelity: Inception-v3 of FID, VGG-16, CLIP and DINOv2.

InceptionFeatures are the default of large images and give the FID; FidelityFeatures have all of them, and both ways to
resize images that published scores use.
"""

import os
from abc import abstractmethod
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from warm_lightning.distributed import rank_and_world_size
from warm_lightning.errors import UserError, check
from warm_lightning.metrics.features import FeatureExtractor, Pixels
from warm_lightning.paths import PathText, expand
from warm_lightning.records import file_hash, tensors_hash

VARIABLE = "WARM_INCEPTION_WEIGHTS"
SMALL = 32
"""Height and width of images up to which pixels are the default features."""


def default_extractor(resolution: int) -> FeatureExtractor:
    """The extractor where the configuration names none: pixels up to 32×32, else Inception."""
    return Pixels() if resolution <= SMALL else InceptionFeatures()


def check_torch_fidelity(extractor: str) -> None:
    """Check that torch-fidelity is installed, for an extractor of this name; raises UserError."""
    installed = find_spec("torch_fidelity") is not None
    check(installed, f"{extractor} needs torch-fidelity: pip install 'warm-lightning[inception]'")


def inception_url(extractor: str) -> str:
    """Where torch-fidelity has Inception's weights; raises as `check_torch_fidelity` does."""
    check_torch_fidelity(extractor)
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3


class DownloadedFeatures(FeatureExtractor):
    """The features of a network whose weights are a file, which is downloaded where it is missing.

    A subclass gives `url` and `hash_prefix`, and loads the file at `path`. The file is the one that `weights_path`
    names, or else the one that the class's environment variable names, or torch hub's cached copy, or a download to
    there. It is read for the first images, so that a configuration that names the extractor can train where it is
    missing.

    Attributes:
        variable: the name of an environment variable with the path; empty for none.
    """

    variable: ClassVar[str] = ""

    def __init__(self, weights_path: PathText | None = None) -> None:
        super().__init__()
        self.weights_path = weights_path

    @property
    @abstractmethod
    def url(self) -> str:
        """Where the file can be had; raises UserError if its package is not installed."""

    @property
    def hash_prefix(self) -> str:
        """The start of the file's SHA-256, which PyTorch's own files have in their names."""
        return Path(self.url).stem.rpartition("-")[2]

    @cached_property
    def path(self) -> Path:
        """The file with the weights, which may be missing."""
        given = self.weights_path or (os.environ.get(self.variable) if self.variable else None)
        if given:
            return expand(given)
        return Path(torch.hub.get_dir()) / "checkpoints" / self.cached_name

    @property
    def cached_name(self) -> str:
        """The name of the file in torch hub's cache."""
        return self.url.rpartition("/")[2]

    def prepare(self) -> None:
        """Find or download the weights, once per machine; all processes must call this, and all succeed or none."""
        problem: str | None = None
        if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
            try:
                self.obtain()
            except UserError as error:
                problem = str(error)
        problems = [problem]
        world_size = rank_and_world_size()[1]
        if world_size > 1:
            problems = [None] * world_size
            dist.all_gather_object(problems, problem)
        for problem in problems:
            check(problem is None, str(problem))

    def obtain(self) -> None:
        """Download the weights, if they are missing and no path is given; raises UserError."""
        url, name = self.url, type(self).__name__
        if self.path.is_file():
            return
        by_variable = self.variable if self.variable and os.environ.get(self.variable) else None
        given = "weights_path" if self.weights_path else by_variable
        check(given is None, f"{self.path}: no such file: set {given} to a copy of {url}, or leave it out")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # To another name first, and moved when whole.
            torch.hub.download_url_to_file(url, str(self.path), hash_prefix=self.hash_prefix)
        except (OSError, RuntimeError) as error:  # no network is an OSError, a wrong hash a RuntimeError
            raise UserError(
                f"{self.path}: no weights for {name}, and they cannot be downloaded ({error}): put {url} there, or set "
                f"`weights_path`{f' or {self.variable}' if self.variable else ''} to a copy"
            ) from error

    def check_plain(self) -> None:
        """Check that the file holds tensors and nothing else, since torch-fidelity would run what a pickle asks for."""
        try:
            torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{self.path} is not a readable file of plain tensors: copy the weights again") from error


class InceptionFeatures(DownloadedFeatures):
    """Inception-v3 with the weights of 2015 that FID is defined with (Heusel et al. 2017), by torchmetrics.

    2,048 features after the last pooling, and 1,008 logits without bias. Images are resized to 299×299 as
    TensorFlow 1 did, without antialiasing, which is the protocol of published FIDs; grey ones become RGB. The
    Inception score is the mean over 10 splits, as it is published (Salimans et al. 2016).

    Args:
        weights_path: file with torch-fidelity's weights, which the environment variable WARM_INCEPTION_WEIGHTS may name
            as well; see `DownloadedFeatures`.

    Raises:
        UserError: for the first images, if torch-fidelity is not installed, or the weights cannot be downloaded or are
            of another network.
    """

    name = ""
    frechet_name = "fid"
    splits = 10
    variable = VARIABLE

    @property
    def url(self) -> str:
        return inception_url("InceptionFeatures")

    def _load(self, device: torch.device) -> nn.Module:
        self.obtain()
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.check_plain()
        try:
            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(self.path), antialias=False)
        except (RuntimeError, TypeError, AttributeError) as error:  # keys or shapes of something else
            name = self.cached_name
            raise UserError(f"{self.path} holds other weights than Inception's: put {name} there") from error
        return network.to(device).requires_grad_(False)

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
            "published_weights": digest.startswith(self.hash_prefix),
            "resize": "299x299, bilinear as in TensorFlow 1, no antialiasing",
        }


Network = Literal[
    "inception-v3-compat",
    "vgg16",
    "clip-rn50",
    "clip-rn101",
    "clip-rn50x4",
    "clip-rn50x16",
    "clip-rn50x64",
    "clip-vit-b-32",
    "clip-vit-b-16",
    "clip-vit-l-14",
    "clip-vit-l-14-336px",
    "dinov2-vit-s-14",
    "dinov2-vit-b-14",
    "dinov2-vit-l-14",
    "dinov2-vit-g-14",
]
SHORT_NAMES = {"inception-v3-compat": "inception", "dinov2-vit-l-14": "dinov2"}
"""Parts of names of scores that are not the network's name with underscores."""


class FidelityFeatures(DownloadedFeatures):
    """One of the networks of torch-fidelity (Obukhov et al. 2020): Inception-v3, VGG-16, CLIP or DINOv2.

    Two ways to resize images to the network's input are in use, and give different scores: "bicubic" is antialiased and
    rounded to 8 bits, as Pillow does it, in dgm-eval (Stein et al. 2023) and in published FD-DINOv2; "tensorflow" is
    the bilinear filter of TensorFlow 1 without antialiasing, as published FIDs have it and torch-fidelity uses for all
    of its networks. The second one's scores have names that end in `_tf1`: `fd50k_dinov2`, `fd50k_dinov2_tf1`. Grey
    images become RGB. No score of these extractors is called FID: see InceptionFeatures.

    Features are the ones that torch-fidelity uses by default: pooled 2,048 of Inception, the second fully connected
    layer of VGG-16 after its ReLU (precision and recall as Kynkäänniemi et al. 2019 have them), the image embedding of
    CLIP (CMMD), the class token of DINOv2. Inception alone gives logits.

    Args:
        extractor: torch-fidelity's name of the network.
        resize: see above.
        weights_path: file with the weights; see `DownloadedFeatures`. Not for DINOv2, whose code and weights PyTorch
            takes from its hub's cache (`facebookresearch_dinov2_main` in the folder that TORCH_HOME names), or from the
            internet.

    Raises:
        UserError: for the first images, if torch-fidelity is not installed, or the weights cannot be downloaded or are
            of another network.
    """

    def __init__(
        self,
        extractor: Network = "dinov2-vit-l-14",
        resize: Literal["bicubic", "tensorflow"] = "bicubic",
        weights_path: PathText | None = None,
    ) -> None:
        super().__init__(weights_path)
        self.extractor: str = extractor
        self.resize = resize
        self.of_hub, self.of_clip = extractor.startswith("dinov2"), extractor.startswith("clip")
        check(not (self.of_hub and weights_path), f"{extractor} has no weights_path: set TORCH_HOME to a hub's cache")
        short = SHORT_NAMES.get(extractor, extractor.replace("-", "_"))
        self.name = short if resize == "bicubic" else f"{short}_tf1"
        self.splits = 10 if extractor == "inception-v3-compat" else 1

    @property
    def url(self) -> str:
        check_torch_fidelity("FidelityFeatures")
        if self.of_clip:
            from torch_fidelity.feature_extractor_clip import MODEL_URLS

            return MODEL_URLS[self.extractor]
        if self.extractor == "vgg16":
            from torchvision.models import VGG16_Weights

            return VGG16_Weights.IMAGENET1K_V1.url
        return inception_url("FidelityFeatures")

    @property
    def hash_prefix(self) -> str:
        if not self.of_clip:
            return super().hash_prefix
        from torch_fidelity.feature_extractor_clip import MODEL_METADATA

        return MODEL_METADATA[self.extractor]["hash"]

    @property
    def cached_name(self) -> str:
        # torch-fidelity's name of CLIP's files.
        return f"{self.extractor}-{self.hash_prefix}.pt" if self.of_clip else super().cached_name

    def obtain(self) -> None:
        if not self.of_hub:
            super().obtain()
        elif not hasattr(self, "network"):  # PyTorch downloads where it loads
            self.network = self._load()

    def _load(self) -> Any:
        check_torch_fidelity("FidelityFeatures")
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

        kind = FEATURE_EXTRACTORS_REGISTRY[self.extractor]
        layers = list(dict.fromkeys(kind.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")))
        if self.of_hub:
            try:
                return kind(self.extractor, layers)
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"{self.extractor} is not in torch hub's cache, {torch.hub.get_dir()}, and cannot be downloaded "
                    f"({error}): copy the cache of a machine that has it, or set TORCH_HOME to it"
                ) from error
        self.obtain()
        if not self.of_clip:  # which has TorchScript
            self.check_plain()
        try:
            return kind(self.extractor, layers, str(self.path))
        except (RuntimeError, KeyError, TypeError, AttributeError) as error:  # keys or shapes of something else
            message = f"{self.path} holds other weights than those of {self.extractor}: put {self.cached_name} there"
            raise UserError(message) from error

    def prepare(self) -> None:
        super().prepare()
        if not hasattr(self, "network"):
            self.network = self._load()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if not hasattr(self, "network"):
            self.network = self._load().to(images.device)
        images = images.expand(-1, 3, -1, -1)
        if self.resize == "bicubic":  # to the network's own size, at which its own resizing changes nothing
            resized = nn.functional.interpolate(images.float(), size=self._size, mode="bicubic", antialias=True)
            images = resized.round().clamp(0, 255).to(torch.uint8)
        features, *logits = self.network(images)
        return features, logits[0] if logits else None

    @property
    def _size(self) -> tuple[int, int]:
        side = self.network.resolution if self.of_clip else self.network.INPUT_IMAGE_SIZE
        return side, side

    def describe(self) -> dict[str, Any]:
        self.prepare()
        filters = {"bicubic": "antialiased bicubic, rounded", "tensorflow": "bilinear as in TensorFlow 1"}
        return {
            "class": "FidelityFeatures",
            "extractor": self.extractor,
            "sha256": tensors_hash(self.network.state_dict().items())[:16],
            "resize": f"{self._size[0]}x{self._size[1]}, {filters[self.resize]}",
        }
