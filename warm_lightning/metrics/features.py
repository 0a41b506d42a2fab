"""Feature extractors: from the uint8 images that are scored to features and, with classes, to logits."""

import importlib
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from warm_lightning.data.image_set import ImageSet
from warm_lightning.distributed import gather, progress, rank_and_world_size
from warm_lightning.errors import UserError, check
from warm_lightning.images import dequantise
from warm_lightning.paths import PathText, expand
from warm_lightning.records import file_hash, tensors_hash
from warm_lightning.spectral import full_precision

BATCH_SIZE = 250
"""Images that pass an extractor at once, by default."""
MAX_PIXELS = 3 * 64 * 64
"""Features of an image that `Pixels` allows."""


class FeatureExtractor(nn.Module, ABC):
    """A fixed map from images to features.

    A subclass gives `forward`, `describe` and a `name`.

    Attributes:
        name: the extractor's part in the names of scores; empty for names with a number of images alone.
        counted: whether the name of a score always ends in the number of samples ("fid50k"); if false, it is left out
            when there are as many samples as images of data ("fd_digits").
        frechet_name: "fid" for Inception's own features, otherwise "fd".
        splits: number of parts of the images that the class score is averaged over.
    """

    name: str
    counted = True
    frechet_name: Literal["fd", "fid"] = "fd"
    splits = 1

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [B, C, H, W] → features, float32 [B, F], and logits, float32 [B, K], or None without classes.

        Raises:
            UserError: such images have no features here.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The facts about the extractor that scores must share to be comparable; plain data."""

    def prepare(self) -> None:
        """Get ready, which may take a download; all processes must call this.

        Raises:
            UserError: a file is missing and cannot be downloaded.
        """

    def identity(self) -> dict[str, Any]:
        """The facts that are equal for equal extractors; see `identity`."""
        return identity(self.describe())

    def score_name(self, score: str, num_images: int, reference_images: int | None = None) -> str:
        """The name of a score on a number of images: `kid10k_cifar10_features`, `fid50k`, `fd_digits`.

        Args:
            score: the score's own part of the name, such as "kid".
            num_images: number of samples; see `short_count`.
            reference_images: number of images of data, where known; see `counted`.
        """
        whole = not self.counted and num_images == reference_images
        return score + ("" if whole else short_count(num_images)) + (f"_{self.name}" if self.name else "")


class Pixels(FeatureExtractor):
    """The pixels themselves, grey level / 127.5 − 1, as features.

    A Fréchet distance on them says little by itself: it sees a mean and a covariance, which noise can have too.
    """

    name = "pixel"
    counted = False

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        features = dequantise(images).flatten(1)
        count = features.shape[1]
        check(
            count <= MAX_PIXELS,
            f"Pixels: images of {_shape(images)} have {count} features, too many for a covariance "
            f"(at most {MAX_PIXELS}): use another extractor",
        )
        return features, None

    def describe(self) -> dict[str, Any]:
        return {"class": "Pixels", "features": "grey level / 127.5 - 1"}


class ModuleFeatures(FeatureExtractor):
    """Features from a given module: uint8 [B, C, H, W] → [B, F], or a pair with logits [B, K].

    Args:
        network: the module.
        name: the extractor's part in the names of scores; letters, digits and underscores, or empty.
        source: the module's name in messages.
        kwargs: passed on with the images.
    """

    def __init__(
        self, network: nn.Module, name: str, source: str, kwargs: Mapping[str, bool | int | float | str] | None = None
    ) -> None:
        super().__init__()
        check(bool(re.fullmatch(r"\w*", name)), f"name is {name!r}: use letters, digits and underscores")
        self.network = network
        self.name = name
        self.source = source
        self.kwargs = dict(kwargs or {})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            output = self.network(images, **self.kwargs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            message = f"{self.source} does not take uint8 images of {_shape(images)}: {_last_line(error)}"
            raise UserError(message) from error
        features, logits = output if isinstance(output, tuple) else (output, None)
        for matrix in (features, logits):
            if matrix is not None and (matrix.ndim != 2 or len(matrix) != len(images)):
                raise UserError(
                    f"{self.source} gives shape {list(matrix.shape)} for {len(images)} images: "
                    "it must give [images, features], or a pair of that and [images, classes]"
                )
        return features.float(), None if logits is None else logits.float()


class TorchScriptFeatures(ModuleFeatures):
    """Features from any TorchScript file that maps uint8 [B, C, H, W] to [B, F], or to a pair with logits.

    Resizing and scaling of the images must be in the file. Two examples:

    * StyleGAN2-ADA's `inception-2015-12-05.pt`, the extractor of many published FIDs, which returns the 2,048 features
      instead of class probabilities if asked to. There are no logits then, and so no Inception score:
      `{path: inception-2015-12-05.pt, kwargs: {return_features: true}, frechet_name: fid, name: ""}`
    * an export of DINOv2, with its preprocessing, for FD-DINOv2: `{path: dinov2.pt}` gives `fd50k_dinov2`.

    Args:
        path: the file.
        name: the extractor's part in the names of scores; by default the file's name without its suffix; "" for names
            with a number of images alone, such as `fid50k`.
        kwargs: passed to the module's forward with the images.
        frechet_name: "fid" if these are Inception's features, otherwise "fd".

    Raises:
        UserError: the file is not there or is not TorchScript.
    """

    def __init__(
        self,
        path: PathText,
        name: str | None = None,
        kwargs: dict[str, bool | int | float | str] | None = None,
        frechet_name: Literal["fd", "fid"] = "fd",
    ) -> None:
        file = expand(path)
        check(file.is_file(), f"{file}: no such file: set `path` to a TorchScript file")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=Warning)
                network = torch.jit.load(file, map_location="cpu")
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{file} is not a TorchScript file, or a damaged one: replace it") from error
        super().__init__(network, re.sub(r"\W", "_", file.stem) if name is None else name, str(file), kwargs)
        self.frechet_name = frechet_name
        self.file = file

    def describe(self) -> dict[str, Any]:
        return {
            "class": "TorchScriptFeatures",
            "file": self.file.name,
            "sha256": file_hash(self.file)[:16],
            "kwargs": self.kwargs,
        }


class ImportedFeatures(ModuleFeatures):
    """Features from anything importable: a module, or a class or function that makes one without arguments.

    Args:
        module: "package.module:attribute" or "package.module.attribute" of the module, class or function. The module
            maps uint8 [B, C, H, W] to [B, F], or to a pair with logits [B, K].
        name: the extractor's part in the names of scores.

    Raises:
        UserError: it cannot be imported, or is no module.
    """

    def __init__(self, module: str, name: str) -> None:
        where, _, attribute = module.rpartition(":" if ":" in module else ".")
        try:
            named = getattr(importlib.import_module(where), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"{module!r} cannot be imported ({error}): write package.module:attribute, "
                "and put the package on PYTHONPATH"
            ) from error
        network = named if isinstance(named, nn.Module) or not callable(named) else named()
        if not isinstance(network, nn.Module):
            raise UserError(f"{module!r} gives a {type(network).__name__}: it must be, or return, a torch.nn.Module")
        super().__init__(network, name, repr(module))
        self.module = module

    def describe(self) -> dict[str, Any]:
        weights = tensors_hash(self.network.state_dict().items())
        return {"class": "ImportedFeatures", "module": self.module, "sha256": weights[:16]}


class Enlarged(FeatureExtractor):
    """The features of another extractor, for images that are enlarged to the size that it takes.

    Such a score is never a FID, whatever the extractor is.

    Args:
        extractor: gives the features.
        resolution: height and width to enlarge to.
        interpolation: by which images are enlarged, and then rounded to 8 bits; as PyTorch computes it, with half-pixel
            centres.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        resolution: int = 32,
        interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic",
    ) -> None:
        super().__init__()
        check(resolution >= 1, f"Enlarged: resolution must be at least 1, not {resolution}")
        self.extractor = extractor
        self.resolution = resolution
        self.interpolation = interpolation
        name = extractor.name or type(extractor).__name__.lower().removesuffix("features")
        self.name = f"{name}_at{resolution}"
        self.counted = extractor.counted
        self.splits = extractor.splits

    def prepare(self) -> None:
        self.extractor.prepare()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        side = images.shape[-1]
        check(
            side <= self.resolution,
            f"Enlarged: images of {_shape(images)} are larger than {self.resolution}: raise resolution, or use the "
            "extractor itself",
        )
        mode = "nearest-exact" if self.interpolation == "nearest" else self.interpolation
        enlarged = nn.functional.interpolate(images.float(), size=(self.resolution, self.resolution), mode=mode)
        features, logits = self.extractor(enlarged.round().clamp(0, 255).to(torch.uint8))
        return features, logits

    def describe(self) -> dict[str, Any]:
        chosen = {"resolution": self.resolution, "interpolation": self.interpolation}
        return {"class": "Enlarged", **chosen, "extractor": self.extractor.describe()}

    def identity(self) -> dict[str, Any]:
        return self.describe() | {"extractor": self.extractor.identity()}


