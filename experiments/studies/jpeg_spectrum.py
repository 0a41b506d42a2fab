"""The effect of JPEG on a fitted power law, and on the BNR that it suggests.

    python -m experiments.studies.jpeg_spectrum --out jpeg_spectrum.json [--data cifar10.zip]

The images are Gaussian fields with a known S = c/λˢ in every channel, about as CIFAR-10 has it, as 8-bit RGB images.
They are measured before and after Pillow has compressed them at several qualities, with its default 4:2:0 chroma
subsampling and without. With --data real images are measured in the same way; if they are JPEG files, this compresses
them again.
"""

import argparse
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from warm_lightning.analysis.power_law import fit_rows, measured_rows, suggested_bnr
from warm_lightning.analysis.spectrum import BLOCKS, RESAMPLES, MeasuredSpectrum, measure_spectrum, ring_means
from warm_lightning.data import ImageFolder, ImageSet
from warm_lightning.data.image_set import random_order
from warm_lightning.errors import UserError, check
from warm_lightning.images import quantise
from warm_lightning.records import provenance, text_table, to_json, write_file
from warm_lightning.rng import key
from warm_lightning.spectral import frequencies, idct

C, S = 0.2, 1.1
"""The coefficients of S = c/λˢ, near those that are measured on CIFAR-10 below λ = 2."""
CORRELATION = 0.9
"""The correlation of two channels at every frequency; the lower it is, the more chroma subsampling removes."""
QUALITIES = (95, 90, 75, 50)
SUBSAMPLING = {"4:2:0": 2, "4:4:4": 0}
TOLERANCE, BELOW = 0.03, 2.0


def fields(count: int, size: int, seed: int, c: float = C, s: float = S) -> Tensor:
    """Gaussian fields with S = c/λˢ, float64 [count, 3, size, size]; at λ = 0 with the S of the lowest λ above it.

    About 4 % of the pixels are outside [-1, 1], as highlights and shadows of photographs are.
    """
    generator = torch.Generator().manual_seed(key(seed, "fields"))
    shared, separate = (torch.randn(count, n, size, size, generator=generator, dtype=torch.float64) for n in (1, 3))
    rates = frequencies(shared)
    power = c / rates.clamp(min=rates[0, 1]) ** s
    return idct(power.sqrt() * (CORRELATION**0.5 * shared + (1 - CORRELATION) ** 0.5 * separate))


def compress(images: Tensor, quality: int, subsampling: int) -> Tensor:
    """Images, uint8 [N, 3, H, W], after a compression as JPEG files."""
    compressed = np.empty(images.permute(0, 2, 3, 1).shape, np.uint8)
    for i, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
        compressed[i] = np.asarray(Image.open(file))
    return torch.from_numpy(compressed).permute(0, 3, 1, 2).contiguous()


def rows_of(source: str, images: Tensor, seed: int) -> Iterator[dict[str, Any]]:
    """Rows for images and each of their compressions, one for each range of the fit."""
    plain = measure_spectrum(ImageSet.without_classes(images), seed, name=source)
    yield from fitted({"source": source, "quality": None, "subsampling": None}, plain, plain)
    for quality in QUALITIES:
        for name, number in SUBSAMPLING.items():
            compressed = measure_spectrum(
                ImageSet.without_classes(compress(images, quality, number)), seed, name=source
            )
            yield from fitted({"source": source, "quality": quality, "subsampling": name}, compressed, plain)


