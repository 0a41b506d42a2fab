"""`warm oracle`: measures the error of a sampler with a perfect network."""

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
from warm_lightning.config import module_from_options
from warm_lightning.data import ImageDataModule, ImageSet
from warm_lightning.data.image_set import dequantised_batches, random_order
from warm_lightning.data.sources import source_name
from warm_lightning.errors import UserError, check
from warm_lightning.images import dequantise
from warm_lightning.model import check_data
from warm_lightning.networks.base import Network
from warm_lightning.paths import PathText, expand
from warm_lightning.records import (
    fingerprint,
    folder_fingerprint,
    provenance,
    text_table,
    to_json,
    writable_folder,
    write_file,
)
from warm_lightning.rng import parse_seeds
from warm_lightning.spectral import power_spectrum


def oracle(
    settings: list[str],
    *,
    outdir: PathText,
    kind: Literal["gaussian", "dataset"] = "gaussian",
    spectrum: PathText | None = None,
    seeds: str = "0-63",
    limit: int = 1000,
    ode_steps: int = 1024,
) -> None:
    """Measure how far the configured sampler ends from the data if the network knows the process perfectly.

    Only --model.process and --model.sampler matter; the network is built but not called. Writes oracle.json with the
    values, and how they were obtained under `protocol`.

    --kind gaussian: the data are N(0, diag S) over DCT frequencies, with S measured on the training images. The result
    is exact, without Monte Carlo. `frechet` is the squared Fréchet distance to the data, summed over channels and
    frequencies; `frechet_ode` is the squared distance to the result of the exact ODE from the same start (null for
    stochastic samplers); share_low, share_mid and share_high are the shares of the thirds of √λ in `frechet`, and
    share_ode_low … in `frechet_ode`; `variance` is ΣS; `draws` is the number of random draws per image, with whose
    square the time grows; `nfe` is the number of network calls.

    --kind dataset: the data are some of the training images. `nearest_mse` is the mean square distance of samples to
    the nearest of them, for images in [-1, 1]; `landed` is the share of samples with a distance below 1e-6; `rms_ode`
    is the root mean square distance to the result of Heun's rule with --ode_steps steps from the same start (null for
    stochastic samplers), which takes `ode_nfe` calls.

    Args:
        outdir: folder for oracle.json.
        kind: gaussian or dataset.
        spectrum: .npz file with S for several runs: it is read if it exists, and written otherwise.
        seeds: of the samples, such as 0-63 or 1,5,8-11; for --kind dataset.
        limit: number of training images; for --kind dataset.
        ode_steps: steps of the solver that stands for the exact ODE, which take most of the time; 0 leaves rms_ode out;
            for --kind dataset.
    """
    began = time.perf_counter()
    check(spectrum is None or kind == "gaussian", f"--spectrum {spectrum}: is for --kind gaussian; leave it out")
    check(limit >= 1, f"--limit is {limit}: it must be at least 1")
    check(ode_steps >= 0, f"--ode_steps is {ode_steps}: it must be 0 (none) or more")
    chosen = parse_seeds(seeds)
    module, data = module_from_options(settings)
    folder, model = writable_folder(outdir), module.model()
    if kind == "gaussian":
        power, about = read_or_measure(spectrum, data, model.network)
        values = gaussian_error(power, model.process, model.sampler)
    else:
        images = training_images(data, model.network)
        count = min(limit, len(images))
        x0 = dequantise(images.take(random_order(len(images), 0)[:count]), torch.float64)
        values = dataset_error(x0, model.process, model.sampler, chosen, ode_steps)
        about = {
            "data": data_name(data),
            "num_images": count,
            "of": len(images),
            "seeds": seeds,
            "ode_steps": ode_steps,
        }
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
    rows = [(name, f"{value:.6g}") for name, value in values.items() if value is not None]
    print(text_table(rows, "<<"), f"written to {folder / 'oracle.json'}", sep="\n")


SETTINGS_OF_LOADING = {"batch_size", "root", "xflip", "num_workers", "cache", "prepare_data_per_node"}
"""Settings of a data set that do not change its images."""


def data_name(data: ImageDataModule) -> str:
    """The text that identifies a data set in records, as JSON: its class, and the settings that choose its images."""
    plain = {n: v for n, v in vars(data).items() if isinstance(v, str | int | float | None) and not n.startswith("_")}
    chosen = {n: v for n, v in plain.items() if n not in SETTINGS_OF_LOADING and v is not None}
    chosen = {n: v for n, v in chosen.items() if not hasattr(ImageDataModule, n)}
    chosen |= {n: source_name(str(chosen[n])) for n in ("path", "held_out_path") if n in chosen}
    return json.dumps({"class": type(data).__name__, **chosen}, sort_keys=True)


def data_content(data: ImageDataModule) -> str | None:
    """A text that changes with the files of a data set; None for data that are not at a path."""
    given = getattr(data, "path", None)
    path = None if given is None else expand(given)
    if path is None:
        return None
    return folder_fingerprint(path) if path.is_dir() else fingerprint(path)


def training_images(data: ImageDataModule, network: Network) -> ImageSet:
    """The training images.

    Raises:
        UserError: the configured network is for other images.
    """
    data.prepare_data()
    check_data(network, data)
    return data.train_images()


def spectrum_of_data(data: ImageDataModule, network: Network) -> tuple[Tensor, dict[str, Any]]:
    """Measure S of the training images, float64 [C, H, W]; returns it with the name and number of the images."""
    images = training_images(data, network)
    check(len(images) > 1, f"{data_name(data)}: one image has no spectrum: give more")
    power = power_spectrum(dequantised_batches(images, "Measuring the spectrum"))
    return power, {"data": data_name(data), "content": data_content(data), "num_images": len(images)}


def read_or_measure(file: str | None, data: ImageDataModule, network: Network) -> tuple[Tensor, dict[str, Any]]:
    """Read S from a file, without reading images; if there is no file, measure S, and write the file if it is named.

    Raises:
        UserError: the file is not one of a spectrum, or is of other data.
    """
    if file is None:
        return spectrum_of_data(data, network)
    path = Path(file)
    check(path.suffix == ".npz", f"--spectrum {path}: name a file that ends in .npz")
    if not path.exists():
        writable_folder(path.parent)
        power, about = spectrum_of_data(data, network)
        content = io.BytesIO()
        np.savez(content, spectrum=power.numpy(), about=np.array(json.dumps(about)))
        write_file(path, content.getvalue())
        return power, about
    try:
        with np.load(path) as arrays:
            power, about = torch.from_numpy(arrays["spectrum"]), json.loads(str(arrays["about"]))
        stored, content = about["data"], about.get("content")
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
        raise UserError(f"--spectrum {path}: not a spectrum written by this command; name another file") from error
    expected, shape = data_name(data), (network.image_channels, network.resolution, network.resolution)
    check(
        stored == expected and power.shape == shape,
        f"--spectrum {path}: is of {stored} {list(power.shape)}, not of {expected} {list(shape)}; name another file",
    )
    check(
        content in (None, data_content(data)),  # None in files of before
        f"--spectrum {path}: the images of {stored} have changed since; remove it, or name another file",
    )
    return power, about
