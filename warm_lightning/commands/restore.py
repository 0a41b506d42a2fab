"""`warm restore`: restores blurred and noisy images by sampling that starts at their level."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warm_lightning.commands.degraded_images import InputImages, open_input_images, pair
from warm_lightning.commands.image_records import RESTORED, add_to_record, check_unmixed, model_settings
from warm_lightning.commands.shared import Devices, Precision, check_finite, load, parse_labels
from warm_lightning.data.listing import SUFFIXES
from warm_lightning.errors import check
from warm_lightning.images import grid as image_grid
from warm_lightning.images import quantise, read_png, write_png
from warm_lightning.metrics.fidelity import Fidelity, Perceptual
from warm_lightning.paths import CheckpointText, PathText, expand
from warm_lightning.records import check_out, provenance, writable_folder
from warm_lightning.restoration import Start, find_start, observe
from warm_lightning.rng import SeedStreams, key, parse_seeds
from warm_lightning.samplers import Euler
from warm_lightning.types import Split, Weights


def restore(
    images: PathText,
    *,
    blur: float,
    noise: float,
    ckpt_path: CheckpointText,
    outdir: PathText,
    mean: bool = False,
    add_noise: bool = False,
    degrade: bool = False,
    clean: PathText | None = None,
    split: Split | None = None,
    seeds: str | None = None,
    steps: int | None = None,
    rho: float | None = None,
    eta: float | None = None,
    labels: str | None = None,
    guidance: float | None = None,
    weights: Weights = "ema",
    limit: int | None = None,
    batch_size: int = 64,
    lpips: Perceptual | None = None,
    grid: PathText | None = None,
    override: list[str] | None = None,
    devices: int | str = 1,
    accelerator: str = "auto",
    precision: Precision = "32-true",
) -> None:
    """Restore blurred and noisy images with a model, whose sampling starts from them instead of from its prior.

    Writes PNG files under the names of the images, and restored.json with the protocol. If the clean images are given,
    it also has PSNR, SSIM and perhaps LPIPS before and after, of 8-bit images.

    Args:
        images: a folder or zip of images, one image file, or an array in a .npy or .npz file, N×C×H×W, N×H×W×C or grey
            N×H×W, of uint8 or of floats in [-1, 1]. Scale floats that are in [0, 1], since they would be taken for
            pale images. Noise in a PNG is clipped and rounded, which the model does not expect: give floats if
            possible.
        blur: standard deviation in pixels of the Gaussian blur of the images, with reflected borders; 0 for none.
        noise: standard deviation of the white normal noise that was added after the blur, for images in [-1, 1]: the
            value in grey levels divided by 127.5.
        ckpt_path: checkpoint of `warm fit` or its run's folder, or folder of `warm export`, here or as hf://OWNER/NAME
            on the Hub.
        outdir: folder for the results, apart from the folders of images and clean images.
        mean: estimate the mean of all possible clean images with one network call (D + R), instead of sampling
            one of them. Yes-or-no options may be given without a value.
        add_noise: if the model was trained on this blur only with more noise, add the missing noise.
        degrade: the images are clean: first blur them and add noise, without clipping. They are also used as the clean
            images.
        clean: the clean images, in the same forms; matched to the images by name without suffix, or by order if either
            is an array or a single file.
        split: train or held_out, the split to take if the folder or zip of images or clean images has splits, such as
            folders train and test. If not given, the held-out images, which training has not seen.
        seeds: of added noise and of stochastic samplers, one per image, such as 0-99; 0, 1, 2 … if not given.
        steps: number of levels of the whole sampling grid, of which those below the start are used. As trained if not
            given.
        rho: see `warm generate`.
        eta: see `warm generate`.
        labels: class of all images, or one per image separated by commas, for models that were trained with classes.
        guidance: see `warm generate`.
        weights: ema (averaged) or raw (last).
        limit: restore only this number of images, the first ones.
        batch_size: images that a device restores at once.
        lpips: the network of LPIPS, whose weights PyTorch downloads: alex, vgg or squeeze; no LPIPS if not given.
        grid: a PNG file for one picture of all images before and after, and the clean images if given.
        override: other settings of the model, such as --override+=sampler.rule=Euler.
        devices: number of devices that share the images.
        accelerator: cpu, gpu, mps or auto.
        precision: of the network; the sampler's state is float64 in any case.
    """
    check(batch_size > 0, f"--batch_size is {batch_size}: it must be at least 1")
    check(limit is None or limit > 0, f"--limit is {limit}: it must be at least 1")
    check(
        not (degrade and clean), "--degrade and --clean: images that are degraded here are clean themselves; give one"
    )
    of_sampler = [n for n, value in {"steps": steps, "rho": rho, "eta": eta}.items() if value is not None]
    of_sampler += [f"override {setting}" for setting in override or [] if setting.startswith("sampler.")]
    check(
        not (mean and of_sampler),
        f"--mean with --{' --'.join(of_sampler)}: the mean takes one call and no sampler; give one",
    )
    chosen = {"sampler.grid.steps": steps, "sampler.grid.rho": rho, "sampler.rule.eta": eta, "guidance": guidance}
    trained_model = load(ckpt_path, weights, chosen, override)
    model = trained_model.model(weights)
    shape = model.image_shape
    start = find_start(model.process, model.sampler.grid, torch.zeros(1, *shape), blur, noise, add_noise)
    given = open_input_images(images, shape, 0.0 if degrade else noise, split)
    count = min(limit or len(given), len(given))
    numbers = parse_seeds(seeds, distinct=False) if seeds is not None else list(range(count))
    check(len(numbers) == count, f"--seeds: {len(numbers)} seeds for {count} images; give one per image, 0-{count - 1}")
    classes = parse_labels(labels, count, model.network.label_dim)
    class_known = classes is not None or not model.network.label_dim or model.label_dropout > 0
    check(class_known, "--labels: the model was trained with classes: give that of all images, or one per image")
    task = Task(given, start, blur, noise, numbers, *find_truth(given, clean, degrade, shape, split))
    task.check_options(split, lpips)
    fidelity = Fidelity(model.network.resolution, lpips)
    check_output_paths([images, *([clean] if clean else [])], outdir, grid, given.names[:count])
    folder = writable_folder(outdir)
    check_out(grid, replace=True)

    all_devices = Devices(accelerator, devices, precision)
    model = all_devices.move(model)
    files = {f"{given.names[k]}.png": numbers[k] for k in range(count)}
    settings = {
        "source": str(Path(images).resolve()),
        "degraded_here": degrade,
        "mean": mean,
        "labels": labels,
        **protocol(task),
        **model_settings(trained_model, weights, precision),
    }
    check_unmixed(folder / RESTORED, settings, files, alone=False)
    all_devices.wait()
    if all_devices.first and task.split:
        print(f"images of the split {task.split}")
    for batch in all_devices.batches(range(count), batch_size, "Restoring"):
        batch_classes = [classes[k] for k in batch] if classes else None
        batch_seeds = [numbers[k] for k in batch]
        restored = check_finite(
            model.restore(model.sampler, start, task.degraded(batch), batch_seeds, batch_classes, mean),
            [given.names[k] for k in batch],
        )
        if batch[0] == 0:
            add_to_record(folder / RESTORED, settings, files, provenance(model.device))
        for k, image in zip(batch, quantise(restored), strict=True):
            write_png(folder / f"{given.names[k]}.png", image)
    if not all_devices.first:
        return
    rule, levels = (Euler(), [start.level] * 2) if mean else (model.sampler.rule, start.levels(model.sampler.grid))
    nfe = model.nfe(rule, levels, bool(classes))
    scores = task.scores(fidelity, folder, batch_size)
    others = {
        "images": images,
        "clean": clean,
        "ckpt_path": ckpt_path,
        "nfe": nfe,
        "num_images": count,
        "seeds": seeds or f"0-{count - 1}",
        "measures": fidelity.describe() if scores else None,
        **provenance(model.device),
        "torchmetrics_version": version("torchmetrics"),
    }
    add_to_record(folder / RESTORED, settings, files, others, scores)
    print(f"{count} images in {folder}, NFE {nfe}")
    if scores:
        print(scores_text(scores, blur, noise))
    if grid:
        task.write_picture(Path(grid), folder)


@dataclass(frozen=True)
class Task:
    """A set of images to restore, with the clean images if these are known.

    Attributes:
        given: the images as given: degraded, or clean ones that are to be degraded.
        start: the start of sampling.
        blur: in pixels.
        noise: standard deviation.
        seeds: one for each image that is to be restored.
        truth: the clean images, if known.
        order: the index in `truth` for each image.
    """

    given: InputImages
    start: Start
    blur: float
    noise: float
    seeds: Sequence[int]
    truth: InputImages | None
    order: Sequence[int]

    @property
    def split(self) -> Split | None:
        """The split of the images or of the clean images; None if neither has splits."""
        return self.given.split or (self.truth.split if self.truth else None)

    def check_options(self, split: Split | None, lpips: Perceptual | None) -> None:
        """Check that a chosen split exists, and that LPIPS has clean images to compare with."""
        exists = not split or bool(self.split)
        check(exists, f"--split {split}: neither the images nor the clean images have splits; leave it out")
        check(lpips is None or self.truth is not None, "--lpips needs the clean images: give --clean or --degrade")

    def degraded(self, index: Sequence[int]) -> Tensor:
        """The degraded images with these indices, float64 [b, C, H, W]: as given, or made of clean ones."""
        images = self.given.take(index)
        if self.truth is not self.given:
            return images
        # This noise has a generator of its own, so that sampling draws the same as for images degraded elsewhere.
        return observe(images, self.blur, self.noise, SeedStreams([key(self.seeds[k], "degrade") for k in index]))

    def views(self, index: Sequence[int], folder: Path) -> list[Tensor]:
        """The degraded, restored and, if known, clean images with these indices: uint8 [b, C, H, W] each."""
        after = torch.stack([read_png(folder / f"{self.given.names[k]}.png") for k in index])
        pictures = [quantise(self.degraded(index)), after]
        return pictures + ([quantise(self.truth.take([self.order[k] for k in index]))] if self.truth else [])

    def scores(self, fidelity: Fidelity, folder: Path, batch_size: int) -> dict[str, dict[str, float]]:
        """Mean measures before and after, with standard errors; empty if the clean images are not known."""
        if self.truth is None:
            return {}
        parts: dict[str, list[Tensor]] = {}
        for i in range(0, len(self.seeds), batch_size):
            before, after, truth = self.views(range(i, min(i + batch_size, len(self.seeds))), folder)
            for when, images in (("before", before), ("after", after)):
                for name, values in fidelity(images, truth).items():
                    parts.setdefault(f"{name}_{when}", []).append(values)
        return {name: summary(torch.cat(values)) for name, values in parts.items()}

    def write_picture(self, grid: Path, folder: Path) -> None:
        """Write one picture of all images, each beside its restored and clean image; about square."""
        views = self.views(range(len(self.seeds)), folder)
        columns = max(1, round(math.sqrt(len(self.seeds) / len(views))))
        write_png(grid, image_grid(torch.stack(views, dim=1).flatten(0, 1), columns=columns * len(views)))
        print(f"before, after{' and truth' if self.truth else ''} in {grid}")


def summary(values: Tensor) -> dict[str, float]:
    """The mean of values, float64 [N], and its standard error if there are several."""
    error = {"error": values.std().item() / math.sqrt(len(values))} if len(values) > 1 else {}
    return {"mean": values.mean().item(), **error}


def find_truth(
    given: InputImages, clean: str | None, degrade: bool, shape: tuple[int, int, int], split: Split | None
) -> tuple[InputImages | None, Sequence[int]]:
    """The clean images, if known, and the index of each image's; raises as `open_input_images` and `pair` do."""
    if degrade:
        return given, range(len(given))
    if clean is None:
        return None, ()
    truth = open_input_images(clean, shape, 0.0, split)
    return truth, pair(given, truth)


