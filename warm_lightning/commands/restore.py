"""`warm restore`: clean images for blurred and noisy ones, from where they are on a model's path."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warm_lightning.commands.degraded_images import Pictures, Split, open_pictures, pair
from warm_lightning.commands.shared import Devices, Precision, load, parse_labels
from warm_lightning.data.listing import SUFFIXES
from warm_lightning.data.sources import expand
from warm_lightning.errors import check
from warm_lightning.images import grid as make_picture
from warm_lightning.images import quantise, read_png, write_png
from warm_lightning.metrics.inception import describe, fidelity
from warm_lightning.model import TrainedModel, Weights
from warm_lightning.records import check_out, provenance, to_json, writable_folder, write_file
from warm_lightning.restoration import Start, find_start, observe
from warm_lightning.rng import SeedStreams, key, parse_seeds

RECORD = "restored.json"


def restore(
    images: str,
    *,
    blur: float,
    noise: float,
    ckpt_path: str,
    outdir: str,
    mean: bool = False,
    add_noise: bool = False,
    degrade: bool = False,
    clean: str | None = None,
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
    grid: str | None = None,
    override: list[str] | None = None,
    devices: int | str = 1,
    accelerator: str = "auto",
    precision: Precision = "32-true",
) -> None:
    """Clean images for blurred and noisy ones, by a model that starts from where they are instead of from its prior.

    The results are PNG files by the names of the images, and a protocol, restored.json; with the truth at hand PSNR and
    SSIM too, before and after, of 8-bit images.

    Args:
        images: a folder or zip of images, one image file, or an array in a .npy or .npz file, N×C×H×W, N×H×W×C or grey
            N×H×W, of uint8 or of floats in [-1, 1]; floats in [0, 1] would pass for pale images: scale them. Noise
            in a PNG is clipped and rounded, which the model does not expect: give floats where you have them.
        blur: standard deviation in pixels of their Gaussian blur, with reflected borders; 0 for none.
        noise: standard deviation of the white normal noise that was added after it, images being in [-1, 1]: that in
            grey levels divided by 127.5.
        ckpt_path: checkpoint that `warm fit` wrote, or folder that `warm export` did.
        outdir: folder for the results, apart from images and truth.
        mean: estimate the mean of all clean images that are possible, with one network call (D + R), instead of drawing
            one of them. Yes-or-no options may stand without a value.
        add_noise: where the model knows this blur with more noise only, add what is missing.
        degrade: the images are clean: blur them and add noise first, unclipped. They are then the truth.
        clean: the truth, likewise; matched to the images by name without suffix, or by order where either is an array
            or a single file.
        split: train or held_out, of images and truth in a folder or zip that has such splits: folders train and test,
            for instance. The held-out ones, which training has not seen, if not given.
        seeds: of added noise and of stochastic samplers, one an image, such as 0-99; 0, 1, 2 … if not given.
        steps: sampling levels of the whole grid, of which those below the start are used. As trained if not given.
        rho: see `warm generate`.
        eta: see `warm generate`.
        labels: class of all images, or one an image separated by commas, for models that were trained with classes.
        guidance: see `warm generate`.
        weights: averaged or last.
        limit: restore the first so many images only.
        batch_size: images a device restores at once.
        grid: also write a picture of the images before, after and, where known, in truth to this PNG file.
        override: other settings of the model, such as --override+=sampler.rule=Euler.
        devices: how many devices share the images.
        accelerator: cpu, gpu, mps or auto.
        precision: of the network; the sampler's state is float64 in any case.
    """
    check(batch_size > 0, f"--batch_size is {batch_size}: it must be at least 1")
    check(limit is None or limit > 0, f"--limit is {limit}: it must be at least 1")
    check(not (degrade and clean), "--degrade and --clean: images to be degraded are the truth themselves; give one")
    idle = [n for n, value in {"steps": steps, "rho": rho, "eta": eta}.items() if value is not None]
    idle += [f"override {setting}" for setting in override or [] if setting.startswith("sampler.")]
    check(not (mean and idle), f"--mean with --{' --'.join(idle)}: the mean takes one call and no sampler; give one")
    chosen = {"sampler.grid.steps": steps, "sampler.grid.rho": rho, "sampler.rule.eta": eta, "guidance": guidance}
    trained_model = load(ckpt_path, weights, chosen, override)
    model = trained_model.model(weights)
    shape = model.image_shape
    start = find_start(model.process, model.sampler.grid, torch.zeros(1, *shape), blur, noise, add_noise)
    given = open_pictures(images, shape, 0.0 if degrade else noise, split)
    count = min(limit or len(given), len(given))
    numbers = parse_seeds(seeds) if seeds is not None else list(range(count))
    check(len(numbers) == count, f"--seeds: {len(numbers)} seeds for {count} images; give one an image, 0-{count - 1}")
    classes = parse_labels(labels, count, model.network.label_dim)
    told = classes is not None or not model.network.label_dim or model.label_dropout > 0
    check(told, "--labels: the model was trained with classes: say which the images are of, one or one an image")
    task = Task(given, start, blur, noise, numbers, *find_truth(given, clean, degrade, shape, split))
    check(not split or bool(task.split), f"--split {split}: neither images nor truth have splits; leave it out")
    check_places([images, *([clean] if clean else [])], outdir, grid, given.names[:count])
    folder = writable_folder(outdir)
    check_out(grid)

    machine = Devices(accelerator, devices, precision)
    model = machine.place(model)
    if machine.first and task.split:
        print(f"images of the split {task.split}")
    for batch in machine.batches(count, batch_size, "Restoring"):
        known = [classes[k] for k in batch] if classes else None
        found = model.restore(model.sampler, start, task.before(batch), [numbers[k] for k in batch], known, mean)
        for k, image in zip(batch, quantise(found), strict=True):
            write_png(folder / f"{given.names[k]}.png", image)
    if not machine.first:
        return
    estimates = 1 if mean else model.sampler.rule.evaluations(len(start.levels(model.sampler.grid)) - 1)
    nfe = estimates * (model.calls if classes else 1)  # guidance needs a class
    scores = task.scores(folder, batch_size)
    where = {"images": images, "clean": clean, "split": task.split, "degraded_here": degrade, "ckpt_path": ckpt_path}
    what = {"mean": mean, "nfe": nfe, "num_images": count, "seeds": seeds or f"0-{count - 1}", "labels": labels}
    about = where | what | protocol(task, trained_model, weights)
    write_file(folder / RECORD, to_json({**scores, "protocol": about}).encode())
    print(f"{count} images in {folder}, NFE {nfe}")
    if scores:
        print(line(scores, blur, noise))
    if grid:
        write_png(Path(grid), task.picture(folder))
        print(f"before, after{' and truth' if task.truth else ''} in {grid}")


@dataclass(frozen=True)
class Task:
    """Images to restore.

    Attributes:
        given: the images.
        start: where they are.
        blur: in pixels.
        noise: standard deviation.
        seeds: one an image that is to be restored.
        truth: their truth, if known.
        order: index of each image's truth.
    """

    given: Pictures
    start: Start
    blur: float
    noise: float
    seeds: Sequence[int]
    truth: Pictures | None
    order: Sequence[int]

    @property
    def split(self) -> Split | None:
        """The split that images, truth or both are of, where one of these has some."""
        return self.given.split or (self.truth.split if self.truth else None)

    def before(self, index: Sequence[int]) -> Tensor:
        """Degraded images, float64 [b, C, H, W]: as given, or made of clean ones, which are the truth then."""
        images = self.given.take(index)
        if self.truth is not self.given:
            return images
        # Keyed, so that what is drawn afterwards is the same as for images that were degraded elsewhere.
        return observe(images, self.blur, self.noise, SeedStreams([key(self.seeds[k], "degrade") for k in index]))

    def views(self, index: Sequence[int], folder: Path) -> list[Tensor]:
        """Images before, after and, where known, in truth: uint8 [b, C, H, W] each."""
        after = torch.stack([read_png(folder / f"{self.given.names[k]}.png") for k in index])
        views = [quantise(self.before(index)), after]
        return views + ([quantise(self.truth.take([self.order[k] for k in index]))] if self.truth else [])

    def scores(self, folder: Path, batch_size: int) -> dict[str, dict[str, float]]:
        """Mean PSNR and SSIM to the truth before and after, with standard errors; nothing where it is not known."""
        if self.truth is None:
            return {}
        found: dict[str, list[Tensor]] = {}
        for i in range(0, len(self.seeds), batch_size):
            before, after, truth = self.views(range(i, min(i + batch_size, len(self.seeds))), folder)
            for when, images in (("before", before), ("after", after)):
                for name, values in fidelity(images, truth).items():
                    found.setdefault(f"{name}_{when}", []).append(values)
        whole = {name: torch.cat(parts) for name, parts in found.items()}
        return {name: summary(values) for name, values in whole.items()}

    def picture(self, folder: Path) -> Tensor:
        """All of them beside each other, in as many columns of before, after and truth as make it square."""
        views = self.views(range(len(self.seeds)), folder)
        across = max(1, round(math.sqrt(len(self.seeds) / len(views))))
        return make_picture(torch.stack(views, dim=1).flatten(0, 1), columns=across * len(views))


def summary(values: Tensor) -> dict[str, float]:
    """Mean and, of more than one, its standard error; float64 [N]."""
    error = {"error": values.std().item() / math.sqrt(len(values))} if len(values) > 1 else {}
    return {"mean": values.mean().item(), **error}


def find_truth(
    given: Pictures, clean: str | None, degrade: bool, shape: tuple[int, int, int], split: Split | None
) -> tuple[Pictures | None, Sequence[int]]:
    """The truth of some images, if known, and the index there of each. Raises as `open_pictures` and `pair` do."""
    if degrade:
        return given, range(len(given))
    if clean is None:
        return None, ()
    truth = open_pictures(clean, shape, 0.0, split)
    return truth, pair(given, truth)


def check_places(sources: Sequence[str], outdir: str, grid: str | None, names: Sequence[str]) -> None:
    """Raise UserError where results would be written among given images, which the next run would take for some of
    them, or over them; or a picture over a result.

    Args:
        sources: of images and truth, which exist.
        outdir: folder of the results.
        grid: of the picture, if any.
        names: of the results, without suffix.
    """
    check(outdir != "", "--outdir is empty: name a folder for the results")
    folder, picture = Path(outdir).resolve(), Path(grid).resolve() if grid else None
    for source in sources:
        place = expand(source).resolve()
        if place.is_dir():
            among = folder.is_relative_to(place) or place.is_relative_to(folder)
            over = picture is not None and picture.is_relative_to(place)
        else:
            among = place.suffix.lower() in SUFFIXES and folder == place.parent
            over = picture == place
        check(not among, f"--outdir {outdir} is where the images of {source} are: choose a folder apart from them")
        check(not over, f"--grid {grid} is where the images of {source} are: name a file apart from them")
    results = {folder / f"{name}.png" for name in names} | {folder / RECORD}
    covers = picture is not None and not results.isdisjoint([picture, *picture.parents])
    check(not covers, f"--grid {grid} is where a result goes: name another file")


def protocol(task: Task, trained_model: TrainedModel, weights: Weights) -> dict[str, Any]:
    """What was done, for the record."""
    level, model = task.start.level, trained_model.model(weights)
    return {
        "blur": task.blur,
        "noise": task.noise,
        "level": {name: getattr(level, name).item() for name in ("alpha", "beta", "clock")},
        "noise_added": task.start.fill,
        "sampler": trained_model.config["sampler"] if trained_model.config else None,
        "guidance": model.guidance,
        "weights": weights,
        "weights_sha256": model.weights_hash(),
        "images_seen": trained_model.images_seen,
        "measures": describe(model.network.resolution) if task.truth else None,
        **provenance(model.device),
        "torchmetrics_version": version("torchmetrics"),
    }


def line(scores: dict[str, dict[str, float]], blur: float, noise: float) -> str:
    """The scores in words."""
    psnr, ssim = ([scores[f"{name}_{when}"]["mean"] for when in ("before", "after")] for name in ("psnr", "ssim"))
    level = f"blur {blur:g} pixels, noise {noise:g}"
    return f"{level}: PSNR {psnr[0]:.2f} → {psnr[1]:.2f} dB, SSIM {ssim[0]:.4f} → {ssim[1]:.4f}"
