"""`warm bits`: measures the bits per dimension of a trained model by the probability-flow ODE."""

import math
import time

import torch

from warm_lightning.analysis.likelihood import bits_of_images, excess_at_most, prior_deviation, prior_gap, rising_levels
from warm_lightning.commands.shared import Devices, measured_model
from warm_lightning.config import trained_from_options
from warm_lightning.errors import check
from warm_lightning.images import dequantise
from warm_lightning.model import check_data
from warm_lightning.paths import CheckpointText, PathText
from warm_lightning.records import provenance, to_json, writable_folder, write_file
from warm_lightning.rng import SeedStreams, key
from warm_lightning.spectral import dct, full_precision
from warm_lightning.types import Split, Weights


def bits(
    settings: list[str],
    *,
    ckpt_path: CheckpointText,
    outdir: PathText,
    split: Split = "held_out",
    num_images: int = 256,
    seed: int = 0,
    steps: int = 100,
    last_noise: float | None = None,
    probes: int = 1,
    weights: Weights = "ema",
    batch_size: int = 64,
    accelerator: str = "auto",
) -> None:
    """Measure the bits per dimension that a model needs for images, by the probability-flow ODE; lower is better.

    Uniform noise of one grey level is added to the images, and then the blur and noise of the last level above 0 of the
    model's sampler. The flow takes them from this level to the first one, where the density of the prior is known. The
    part of the flow from this level to 0 is left out. The result is therefore the cost of slightly
    noisy images. Even for a perfect model this is more than the cost of the images themselves, by at most
    `excess_at_most` bits: 1.0 if the noise there is 0.002, as in the warm family, and 2.4 if it is 0.01, as in the
    first of DDPM's 1,000 steps. Models with different last levels can be compared only up to this difference.
    Models with classes get the class of each image. Guidance, and the sampler's rule, churn and estimate transform,
    are not used.

    Writes bits.json: `bpd`, the mean; its `standard_error` over images (null for one image); `nfe`, network calls per
    image, each with one backward pass for each probe; `excess_at_most`; `prior_gap`, the part of bpd that is due to
    the difference between the prior and the images at the first level; `num_images`; `per_image`, the bits per
    dimension of each image, in the order given by the seed; and `protocol`, how they were obtained.

    Args:
        ckpt_path: checkpoint of `warm fit` or its run's folder, or folder of `warm export`, here or as hf://OWNER/NAME
            on the Hub.
        outdir: folder for bits.json.
        split: held_out or train.
        num_images: number of images, chosen by the seed.
        seed: of the choice of images, and of the random numbers for each image.
        steps: steps of Heun's rule, whose error falls with their square: for normal data and β from 0.002 to 80 it is
            0.01 bits at 100 steps. Halve the steps to estimate the error for a model.
        last_noise: noise level β of the last level, in place of the sampler's last one above 0. With the same for all,
            models of other samplers can be compared: a network of DDPM knows 0.01 and more, one of EDM 0.002.
        probes: random vectors for the divergence; 0 computes it exactly, with a backward pass for every dimension.
        weights: ema (averaged) or raw (last).
        batch_size: images at once.
        accelerator: cpu, gpu, mps or auto.
    """
    began = time.perf_counter()
    for name, value, least in (("num_images", num_images, 1), ("steps", steps, 1), ("batch_size", batch_size, 1)):
        check(value >= least, f"--{name} is {value}: it must be {least} or more")
    check(probes >= 0, f"--probes is {probes}: it must be 0 (exact) or more")
    trained_model, data = trained_from_options(settings, ckpt_path)
    devices = Devices(accelerator, 1, "32-true")
    model = devices.move(trained_model.model(weights)).replaced(guidance=1.0)
    process, device = model.process, model.state_device
    like = torch.zeros(1, *model.image_shape, dtype=torch.float64, device=device)
    levels = rising_levels(process, model.sampler.grid, steps, last_noise)
    process.check_noise(levels, like)
    prior_deviation(process, levels[-1], like)  # checks the process before any image is read
    folder = writable_folder(outdir)
    images = data.split(split)
    check_data(model.network, data)
    check(num_images <= len(images), f"--num_images is {num_images}, but {split} has {len(images)} images: lower it")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(key(seed, "bits", "images")))
    parts, squares = [], torch.zeros_like(like[0])
    for batch in devices.batches(range(num_images), batch_size, "Bits"):
        index = order[batch.start : batch.stop]
        x, classes = images.take(index).to(device), images.labels[index].tolist()
        streams = SeedStreams([key(seed, "bits", k) for k in index.tolist()], device)
        with full_precision(model.device), model.conditioned(classes if model.network.label_dim else None) as estimator:
            parts.append(bits_of_images(estimator, process, x, levels, streams, probes).cpu())
        squares += dct(dequantise(x, torch.float64)).square().sum(0)
    per_image = torch.cat(parts)
    check(bool(per_image.isfinite().all()), f"the flow diverges with --steps {steps}: raise it")
    values = {
        "bpd": per_image.mean().item(),
        "standard_error": per_image.std().item() / math.sqrt(num_images) if num_images > 1 else None,
        "nfe": 2 * steps,
        "excess_at_most": excess_at_most(process.gains(levels[0], like)),
        "prior_gap": prior_gap(squares / num_images, process, levels[-1]),
        "num_images": num_images,
    }
    protocol = {
        **measured_model(trained_model, settings, ckpt_path, weights),
        "split": split,
        "of": len(images),
        "seed": seed,
        "solver": f"Heun, {steps} steps, clock^(1/7) evenly spaced",
        "levels": {n: [getattr(levels[k], n).item() for k in (0, -1)] for n in ("clock", "alpha", "beta")},
        "divergence": f"{probes} random vectors per call" if probes else "exact",
        "precision": "network float32, states float64",
        **provenance(model.device),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_file(
        folder / "bits.json", to_json({**values, "per_image": per_image.tolist(), "protocol": protocol}).encode()
    )
    error = "" if values["standard_error"] is None else f" ± {values['standard_error']:.4f}"
    print(f"{values['bpd']:.4f}{error} bits per dimension, {num_images} {split} images, NFE {values['nfe']}")
    excess = f"at most {values['excess_at_most']:.4f} for the noise of the last level above 0"
    print(f"{excess}; written to {folder / 'bits.json'}")