def identity(description: Mapping[str, Any]) -> dict[str, Any]:
    """The facts in an extractor's description that are equal for equal extractors, wherever their files lie."""
    return {name: value for name, value in description.items() if name not in ("file", "published_weights")}


def short_count(count: int) -> str:
    """A number of images for a score's name: 50000 → "50k", 1797 → "1797"."""
    return f"{count // 1000}k" if count and count % 1000 == 0 else str(count)


def _shape(images: Tensor) -> str:
    return "×".join(map(str, images.shape[1:]))


def _last_line(error: Exception) -> str:
    # TorchScript's messages are tracebacks, with the error in the last line.
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


class Extraction:
    """A feature extractor in use on a device.

    Args:
        extractor: made ready, moved to `device` and frozen.
        batch_size: images that pass it at once.
        device: where to compute. With several processes, one that they communicate from.

    Attributes:
        feature_device: where features are returned and summed.

    Raises:
        UserError: the extractor cannot be made ready.
    """

    def __init__(
        self, extractor: FeatureExtractor, batch_size: int = BATCH_SIZE, device: torch.device | str = "cpu"
    ) -> None:
        extractor.prepare()
        self.extractor = extractor.to(device).eval().requires_grad_(False)
        self.batch_size = batch_size
        self.device = torch.device(device)
        # Sums over images are in float64, which Apple's GPUs do not have.
        self.feature_device = torch.device("cpu") if self.device.type == "mps" else self.device

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [B, C, H, W] → features, float32 [B, F], and logits, float32 [B, K], if any, on `feature_device`.

        Raises:
            UserError: the images are not uint8, or the extractor does not take them.
        """
        check(images.dtype == torch.uint8, f"scores take uint8 images, not {images.dtype}: quantise them")
        with full_precision(self.device), torch.no_grad():
            features, logits = self.extractor(images.to(self.device))
        return features.to(self.feature_device), None if logits is None else logits.to(self.feature_device)

    def extract(self, images: ImageSet, order: Tensor, title: str) -> tuple[Tensor, Tensor | None]:
        """Features [N, F] and logits of a set's images, shared out over the processes; all get the same.

        Each of W processes extracts every W-th batch. Which images make a batch does not depend on W, so that the bits
        do not either.

        Args:
            images: the set.
            order: numbers of the N images, int64 [N].
            title: of the progress bar.
        """
        batches = order.split(self.batch_size)
        rank, world_size = rank_and_world_size()
        if len(batches) < world_size:
            rank, world_size = 0, 1  # too few to share
        parts = [self(images.take(index)) for index in progress(batches[rank::world_size], title)]
        features = torch.cat([part for part, _ in parts])
        logits = torch.cat([part for _, part in parts if part is not None]) if parts[0][1] is not None else None
        if world_size == 1:
            return features, logits
        turns = torch.arange(len(order)).split(self.batch_size)
        gathered = torch.cat([turn for r in range(world_size) for turn in turns[r::world_size]])
        back = gathered.argsort().to(self.feature_device)
        return torch.cat(gather(features))[back], None if logits is None else torch.cat(gather(logits))[back]
