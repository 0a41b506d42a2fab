"""`warm drift`: how far the samples of a trained model are from the manifold that they should be on."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warm_lightning.analysis.drift import ALL, QUANTITIES, Bands, Meter, compare, plot, second_moment, summarise
from warm_lightning.analysis.figures import check_matplotlib
from warm_lightning.commands.degraded_images import Split
from warm_lightning.commands.shared import Devices
from warm_lightning.config import open_split, trained
from warm_lightning.data import ImageSet
from warm_lightning.data.image_set import all_images
from warm_lightning.errors import check
from warm_lightning.images import dequantise
from warm_lightning.model import TrainedModel, Weights, check_data
from warm_lightning.records import provenance, to_json, writable_folder, write_file
from warm_lightning.rng import SeedStreams, key
from warm_lightning.spectral import dct, full_precision


def drift(
    settings: list[str],
    *,
    ckpt_path: str,
    outdir: str,
    num_images: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    weights: Weights = "ema",
    bands: int = 3,
    split: Split = "train",
    accelerator: str = "auto",
) -> None:
    """How far trajectories are from truly degraded images, at every level, in all frequencies and in bands.

    Writes drift.png and drift.json. Its `rows` have, for each level (clock, alpha, beta), band ("all", or "1" for the
    lowest frequencies and so on) and quantity, the values of trajectories and of truth, their difference `drift`, and a
    standard error of each. The quantities:

    noise: ln of the root mean square of ε̂ = (u - D)/B, the noise that the network sees; mean over images.
    power: ln of the power of u over A² E u0² + B² E z² of all training images, which it has on average on the manifold.
    Its drift is that of the trajectories from this exact value; that of the truth shows what chance does to as many
    images.
    residual: ln of the mean square of (1-M)∘x̂0, the detail that blur M takes and the network adds; none where nothing
    is blurred. M is A over its value at the mean, without what a process scales images by. Of a network that says x0 by
    undoing blur, as ε does, it is mostly its amplified error.

    A sampler that adds other noise than the process has, as IHDM's does by design, drifts by that.

    `summary` has for each band and quantity the root mean square of drift over levels, all alike (rms), what chance
    alone would make of it (chance), the mean, and the number of levels: those of the sampler's grid that have noise,
    but for the last and the first, at which trajectories start. `drift`, `power_drift` and `residual_drift` are rms in
    all frequencies; `edges` are those of the bands in √λ.

    Args:
        ckpt_path: checkpoint that `warm fit` wrote, or folder that `warm export` did.
        outdir: folder for drift.json and drift.png.
        num_images: trajectories, and images to degrade. The classes of these are those sampled, if any.
        batch_size: images at once.
        seed: k stands for the sampling seeds k·num_images, k·num_images + 1 …, and for other training images and noise.
        weights: averaged or last.
        bands: number of frequency bands, of equal width in √λ.
        split: train or held_out, of the images to degrade. A network that knows its training images by heart sees less
            noise in them than in samples; where there are enough held-out ones, compare with them.
        accelerator: cpu, gpu, mps or auto.
    """
    began = time.perf_counter()
    check(num_images >= 2, f"num_images is {num_images}: it must be at least 2")
    check(batch_size >= 1, f"batch_size is {batch_size}: it must be at least 1")
    check(seed >= 0, f"seed is {seed}: it must be 0 or more")
    check_matplotlib()
    trained_model, data = trained(settings, ckpt_path)
    machine = Devices(accelerator, 1, "32-true")
    model = machine.place(trained_model.model(weights)).replaced(guidance=1.0)  # which leaves the manifold by design
    like = torch.zeros(1, *model.image_shape, dtype=torch.float64, device=model.state_device)
    rings = Bands(bands, like)
    meter = Meter(model.process, rings, like)
    levels = meter.levels(model.sampler)
    folder = writable_folder(outdir)
    data.prepare_data()
    check_data(model.network, data)
    images = open_split(data, split)
    check(num_images <= len(images), f"num_images is {num_images}, but {split} has {len(images)} images: lower it")
    ours, theirs = [], []
    for index, u0, classes in some_images(images, num_images, seed, machine.batches(num_images, batch_size, "Drift")):
        seeds = [seed * num_images + k for k in index]
        noise = SeedStreams([key(seed, "drift", "noise", k) for k in index], like.device)
        told = classes if model.network.label_dim else None
        with full_precision(model.device), model.conditioned(told) as ask:
            ours.append(meter.along(partial(model.sample, model.sampler, seeds, told), ask))
            theirs.append(meter.truth(ask, levels, u0.to(like), noise))
    expected = meter.expected_power(levels, second_moment(all_images(data.train_images(), "Measuring power")))
    rows = compare(torch.cat(ours), torch.cat(theirs), expected, levels, rings)
    summary = summarise(rows)
    of_all = {row["quantity"]: row["rms"] for row in summary if row["band"] == ALL}
    record = {
        **{name: of_all.get(q) for name, q in zip(("drift", "power_drift", "residual_drift"), QUANTITIES, strict=True)},
        "summary": summary,
        "edges": dict(zip(rings.names, rings.edges, strict=True)),
        "rows": rows,
        "protocol": {
            **protocol(trained_model, settings, ckpt_path, weights),
            "num_images": num_images,
            "batch_size": batch_size,
            "seeds": f"{seed * num_images}-{(seed + 1) * num_images - 1}",
            "images": f"{num_images} of {len(images)} ({split}), neither mirrored nor augmented, chosen by seed {seed}",
            **provenance(model.device),
            "seconds": round(time.perf_counter() - began, 1),
        },
    }
    write_file(folder / "drift.json", to_json(record).encode())
    plot(rows, rings, folder / "drift.png")
    print(f"{table(summary)}\n\nwritten to {Path(outdir) / 'drift.json'} and drift.png")


def some_images(
    images: ImageSet, count: int, seed: int, batches: Iterator[range]
) -> Iterator[tuple[range, Tensor, list[int]]]:
    """Training images chosen by seed: batches of numbers from 0, float64 coefficients [b, C, H, W], and classes."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(key(seed, "drift", "images")))[:count]
    for batch in batches:
        chosen = order[batch.start : batch.stop]
        yield batch, dct(dequantise(images.take(chosen), torch.float64)), images.labels[chosen].tolist()


def protocol(trained_model: TrainedModel, settings: list[str], ckpt_path: str, weights: Weights) -> dict[str, Any]:
    """What was measured, for the record."""
    config = trained_model.config or {}
    return {
        "settings": settings,
        "ckpt_path": ckpt_path,
        "weights": weights,
        "weights_sha256": trained_model.model(weights).weights_hash(),
        "images_seen": trained_model.images_seen,
        "process": config.get("process"),
        "sampler": config.get("sampler"),
        "nfe": trained_model.sampler.nfe,
        "precision": "network float32, states float64",
    }


def table(summary: list[dict[str, Any]]) -> str:
    """The summary for people."""
    lines = [f"{'band':<6}{'quantity':<10}{'drift (rms)':>12}{'by chance':>11}{'mean':>9}{'levels':>8}"]
    for row in summary:
        numbers = f"{row['rms']:>12.4f}{row['chance']:>11.4f}{row['mean']:>+9.4f}{row['levels']:>8}"
        lines.append(f"{row['band']:<6}{row['quantity']:<10}{numbers}")
    return "\n".join(lines)
