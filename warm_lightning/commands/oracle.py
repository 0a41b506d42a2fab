"""`warm oracle`: how far sampling with a perfect network ends from the data."""

import io
import json
import time
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from warm_lightning.analysis.oracle_error import dataset_error, gaussian_error
from warm_lightning.config import configured
from warm_lightning.data import ImageDataModule, ImageSet
from warm_lightning.data.image_set import all_images, random_order
from warm_lightning.data.sources import known_as
from warm_lightning.errors import UserError, check
from warm_lightning.images import dequantise
from warm_lightning.model import check_data
from warm_lightning.networks.base import Network
from warm_lightning.records import provenance, to_json, writable_folder, write_file
from warm_lightning.rng import parse_seeds
from warm_lightning.spectral import power_spectrum

NO_MATTER = {"batch_size", "root", "xflip", "num_workers", "cache", "prepare_data_per_node"}
"""Settings of data that change no image of theirs."""


def oracle(
    settings: list[str],
    *,
    outdir: str,
    kind: Literal["gaussian", "dataset"] = "gaussian",
    spectrum: str | None = None,
    seeds: str = "0-63",
    limit: int = 1000,
    ode_steps: int = 1024,
) -> None:
    """How far the configured sampler ends from the data where the network knows the configured process perfectly.

    Only --model.process and --model.sampler matter; the network is made but not asked. Writes oracle.json: values, and
    how they were obtained under `protocol`.

    --kind gaussian: the data are N(0, diag S) over DCT frequencies, S measured on the training images. Exact, without
    Monte Carlo. `frechet` is the squared Fréchet distance to the data, summed over channels and frequencies,
    `frechet_ode` that to where the exact ODE takes the same start (null for samplers that draw on the way); share_low,
    share_mid and share_high are the shares of the thirds of √λ in the former, share_ode_low … in the latter; `variance`
    is ΣS, `draws` the number of draws an image, with whose square the time grows, `nfe` that of network calls.

    --kind dataset: the data are some training images. `nearest_mse` is the mean square distance of samples to the
    nearest of them, images being in [-1, 1], `landed` the share of samples with less than 1e-6, `rms_ode` the root mean
    square distance to where Heun's rule takes the same start in --ode_steps steps (null for samplers that draw on the
    way), with `ode_nfe` calls.

    Args:
        outdir: folder for oracle.json.
        kind: gaussian or dataset.
        spectrum: .npz file with S, which is read where it exists and is written where not, for other runs.
        seeds: of the samples, such as 0-63 or 1,5,8-11; for --kind dataset.
        limit: number of training images; for --kind dataset.
        ode_steps: steps that stand for the exact ODE, most of the time; 0 for no rms_ode; for --kind dataset.
    """
    began = time.perf_counter()
    check(spectrum is None or kind == "gaussian", f"--spectrum {spectrum}: is for --kind gaussian; leave it out")
    check(limit >= 1, f"--limit is {limit}: it must be at least 1")
    check(ode_steps >= 0, f"--ode_steps is {ode_steps}: it must be 0 (none) or more")
    chosen = parse_seeds(seeds)
    module, data = configured(settings)
    folder, model = writable_folder(outdir), module.model()
    if kind == "gaussian":
        power, about = find_spectrum(Path(spectrum), data, model.network) if spectrum else measure(data, model.network)
        values = gaussian_error(power, model.process, model.sampler)
    else:
        images = open_images(data, model.network)
        count = min(limit, len(images))
        x0 = dequantise(images.take(random_order(len(images), 0)[:count]), torch.float64)
        values = dataset_error(x0, model.process, model.sampler, chosen, ode_steps)
        about = {"data": describe(data), "num_images": count, "of": len(images), "seeds": seeds, "ode_steps": ode_steps}
    config = module.config or {}
    protocol: dict[str, Any] = {
        **about,
        "process": config.get("process"),
        "sampler": config.get("sampler"),
        "settings": settings,
        **provenance("cpu"),
        "seconds": round(time.perf_counter() - began, 2),
    }
    write_file(folder / "oracle.json", to_json({"kind": kind, **values, "protocol": protocol}).encode())
    lines = [f"{name:<16}{value:.6g}" for name, value in values.items() if value is not None]
    print("\n".join(lines), f"written to {folder / 'oracle.json'}", sep="\n")


def describe(data: ImageDataModule) -> str:
    """What tells data sets apart, as JSON: the class, and the settings that choose images."""
    plain = {n: v for n, v in vars(data).items() if isinstance(v, str | int | float | None) and not n.startswith("_")}
    own = {n: v for n, v in plain.items() if n not in NO_MATTER and not hasattr(ImageDataModule, n) and v is not None}
    own |= {n: known_as(str(own[n])) for n in ("path", "held_out_path") if n in own}
    return json.dumps({"class": type(data).__name__, **own}, sort_keys=True)


def open_images(data: ImageDataModule, network: Network) -> ImageSet:
    """The training images; raises UserError where the configured network is not for such images."""
    data.prepare_data()
    check_data(network, data)
    return data.train_images()


def measure(data: ImageDataModule, network: Network) -> tuple[Tensor, dict[str, Any]]:
    """S of the training images, float64 [C, H, W], and what they are."""
    images = open_images(data, network)
    power = power_spectrum(all_images(images, "Measuring the spectrum"))
    return power, {"data": describe(data), "num_images": len(images)}


def find_spectrum(path: Path, data: ImageDataModule, network: Network) -> tuple[Tensor, dict[str, Any]]:
    """The same from a file, which is written where it does not exist. No image is read where it does.

    Raises:
        UserError: the file holds something else, or the spectrum of other data.
    """
    check(path.suffix == ".npz", f"--spectrum {path}: name a file that ends in .npz")
    if not path.exists():
        writable_folder(path.parent)
        power, about = measure(data, network)
        content = io.BytesIO()
        np.savez(content, spectrum=power.numpy(), about=np.array(json.dumps(about)))
        write_file(path, content.getvalue())
        return power, about
    try:
        with np.load(path) as held:
            power, about = torch.from_numpy(held["spectrum"]), json.loads(str(held["about"]))
        theirs = about["data"]
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
        raise UserError(f"--spectrum {path}: no spectrum that this command has written; name another file") from error
    ours, shape = describe(data), (network.image_channels, network.resolution, network.resolution)
    check(
        ours == theirs and power.shape == shape,
        f"--spectrum {path}: is of {theirs} {list(power.shape)}, not of {ours} {list(shape)}; name another file",
    )
    return power, about
