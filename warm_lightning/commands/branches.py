"""`warm branches`: measures the errors of D and R, and the combination of both that errs least."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from warm_lightning.analysis.branches import BASELINE, Branches, Truth, combinations, error_rows, plot
from warm_lightning.analysis.figures import check_matplotlib
from warm_lightning.commands.shared import Devices, measured_model, random_images
from warm_lightning.config import trained_from_options
from warm_lightning.data import ImageSet
from warm_lightning.errors import check
from warm_lightning.model import DiffusionModel, check_data, one_hot
from warm_lightning.parameterizations import DenoiseDeblur, MeasuredLeastSquares
from warm_lightning.paths import CheckpointText, PathText
from warm_lightning.records import provenance, text_table, to_json, writable_folder, write_file
from warm_lightning.rng import SeedStreams, key
from warm_lightning.spectral import dct, full_precision
from warm_lightning.types import Split, Weights


def branches(
    settings: list[str],
    *,
    ckpt_path: CheckpointText,
    outdir: PathText,
    num_images: int = 1024,
    batch_size: int = 256,
    seed: int = 0,
    weights: Weights = "ema",
    split: Split = "held_out",
    accelerator: str = "auto",
) -> None:
    """Measure how D and R err at every level of the sampler, and combine them so that x̂0 errs least.

    Half of the images give the ratio of the variances of D's and R's own errors, at each level and for each share M of
    the signal. The other half give the errors of x̂0 by Eq. 7, R/(1-M), by D + R, by least squares, and by least squares
    with the measured ratios. Writes branches.json, branches.png, and combination.yaml, with which the model is sampled
    so: add `--config combination.yaml` to `warm test`.

    The `rows` of branches.json have two mean square errors for each level (alpha, beta) and combination: `image_error`
    of x̂0, and `step_error` of (A_s - A_t) x̂0, the detail that the next step restores, since a step does not use x̂0
    where blur has taken nothing; the relative changes of both from those of Eq. 7 (`image_change`, `step_change`), and
    their standard errors over images (`image_change_error`, `step_change_error`). The table shows the step's.

    Args:
        ckpt_path: checkpoint of `warm fit` or its run's folder, or folder of `warm export`, here or as hf://OWNER/NAME
            on the Hub, of a model with the parameterization DenoiseDeblur.
        outdir: folder for the three files.
        num_images: number of images, of which half are fitted to.
        batch_size: images at once.
        seed: chooses the images and their noise.
        weights: ema (averaged) or raw (last).
        split: held_out or train. A network has seen its training images, on which it errs less.
        accelerator: cpu, gpu, mps or auto.
    """
    began = time.perf_counter()
    check(num_images >= 4, f"num_images is {num_images}: it must be at least 4, two for each half")
    check(batch_size >= 1, f"batch_size is {batch_size}: it must be at least 1")
    check(seed >= 0, f"seed is {seed}: it must be 0 or more")
    check_matplotlib()
    trained_model, data = trained_from_options(settings, ckpt_path)
    devices = Devices(accelerator, 1, "32-true")
    model = devices.move(trained_model.model(weights))
    check(
        isinstance(model.parameterization, DenoiseDeblur),
        f"{ckpt_path}: its parameterization is {type(model.parameterization).__name__}, without the two branches of "
        "Table 5d: choose a model with DenoiseDeblur",
    )
    levels = model.sampler.grid.levels(model.process)
    measurement = Branches(model.outputs, model.process, levels)
    _ = measurement.noise  # checks the process before any image is read
    folder = writable_folder(outdir)
    data.prepare_data()
    check_data(model.network, data)
    images = data.split(split)
    check(num_images <= len(images), f"num_images is {num_images}, but {split} has {len(images)} images: lower it")
    truths = partial(true_images, model, images, num_images, seed)
    first, second = range(num_images // 2), range(num_images // 2, num_images)
    with full_precision(model.device):
        fitted = measurement.fit(truths(devices.batches(first, batch_size, "Fitting")))
        errors = measurement.errors(truths(devices.batches(second, batch_size, "Measuring")), combinations(fitted))
    rows = error_rows(errors, levels)
    record = {
        "rows": rows,
        "noise": fitted.noise.tolist(),
        "share": fitted.share.tolist(),
        "ratios": fitted.ratios.tolist(),
        "protocol": {
            **measured_model(trained_model, settings, ckpt_path, weights),
            "num_images": num_images,
            "batch_size": batch_size,
            "images": f"{num_images} of {len(images)} ({split}), half of them fitted to, chosen by seed {seed}",
            "precision": "network float32, states float64",
            **provenance(model.device),
            "seconds": round(time.perf_counter() - began, 1),
        },
    }
    write_file(folder / "branches.json", to_json(record).encode())
    write_file(folder / "combination.yaml", overlay(fitted, ckpt_path).encode())
    plot(rows, folder / "branches.png")
    print(f"{table(rows)}\n\nwritten to {Path(outdir) / 'branches.json'}, branches.png and combination.yaml")


def true_images(
    model: DiffusionModel, images: ImageSet, count: int, seed: int, batches: Iterator[range]
) -> Iterator[Truth]:
    """Images with noise and classes for a model, of some batches of `count` images that the seed chooses."""
    for index, u0, classes in random_images(images, count, seed, batches):
        draws = SeedStreams([key(seed, "branches", "noise", k) for k in index], model.state_device)
        z = dct(model.process.noise(draws.normal(*u0.shape[1:], dtype=u0.dtype), draws))
        yield Truth(u0.to(z), z, one_hot(torch.tensor(classes), model.network.label_dim))


def overlay(fitted: MeasuredLeastSquares, ckpt_path: str) -> str:
    """The YAML with which a model is sampled with measured ratios."""
    numbers = {name: [float(f"{x:.4g}") for x in getattr(fitted, name).tolist()] for name in ("noise", "share")}
    ratios = [[float(f"{x:.4g}") for x in row] for row in fitted.ratios.tolist()]
    arguments = {**numbers, "ratios": ratios}
    combination = {"class_path": "MeasuredLeastSquares", "init_args": arguments}
    section = {"class_path": "DenoiseDeblur", "init_args": {"combination": combination}}
    text = yaml.safe_dump({"model": {"parameterization": section}}, sort_keys=False, default_flow_style=None, width=120)
    return f"# The ratios of the errors of D and R that `warm branches` has measured of {ckpt_path}.\n{text}"


def table(rows: list[dict[str, Any]]) -> str:
    """The changes of the error as text, a line for each level."""
    names = list(dict.fromkeys(row["combination"] for row in rows))
    lines = [["beta", "alpha", f"step's error by {BASELINE}", *(f"{name}, %" for name in names[1:])]]
    for start in range(0, len(rows), len(names)):
        first, *others = rows[start : start + len(names)]
        changes = [f"{100 * row['step_change']:+.2f} ± {100 * row['step_change_error']:.2f}" for row in others]
        lines.append([f"{first['beta']:.4g}", f"{first['alpha']:.4g}", f"{first['step_error']:.4g}", *changes])
    return text_table(lines, "<" + ">" * (len(lines[0]) - 1))
