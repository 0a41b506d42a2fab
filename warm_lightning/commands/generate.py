"""`warm generate`: samples images from a checkpoint alone."""

import math
from pathlib import Path

import torch

from warm_lightning.checkpoints import SECTION, read_checkpoint
from warm_lightning.commands.image_records import GENERATED, add_to_record, check_unmixed, model_settings
from warm_lightning.commands.shared import Devices, Precision, check_finite, load, parse_labels
from warm_lightning.errors import check
from warm_lightning.images import grid as make_picture
from warm_lightning.images import quantise, read_png, write_png
from warm_lightning.paths import CheckpointText, PathText
from warm_lightning.records import check_out, provenance, writable_folder
from warm_lightning.rng import parse_seeds
from warm_lightning.types import Weights


def generate(
    *,
    ckpt_path: CheckpointText,
    seeds: str,
    outdir: PathText,
    steps: int | None = None,
    rho: float | None = None,
    eta: float | None = None,
    bnr: float | None = None,
    labels: str | None = None,
    guidance: float | None = None,
    weights: Weights = "ema",
    batch_size: int = 64,
    grid: PathText | None = None,
    override: list[str] | None = None,
    devices: int | str = 1,
    accelerator: str = "auto",
    precision: Precision = "32-true",
) -> None:
    """Sample images of given seeds; each image is a pure function of weights, seed, class and sampler.

    Writes PNG files, and generated.json, which lists them with their settings. A folder takes images of one setting
    only; more seeds can be added by further calls. Images that are there are not sampled again, so that an interrupted
    call goes on when it is repeated.

    Args:
        ckpt_path: checkpoint that `warm fit` wrote, or its run's folder, or folder that `warm export` wrote, here or as
            hf://OWNER/NAME on the Hugging Face Hub.
        seeds: one per image, such as 0-63 or 1,5,8-11.
        outdir: folder for the images, written as 000000.png by seed.
        steps: sampling levels above 0; NFE is 2·steps - 1 with Heun's rule. As trained if not given.
        rho: ρ of the grid: larger values put more levels at low noise. As trained if not given.
        eta: fresh noise in each step, 0 for none. As trained if not given.
        bnr: blur-to-noise ratio to sample along, for a model that was trained on a range of them.
        labels: class of all images, or one per seed separated by commas; each seed draws its own if not given.
        guidance: weight of classifier-free guidance, 1 for none, for a model trained with label dropout. As trained
            (`model.guidance`) if not given.
        weights: ema (averaged) or raw (last).
        batch_size: images that a device samples at once.
        grid: also write all images as one picture to this PNG file.
        override: other settings of the model, such as --override+=sampler.rule=Euler.
        devices: number of devices that share the seeds.
        accelerator: cpu, gpu, mps or auto.
        precision: of the network; the sampler's state is float64 in any case.
    """
    chosen = {
        "sampler.grid.steps": steps,
        "sampler.grid.rho": rho,
        "sampler.rule.eta": eta,
        "process.path.bnr": bnr,
        "guidance": guidance,
    }
    numbers = parse_seeds(seeds)
    check(batch_size > 0, f"batch_size is {batch_size}: it must be at least 1")
    if bnr is not None:
        check_bnr(ckpt_path)
    trained_model = load(ckpt_path, weights, chosen, override)
    model = trained_model.model(weights)
    classes = parse_labels(labels, len(numbers), model.network.label_dim)
    folder = writable_folder(outdir)
    if grid:
        among = Path(grid).resolve().is_relative_to(folder.resolve())
        check(not among, f"--grid {grid} is in --outdir, where it would count as an image: name a file elsewhere")
        check_out(grid, replace=True)

    all_devices = Devices(accelerator, devices, precision)
    all_devices.move(model)
    files = {f"{seed:06d}.png": classes[k] if classes else None for k, seed in enumerate(numbers)}
    settings = model_settings(trained_model, weights, precision) | {
        "labels": "one for each image" if labels and "," in labels else labels
    }
    check_unmixed(folder / GENERATED, settings, files)
    missing = [k for k, name in enumerate(f"{seed:06d}.png" for seed in numbers) if not is_written(folder / name)]
    all_devices.wait()
    for batch in all_devices.batches(range(len(missing)), batch_size, "Sampling"):
        indices = [missing[i] for i in batch]
        images = model.sample(
            model.sampler, [numbers[k] for k in indices], [classes[k] for k in indices] if classes else None
        )
        check_finite(images, [f"of seed {numbers[k]}" for k in indices])
        if batch[0] == 0:
            add_to_record(folder / GENERATED, settings, files, provenance(model.device))
        for k, image in zip(indices, quantise(images), strict=True):
            write_png(folder / f"{numbers[k]:06d}.png", image)
    if all_devices.first:
        if len(missing) < len(numbers):
            print(f"{len(numbers) - len(missing)} images of these settings were there already")
        finish(folder, numbers, grid)


def is_written(path: Path) -> bool:
    """Whether a file is there and not empty, as one may be after a power failure."""
    return path.is_file() and path.stat().st_size > 0


def check_bnr(ckpt_path: str) -> None:
    """Raise UserError unless a checkpoint's model was trained on a range of BNRs."""
    process = (read_checkpoint(ckpt_path)[SECTION]["config"] or {}).get("process", {})
    path = process.get("init_args", {}).get("path", {}).get("class_path", "")
    check(
        path.endswith(".RandomBNR"),
        "--bnr: this model knows only the path it was trained on; leave the option out, or train a model on a range of "
        "BNRs with configs/method/plane.yaml",
    )


def finish(folder: Path, seeds: list[int], grid: str | None) -> None:
    """Put the files of all devices into one picture, if asked for, and say where everything is."""
    print(f"{len(seeds)} images in {folder}")
    if grid:
        images = torch.stack([read_png(folder / f"{seed:06d}.png") for seed in seeds])
        write_png(Path(grid), make_picture(images, columns=math.ceil(math.sqrt(len(seeds)))))
        print(f"all of them in {grid}")
