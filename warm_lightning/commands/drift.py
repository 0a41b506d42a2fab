"""`warm drift`: measures how far the trajectories of a sampler drift from truly degraded images."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from warm_lightning.analysis.drift import (
    ALL,
    QUANTITIES,
    Bands,
    DriftMeasurement,
    compare,
    plot,
    summarise,
)
from warm_lightning.analysis.figures import check_matplotlib
from warm_lightning.commands.shared import Devices, measured_model, random_images
from warm_lightning.config import trained_from_options
from warm_lightning.data.image_set import dequantised_batches
from warm_lightning.errors import check
from warm_lightning.model import check_data
from warm_lightning.paths import CheckpointText, PathText
from warm_lightning.records import provenance, text_table, to_json, writable_folder, write_file
from warm_lightning.rng import SeedStreams, key
from warm_lightning.spectral import full_precision, second_moment
from warm_lightning.types import Split, Weights


def drift(
    settings: list[str],
    *,
    ckpt_path: CheckpointText,
    outdir: PathText,
    num_images: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    weights: Weights = "ema",
    bands: int = 3,
    split: Split = "train",
    accelerator: str = "auto",
) -> None:
    """Measure how far trajectories are from truly degraded images, at every level, in all frequencies and in bands.

    Writes drift.png and drift.json. Its `rows` have, for each level (clock, alpha, beta), band ("all", or "1" for the
    lowest frequencies and so on) and quantity, the value for trajectories (`trajectory`), for training images that
    are degraded to the level (`truth`), their difference `drift`, and the standard error of each. The quantities:

    noise: ln of the root mean square of ε̂ = (u - D)/B, the noise that the network estimates; mean over images.
    power: ln of the ratio of the power of u to A² E u0² + B² E z² over all training images, the exact mean power of
    degraded images. Its drift is the value for trajectories alone; the value for degraded images shows the error that
    is due to the number of images.
    residual: ln of the mean square of (1-M)∘x̂0, the detail that the blur M removes and the network adds; left out
    where there is no blur. M is A over its value at the mean, without the scaling of the process. For a network that
    computes x0 by undoing blur, as ε-prediction does, it is mostly amplified error of the network.

    A sampler that adds other noise than the process has, as IHDM's does by design, drifts for that reason.

    `summary` has for each band and quantity the root mean square of drift over levels with equal weights (rms), the
    value of rms that is expected without drift (chance), the mean, and the number of levels: those of the sampler's
    grid that have noise, except for the last and the first, at which trajectories start. `drift`, `power_drift` and
    `residual_drift` are rms in all frequencies; `edges` are the limits of the bands in √λ.

    Args:
        ckpt_path: checkpoint of `warm fit` or its run's folder, or folder of `warm export`, here or as hf://OWNER/NAME
            on the Hub.
        outdir: folder for drift.json and drift.png.
        num_images: number of trajectories, and of degraded images. For models with classes, both have the same classes.
        batch_size: images at once.
        seed: number k. The trajectories have the seeds k·num_images to (k + 1)·num_images - 1; k also chooses the
            images to degrade and their noise.
        weights: ema (averaged) or raw (last).
        bands: number of frequency bands, of equal width in √λ.
        split: train or held_out, the images to degrade. A network that has memorised its training images estimates
            less noise in them than in samples; use held-out images if there are enough.
        accelerator: cpu, gpu, mps or auto.
    """
    began = time.perf_counter()
    check(num_images >= 2, f"num_images is {num_images}: it must be at least 2")
    check(batch_size >= 1, f"batch_size is {batch_size}: it must be at least 1")
    check(seed >= 0, f"seed is {seed}: it must be 0 or more")
    check_matplotlib()
    trained_model, data = trained_from_options(settings, ckpt_path)
    devices = Devices(accelerator, 1, "32-true")
    model = devices.move(trained_model.model(weights)).replaced(guidance=1.0)  # guidance leaves the manifold by design
    like = torch.zeros(1, *model.image_shape, dtype=torch.float64, device=model.state_device)
    frequency_bands = Bands(bands, like)
    measurement = DriftMeasurement(model.process, frequency_bands, like)
    levels = measurement.levels(model.sampler)
    folder = writable_folder(outdir)
    data.prepare_data()
    check_data(model.network, data)
    images = data.split(split)
    check(num_images <= len(images), f"num_images is {num_images}, but {split} has {len(images)} images: lower it")
    trajectories, truth = [], []
    batches = devices.batches(range(num_images), batch_size, "Drift")
    for index, u0, labels in random_images(images, num_images, seed, batches):
        seeds = [seed * num_images + k for k in index]
        noise = SeedStreams([key(seed, "drift", "noise", k) for k in index], like.device)
        classes = labels if model.network.label_dim else None
        with full_precision(model.device), model.conditioned(classes) as estimator:
            run = partial(model.sample, model.sampler, seeds, classes)
            trajectories.append(measurement.of_trajectories(run, estimator))
            truth.append(measurement.of_degraded(estimator, levels, u0.to(like), noise))
    check(
        all(bool(part.isfinite().all()) for part in (*trajectories, *truth)),
        f"the estimates of the network with weights {weights} are not finite: use other weights",
    )
    expected = measurement.expected_power(
        levels, second_moment(dequantised_batches(data.train_images(), "Measuring power"))
    )
    rows = compare(torch.cat(trajectories), torch.cat(truth), expected, levels, frequency_bands)
    summary = summarise(rows)
    rms = {row["quantity"]: row["rms"] for row in summary if row["band"] == ALL}
    record = {
        **{name: rms.get(q) for name, q in zip(("drift", "power_drift", "residual_drift"), QUANTITIES, strict=True)},
        "summary": summary,
        "edges": dict(zip(frequency_bands.names, frequency_bands.edges, strict=True)),
        "rows": rows,
        "protocol": {
            **measured_model(trained_model, settings, ckpt_path, weights),
            "nfe": trained_model.sampler.nfe,
            "precision": "network float32, states float64",
            "num_images": num_images,
            "batch_size": batch_size,
            "seeds": f"{seed * num_images}-{(seed + 1) * num_images - 1}",
            "images": f"{num_images} of {len(images)} ({split}), neither mirrored nor augmented, chosen by seed {seed}",
            **provenance(model.device),
            "seconds": round(time.perf_counter() - began, 1),
        },
    }
    write_file(folder / "drift.json", to_json(record).encode())
    plot(rows, frequency_bands, folder / "drift.png")
    print(f"{table(summary)}\n\nwritten to {Path(outdir) / 'drift.json'} and drift.png")


def table(summary: list[dict[str, Any]]) -> str:
    """The summary as text."""
    rows = [["band", "quantity", "drift (rms)", "by chance", "mean", "levels"]]
    for row in summary:
        numbers = (f"{row['rms']:.4f}", f"{row['chance']:.4f}", f"{row['mean']:+.4f}", str(row["levels"]))
        rows.append([row["band"], row["quantity"], *numbers])
    return text_table(rows, "<<>>>>")
