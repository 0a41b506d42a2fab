"""The speed of training, sampling and features on a GPU, as plain data: part of `make gpu-check`."""

import gc
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.timing import peak_memory, rounds, seconds
from experiments.benchmarks.training_step import TrainingStep
from warm_lightning import load_config
from warm_lightning.data.image_set import ImageSet
from warm_lightning.data.stream import Loader, StreamSampler, TrainingStream
from warm_lightning.errors import check
from warm_lightning.metrics import InceptionFeatures
from warm_lightning.metrics.features import Extraction
from warm_lightning.types import Batch


@dataclass(frozen=True)
class Mode:
    """A precision and form in which a step is computed.

    Attributes:
        tf32: whether float32 products and convolutions may round their factors to TF32.
        autocast: of mixed precision; None for none.
        overrides: of the configuration.
    """

    tf32: bool
    autocast: torch.dtype | None = None
    overrides: Mapping[str, Any] | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Set TF32 inside the context."""
        products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(products)
            torch.backends.cudnn.allow_tf32 = convolutions


COMPILED = {"model.compile": True}
MODES = {
    "fp32": Mode(tf32=False),
    "tf32": Mode(tf32=True),
    "bf16": Mode(tf32=True, autocast=torch.bfloat16),
    "bf16, channels-last": Mode(tf32=True, autocast=torch.bfloat16, overrides={"model.channels_last": True}),
    "bf16, compiled": Mode(tf32=True, autocast=torch.bfloat16, overrides=COMPILED),
    "bf16, compiled, channels-last": Mode(
        tf32=True, autocast=torch.bfloat16, overrides={**COMPILED, "model.channels_last": True}
    ),
}
"""Modes by name; the others are compared with the first, float32 without TF32 and not compiled."""


def measure_training(
    paths: list[Path],
    device: str,
    limit: float,
    overrides: Mapping[str, Any] | None = None,
    modes: Mapping[str, Mode] = MODES,
    images: ImageSet | None = None,
) -> dict[str, Any]:
    """Measure full training steps of a configuration in several modes, and the shares of all but the network.

    Args:
        paths: YAML files, see `load_config`.
        device: "cuda", or "cpu" to try this out: peak memory is the process's then.
        limit: seconds for each mode, beside compilation and warming up.
        overrides: see `load_config`; `data.batch_size` is what the device takes at once.
        modes: by name; speeds are compared with the first one's.
        images: to load; None for random ones in memory.

    Returns:
        "modes": seconds per step, images/s, peak memory, seconds of the first step (compilation, choice of
            kernels), speed over the first mode's. "parts": seconds per step of the data loader in the training process
            with the copy to the device, of augmentation, and of the rest of Algorithm 1 but for the network (DCT,
            blur, noise, loss). "shares": those in units of each mode's step.
    """
    overrides = overrides or {}
    speeds, batch_size, parameters = {}, 0, 0
    for name, mode in modes.items():
        start_counting(device)
        with mode.active():
            step = TrainingStep(paths, {**overrides, **(mode.overrides or {})}, device, mode.autocast)
            batch_size = step.batch_size
            parameters = sum(p.numel() for p in step.module.network.parameters())
            first = seconds(step)
            times = rounds({"step": step}, f"{paths[0].stem}, {name}", limit)["step"]
        step_seconds = statistics.median(times)
        speeds[name] = {
            "step_seconds": step_seconds,
            "images_per_second": batch_size / step_seconds,
            "peak_memory_bytes": peak_memory(device),
            "first_step_seconds": first,
            "rounds": len(times),
        }
        del step  # before the next one takes memory
    slowest = next(iter(speeds.values()))["step_seconds"]
    for speed in speeds.values():
        speed["speed_over_first"] = slowest / speed["step_seconds"]
    parts = measure_parts(paths, device, limit, overrides, images)
    shares = {
        mode: {part: part_seconds / speed["step_seconds"] for part, part_seconds in parts.items()}
        for mode, speed in speeds.items()
    }
    return {"parameters": parameters, "batch_size": batch_size, "modes": speeds, "parts": parts, "shares": shares}


def measure_parts(
    paths: list[Path], device: str, limit: float, overrides: Mapping[str, Any], images: ImageSet | None
) -> dict[str, float]:
    """The seconds per step that data, augmentation and the rest of the forward process take."""
    step = TrainingStep(paths, overrides, device)
    network = step.module.network
    images = images or random_images(4 * step.batch_size, network.image_channels, network.resolution)
    check(
        images.shape == (network.image_channels, network.resolution, network.resolution),
        f"images are {images.shape}, but {paths[0]} is for {network.image_channels} channels at {network.resolution}",
    )
    batches = loaded(images, step.batch_size, device)
    calls = {"data": lambda: next(batches), "augmentation": step.augment, "all but the network": step.forward_process}
    times = rounds(calls, f"{paths[0].stem}, parts of a step", limit)
    medians = {name: statistics.median(of_rounds) for name, of_rounds in times.items()}
    rest = medians["all but the network"] - medians["augmentation"]
    return {"data": medians["data"], "augmentation": medians["augmentation"], "blur, noise and loss": rest}


def random_images(count: int, channels: int, size: int) -> ImageSet:
    """Images of noise in memory, without classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet.without_classes(pixels)