def check_output_paths(sources: Sequence[str], outdir: str, grid: str | None, names: Sequence[str]) -> None:
    """Check that results are not written into a folder of given images, where the next run would read them.

    Args:
        sources: the paths of the images and of the clean images, which exist.
        outdir: the folder of the results.
        grid: the file of the picture, if any.
        names: the names of the results, without suffix.

    Raises:
        UserError: a result or the picture would be among or over given images, or the picture over a result.
    """
    check(outdir != "", "--outdir is empty: name a folder for the results")
    folder, picture = Path(outdir).resolve(), Path(grid).resolve() if grid else None
    for source in sources:
        path = expand(source).resolve()
        if path.is_dir():
            among = folder.is_relative_to(path) or path.is_relative_to(folder)
            over = picture is not None and picture.is_relative_to(path)
        else:
            among = path.suffix.lower() in SUFFIXES and folder == path.parent
            over = picture == path
        check(not among, f"--outdir {outdir} is where the images of {source} are: choose a folder apart from them")
        check(not over, f"--grid {grid} is where the images of {source} are: name a file apart from them")
    results = {folder / f"{name}.png" for name in names} | {folder / RESTORED}
    over_result = picture is not None and not results.isdisjoint([picture, *picture.parents])
    check(not over_result, f"--grid {grid} is where a result goes: name another file")


def protocol(task: Task) -> dict[str, Any]:
    """The record of the level of a restoration."""
    level = task.start.level
    return {
        "split": task.split,
        "blur": task.blur,
        "noise": task.noise,
        "level": {name: getattr(level, name).item() for name in ("alpha", "beta", "clock")},
        "noise_added": task.start.fill,
    }


def scores_text(scores: dict[str, dict[str, float]], blur: float, noise: float) -> str:
    """The scores as a line of text."""
    formats = {"psnr": ("PSNR", ".2f", " dB"), "ssim": ("SSIM", ".4f", ""), "lpips": ("LPIPS", ".4f", "")}
    parts = [
        f"{title} {scores[f'{name}_before']['mean']:{digits}} → {scores[f'{name}_after']['mean']:{digits}}{unit}"
        for name, (title, digits, unit) in formats.items()
        if f"{name}_after" in scores
    ]
    return f"blur {blur:g} pixels, noise {noise:g}: {', '.join(parts)}"
