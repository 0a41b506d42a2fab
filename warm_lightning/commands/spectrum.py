"""`warm spectrum`: the power spectrum of a data set, the BNR it suggests, and how generated images compare."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from warm_lightning.analysis import power_law, spectrum_plots
from warm_lightning.analysis.figures import check_matplotlib
from warm_lightning.analysis.spectrum import (
    BLOCKS,
    RESAMPLES,
    Measured,
    compare_rows,
    differing_bands,
    measure,
    spectrum_rows,
    target_pictures,
    target_rows,
)
from warm_lightning.commands.shared import open_images
from warm_lightning.config import configured
from warm_lightning.data import ImageSet
from warm_lightning.data.image_set import random_order
from warm_lightning.errors import UserError, check
from warm_lightning.images import dequantise
from warm_lightning.records import provenance, to_json, writable_folder, write_file

BNRS = (0.0, 0.1, 0.3, 0.5, 0.65, 1.0, 2.0, 10.0)
"""The eight of Table 3, for which the attenuation is always given."""
PICTURES = 2


def spectrum(
    settings: list[str],
    *,
    outdir: str,
    images: str | None = None,
    tolerance: float = 0.03,
    fit_below: float = 2.0,
    limit: int | None = None,
    bnrs: str = "0,0.5,2",
    noise: float = 0.5,
    seed: int = 0,
) -> None:
    """The power spectrum of the training images, and which blur-to-noise ratio it suggests at a chosen tolerance.

    S is the variance over images of each orthonormal DCT-II coefficient of images in [-1, 1]. S = c/λ^s is fitted to
    its mean over channels: least squares of ln S on ln λ, each coefficient with 0 < λ < fit_below counting once;
    standard errors by a bootstrap over blocks of images. Where noise β meets the signal, S = β², a blur α = BNR·β
    attenuates by 1 − exp(−c·BNR²/2) if s = 1; the suggested BNR is the one at which that is the tolerance.

    Writes spectrum.json, spectrum.png (S by radius with the fits), bnr.png (attenuation against BNR), targets.png
    (Fig. 3 of the paper: what a model sees and is asked for) and, with --images, compared.png.

    The file has c, s, c_at_s1 (with …_se) of the range asked for, and bnr, path_bnr, path_exponent, bnr_measured and
    bnr_strict at the tolerance asked for; the tables fits, suggestions, measured_suggestions, attenuation, spectrum (a
    row a ring of frequencies), targets (a row a BNR and ring), and compared and bands (null without --images), whose
    columns the functions of `warm_lightning.analysis` whose names end in _rows describe; and protocol.

    Args:
        settings: which data; the model is not looked at.
        outdir: folder for what is written.
        images: folder or zip of generated images, whose spectrum is set beside the data's.
        tolerance: attenuation that is allowed where signal and noise are equal, between 0 and 1; nothing but a choice.
        fit_below: λ in radians²/pixel² below which the law is fitted; .inf for all frequencies.
        limit: only so many images of the data, chosen by the seed.
        bnrs: blur-to-noise ratios for Fig. 3, with commas; up to 6.
        noise: noise level β for Fig. 3.
        seed: of the bootstrap, of halves, and of the images and noise shown.
    """
    began = time.perf_counter()
    check(0 < tolerance < 1, f"--tolerance is {tolerance}: an attenuation is between 0 and 1, such as 0.03")
    check(0 < noise < math.inf, f"--noise is {noise}: a noise level is above 0, such as 0.5")
    check(limit is None or limit > 0, f"--limit is {limit}: it must be at least 1")
    ratios = parse_bnrs(bnrs)
    check_matplotlib()
    _, data = configured(settings)
    folder = writable_folder(outdir)
    other = open_images(images) if images else None
    data.prepare_data()
    training = some(data.train_images(), limit, seed)
    other = other and alike(other, training, str(images))
    measured = measure(training, seed)
    fits = power_law.fit_rows(measured, fit_below)
    fit = power_law.chosen_row(fits, fit_below)
    suggestions = power_law.suggestion_rows(fits, tolerance)
    here = [row for row in suggestions if row["below"] == fit["below"]]
    suggested = next(row for row in here if row["tolerance"] == tolerance)
    lawless = power_law.measured_rows(measured.mean_power, tolerance)
    unfitted = next(row for row in lawless if row["tolerance"] == tolerance)
    compared = compare(measured, other, str(images), seed) if other else {"compared": None, "bands": None}
    looked_at = sorted({*BNRS, *ratios, suggested["bnr"]})
    result: dict[str, Any] = {
        **{name: fit[name] for name in ("c", "c_se", "s", "s_se", "residual", "c_at_s1", "c_at_s1_se")},
        **{name: suggested[name] for name in ("tolerance", "bnr", "bnr_se", "path_bnr", "path_exponent")},
        "bnr_measured": unfitted["bnr"],
        "bnr_strict": unfitted["bnr_strict"],
        "fits": fits,
        "suggestions": suggestions,
        "measured_suggestions": lawless,
        "attenuation": power_law.attenuation_rows(measured.mean_power, fit["c_at_s1"], looked_at),
        "spectrum": spectrum_rows(measured),
        "targets": target_rows(measured.mean_power, noise, ratios),
        **compared,
    }
    about = f"{type(data).__name__}, {len(training):,} training images of {training.shape[-1]}×{training.shape[-1]}"
    spectrum_plots.plot_spectrum(result["spectrum"], fits, fit_below, about, folder / "spectrum.png")
    spectrum_plots.plot_bnr(measured.mean_power, fit["c_at_s1"], here, tolerance, folder / "bnr.png")
    shown = dequantise(training.take(random_order(len(training), seed)[:PICTURES]))
    spectrum_plots.plot_targets(
        result["targets"], target_pictures(shown, noise, ratios, seed), noise, folder / "targets.png"
    )
    if other:
        spectrum_plots.plot_compared(result["compared"], Path(str(images)).name, folder / "compared.png")
    result["protocol"] = {
        "settings": settings,
        "data": about,
        "shape": list(training.shape),
        "num_images": len(training),
        "images": images,
        "images_count": len(other) if other else None,
        "tolerance": tolerance,
        "fit_below": fit_below if math.isfinite(fit_below) else None,
        "limit": limit,
        "bnrs": ratios,
        "noise": noise,
        "seed": seed,
        "bootstrap": f"{RESAMPLES} samples of {min(BLOCKS, len(training))} random blocks of images",
        **provenance("cpu"),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_file(folder / "spectrum.json", to_json(result).encode())
    print(text(result))
    print(f"\nwritten to {folder}")


def parse_bnrs(bnrs: str) -> list[float]:
    """Numbers between commas, ascending. Raises UserError unless they are 1 to 6 blur-to-noise ratios."""
    try:
        ratios = sorted({float(part) for part in bnrs.strip("[]").split(",")})
    except ValueError as error:
        raise UserError(f"--bnrs is {bnrs}: give numbers with commas between them, such as 0,0.5,2") from error
    allowed = all(0 <= ratio < math.inf for ratio in ratios) and len(ratios) <= 6
    check(allowed, f"--bnrs is {bnrs}: give up to 6 numbers of 0 (noise only) or more, such as 0,0.5,2")
    return ratios


def some(images: ImageSet, limit: int | None, seed: int) -> ImageSet:
    """So many images chosen by a seed, since the first are often of one class; all if there are not more."""
    if limit is None or limit >= len(images):
        return images
    chosen = random_order(len(images), seed)[:limit]
    return ImageSet(images.take(chosen), images.labels[chosen], images.class_names)


def alike(images: ImageSet, data: ImageSet, path: str) -> ImageSet:
    """Images with the data's channels. Raises UserError if they are of another size, or RGB where the data are grey."""
    if images.shape[0] == 1 < data.shape[0]:
        images = images.as_rgb()
    found, wanted = ("×".join(map(str, shape)) for shape in (images.shape, data.shape))
    check(found == wanted, f"{path}: the images are {found} (channels, height, width), the data {wanted}: convert them")
    return images