def loaded(images: ImageSet, batch_size: int, device: str) -> Iterator[Batch]:
    """Batches of the training stream on a device, without end, loaded by this process."""
    stream, sampler = TrainingStream(images, seed=0), StreamSampler(lambda: 0, batch_size)
    for batch in Loader(stream, sampler=sampler, pin_memory=device == "cuda"):
        yield Batch(*(part.to(device, non_blocking=True) for part in batch))


def measure_sampling(
    paths: list[Path],
    device: str,
    limit: float,
    overrides: Mapping[str, Any] | None = None,
    batch_size: int = 256,
    modes: Mapping[str, Mode] | None = None,
) -> dict[str, Any]:
    """Measure images/s with averaged weights and the configuration's sampler, in modes without compilation.

    Args:
        paths: see `measure_training`.
        device: see there.
        limit: see there.
        overrides: see there.
        batch_size: images at once.
        modes: by name; None for float32 without TF32, and mixed precision.
    """
    modes = modes or {name: MODES[name] for name in ("fp32", "bf16")}
    speeds: dict[str, Any] = {}
    for name, mode in modes.items():
        start_counting(device)
        module = load_config(list(paths), {**(overrides or {}), **(mode.overrides or {})})[0].to(device)
        model, sampler, seeds = module.model(), module.model().sampler, range(batch_size)
        with mode.active(), torch.autocast(device, mode.autocast, enabled=mode.autocast is not None):
            sample = partial(model.sample, sampler, seeds)
            times = rounds({"sample": sample}, f"Sampling, {name}", limit, minimum=1)["sample"]
        rate = batch_size / statistics.median(times)
        speeds[name] = {"nfe": sampler.nfe, "images_per_second": rate, "peak_memory_bytes": peak_memory(device)}
        del module, model, sample
    return {"batch_size": batch_size, "modes": speeds}


def measure_inception(device: str, limit: float, batch_size: int = 256, size: int = 32) -> dict[str, Any]:
    """Measure images/s through the features of FID as scores use them, uint8 to float32, in full precision.

    The weights are those that `warm test` would find, or random ones of the same layout: the speed is the same.

    Raises:
        UserError: torch-fidelity is not installed.
    """
    images = random_images(batch_size, 3, size).as_tensor()
    start_counting(device)
    with tempfile.TemporaryDirectory() as folder:
        extractor = InceptionFeatures()
        known = extractor.path.is_file()
        if not known:
            extractor = InceptionFeatures(str(random_inception(Path(folder))))
        observe = Extraction(extractor, batch_size, device)
        times = rounds({"features": lambda: observe(images)}, "Inception", limit)["features"]
    rate = batch_size / statistics.median(times)
    weights = ("published" if extractor.describe()["published_weights"] else "other") if known else "random"
    memory = peak_memory(device)
    return {"batch_size": batch_size, "weights": weights, "images_per_second": rate, "peak_memory_bytes": memory}


def random_inception(folder: Path) -> Path:
    """Write a file of random weights in the layout of Inception's; returns its path."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Fresh(FeatureExtractorInceptionV3):
        """The network with its random weights: it loads none."""

        def load_state_dict(self, *_: Any, **__: Any) -> None:
            pass

    nothing, path = folder / "nothing.pth", folder / "random.pth"
    torch.save({}, nothing)
    network = Fresh("inception", ["2048"], feature_extractor_weights_path=str(nothing))
    torch.save(network.state_dict(), path)
    return path


def start_counting(device: str) -> None:
    """Forget compiled networks and peaks, so that `peak_memory` counts from here on."""
    torch.compiler.reset()  # compiled networks are remembered
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