def fitted(about: dict[str, Any], measured: MeasuredSpectrum, plain: MeasuredSpectrum) -> Iterator[dict[str, Any]]:
    """Rows of `fit_rows` with the BNR at the tolerance, and in all of them the BNR without a law and the power kept.

    Args:
        about: entries of every row.
        measured: spectrum of the images.
        plain: spectrum of the images before compression.
    """
    without_law = next(
        row["bnr"] for row in measured_rows(measured.mean_power, TOLERANCE) if row["tolerance"] == TOLERANCE
    )
    kept = ring_means(measured.mean_power) / ring_means(plain.mean_power)
    side = measured.power.shape[-1]
    eighths = {f"kept_at_{n}": kept[n * side // 4].item() for n in (1, 2, 3, 4)}  # ring r has r/(2·side) cycles a pixel
    for row in fit_rows(measured, BELOW):
        yield {**about, **row, "bnr": suggested_bnr(row["c_at_s1"], TOLERANCE), "bnr_measured": without_law, **eighths}


def run(out: Path, data: str | None, num_images: int, size: int, seed: int, command: list[str]) -> list[dict[str, Any]]:
    """Measure all rows and write them as JSON, with the protocol; see `main` for the arguments."""
    began = time.perf_counter()
    check(num_images > 0, f"--num_images is {num_images}: it must be at least 1")
    check(size >= 8 and size % 4 == 0, f"--size is {size}: it must be a multiple of 4, at least 8")
    synthetic = fields(num_images, size, seed)
    rows = list(rows_of("Gaussian fields", quantise(synthetic), seed))
    if data:
        images = ImageFolder(data, cache=False).train_images()
        check(images.shape[0] == 3, f"{data}: the images are grey: chroma subsampling needs RGB")
        rows += rows_of(Path(data).name, images.take(random_order(len(images), seed)[:num_images]), seed)
    protocol = {
        "truth": f"Gaussian fields: c = {C}, s = {S}, correlation of channels {CORRELATION}",
        "clipped": synthetic.abs().gt(1).double().mean().item(),
        "num_images": num_images,
        "size": size,
        "seed": seed,
        "fit": "ln S on ln λ, 0 < λ < below, least squares, S averaged over channels",
        "bnr": f"attenuation {TOLERANCE} where signal = noise, by c_at_s1; bnr_measured by S itself",
        "kept": "power over that of the images as they are, at 1, 2, 3, 4 eighths of a cycle a pixel",
        "bootstrap": f"{RESAMPLES} samples of {BLOCKS} blocks",
        "seconds": round(time.perf_counter() - began, 1),
        **provenance("cpu"),
        "pillow_version": PIL.__version__,
        "command": " ".join(command),
    }
    write_file(out, to_json({"rows": rows, "protocol": protocol}).encode())
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A table for a terminal, with a row for each compression: the law, the BNR for each range, and the power kept."""
    ranges = list(dict.fromkeys(row["below"] for row in rows))
    names = ["all λ" if below is None else f"λ < {below:g}" for below in ranges]
    header = ["images", f"c, λ < {BELOW:g}", f"s, λ < {BELOW:g}", *(f"BNR {name}" for name in names), "BNR no law"]
    header += [f"S kept {n}/8" for n in (1, 2, 3, 4)]
    lines = []
    for chosen in (row for row in rows if row["below"] == BELOW):
        same = [row for row in rows if all(row[n] == chosen[n] for n in ("source", "quality", "subsampling"))]
        how = f"{chosen['quality']}, {chosen['subsampling']}" if chosen["quality"] else "as it is"
        values = [chosen["c"], chosen["s"], *(row["bnr"] for row in same), chosen["bnr_measured"]]
        values += [chosen[f"kept_at_{n}"] for n in (1, 2, 3, 4)]
        lines.append([f"{chosen['source']}, {how}", *(f"{value:.4f}" for value in values)])
    return text_table([header, *lines], "<" + ">" * (len(header) - 1))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.studies.jpeg_spectrum", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--data", help="folder or zip of RGB images to compress, too")
    parser.add_argument("--num_images", type=int, default=3000)
    parser.add_argument("--size", type=int, default=32, help="pixels per side of the Gaussian fields")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    command = [parser.prog, *(sys.argv[1:] if arguments is None else arguments)]
    try:
        rows = run(options.out, options.data, options.num_images, options.size, options.seed, command)
    except UserError as error:
        print(f"jpeg_spectrum: {error}", file=sys.stderr)
        return 2
    print(table(rows), f"written to {options.out}", sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