def compare(measured: Measured, other: ImageSet, path: str, seed: int) -> dict[str, list[dict[str, Any]]]:
    """How the spectrum of other images compares, by ring, and where it differs."""
    rows = compare_rows(measured, measure(other, seed, what=path), seed)
    return {"compared": rows, "bands": differing_bands(rows)}


def text(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lawless = result["measured_suggestions"]
    tolerances = [row["tolerance"] for row in lawless]
    lines = [
        f"{'S = c/λ^s':<10}{'c':>18}{'s':>18}{'misfit of ln S':>16}{'c at s = 1':>18}"
        f"   BNR at {percents(tolerances)} attenuation"
    ]
    for fit in result["fits"]:
        bnrs = [f"{row['bnr']:.2f}" for row in result["suggestions"] if row["below"] == fit["below"]]
        c, s, c_at_s1 = (f"{fit[n]:.4f} ± {fit[n + '_se']:.4f}" for n in ("c", "s", "c_at_s1"))
        name = "all λ" if fit["below"] is None else f"λ < {fit['below']:g}"
        lines.append(f"{name:<10}{c:>18}{s:>18}{fit['residual']:>16.3f}{c_at_s1:>18}   {'  '.join(bnrs)}")
    for name, column in (("no law, in the mean over ln β", "bnr"), ("no law, nowhere more", "bnr_strict")):
        lines.append(f"{name:<80}   " + "  ".join(f"{row[column]:.2f}" for row in lawless))
    lines += ["", f"{'BNR':<8}{'M by formula':>14}{'measured':>10}   range, where signal = noise"]
    for row in result["attenuation"]:
        values = [f"{row[name]:.4f}" for name in ("formula", "measured", "lowest", "highest")]
        lines.append(f"{row['bnr']:<8.3g}{values[0]:>14}{values[1]:>10}   {values[2]} to {values[3]}")
    fit_below = result["protocol"]["fit_below"]
    below = "over all λ" if fit_below is None else f"below λ = {fit_below:g}"
    lines.append(
        f"\nAt the chosen tolerance of {100 * result['tolerance']:g} %, fitted {below}: BNR {result['bnr']:.3f} ± "
        f"{result['bnr_se']:.3f} by the law with s = 1, or PowerLaw with bnr {result['path_bnr']:.3f} and exponent "
        f"{result['path_exponent']:.3f}; {result['bnr_measured']:.3f} without a law"
    )
    if result["bands"] is not None:
        lines.append("\nPower of --images over the data's, where it differs by more than chance, in cycles/pixel:")
        lines += [band_text(band) for band in result["bands"]] or ["  nowhere"]
    return "\n".join(lines)


def percents(values: Sequence[float]) -> str:
    """0.01, 0.2 → 1, 20 %."""
    return ", ".join(f"{100 * value:g}" for value in values) + " %"


def band_text(band: dict[str, Any]) -> str:
    """A band as a line."""
    where = f"{band['from_cycles_per_pixel']:.3f} to {band['to_cycles_per_pixel']:.3f}"
    return f"  {where}: {band['ratio']:.3f} times"
