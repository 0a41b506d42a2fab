"""`warm spectrum`: measures the power spectrum of a data set, suggests a BNR, and compares generated images."""

import math
import time
from pathlib import Path
from typing import Any

from warm_lightning.analysis import power_law, spectrum_plots
from warm_lightning.analysis.figures import check_matplotlib
from warm_lightning.analysis.spectrum import (
    BLOCKS,
    RESAMPLES,
    MeasuredSpectrum,
    compare_rows,
    differing_bands,
    measure_spectrum,
    spectrum_rows,
    target_pictures,
    target_rows,
)
from warm_lightning.commands.shared import open_images
from warm_lightning.config import module_from_options
from warm_lightning.data import ImageSet
from warm_lightning.data.image_set import dequantised_batches, random_order
from warm_lightning.errors import UserError, check
from warm_lightning.images import dequantise
from warm_lightning.paths import PathText
from warm_lightning.preconditioning import measure_sigma_data
from warm_lightning.records import provenance, text_table, to_json, writable_folder, write_file

BNRS = (0.0, 0.1, 0.3, 0.5, 0.65, 1.0, 2.0, 10.0)
"""The BNRs of Table 3, for which the attenuation is always given."""
SHOWN_IMAGES = 2  # in the figure of targets


def spectrum(
    settings: list[str],
    *,
    outdir: PathText,
    images: PathText | None = None,
    tolerance: float = 0.03,
    fit_below: float = 2.0,
    limit: int | None = None,
    bnrs: str = "0,0.5,2",
    noise: float = 0.5,
    seed: int = 0,
) -> None:
    """Measure the power spectrum of the training images, and suggest a blur-to-noise ratio for a chosen tolerance.

    S is the variance over images of each orthonormal DCT-II coefficient of images in [-1, 1]. The law S = c/λ^s is
    fitted to its mean over channels, by least squares of ln S on ln λ with equal weights for all coefficients with
    0 < λ < fit_below; standard errors are by a bootstrap over blocks of images. Where noise and signal are equal,
    β² = S, a blur α = BNR·β attenuates the signal by 1 − exp(−c·BNR²/2) if s = 1. The suggested BNR is the one at which
    this attenuation equals the tolerance. A law that explains less than half of the variance of ln S suggests nothing.
    The standard deviation of all pixels is printed too: it is what the preconditioning calls sigma_data.

    Writes spectrum.json, spectrum.png (S by radius with the fits), bnr.png (attenuation against BNR), targets.png
    (Fig. 3 of the paper: the observed image and the training targets) and, with --images, compared.png.

    The file has c, s, c_at_s1 (with …_se), explained and explained_at_s1 for the range λ < fit_below, and bnr,
    path_bnr, path_exponent (null where no such law holds), bnr_measured and bnr_strict for the given tolerance;
    sigma_data; the tables fits, suggestions, measured_suggestions, attenuation, spectrum (a
    row for each ring of frequencies), targets (a row for each BNR and ring), and compared and bands (null without
    --images); and protocol. The functions of `warm_lightning.analysis` whose names end in _rows describe the columns.

    Args:
        settings: the data; the model is ignored.
        outdir: folder for the results.
        images: folder or zip of generated images, whose spectrum is compared with that of the data.
        tolerance: attenuation that is accepted where signal and noise are equal, between 0 and 1; it is a choice.
        fit_below: λ in radians²/pixel² below which the law is fitted; .inf for all frequencies.
        limit: use only this number of images of the data, chosen by the seed.
        bnrs: blur-to-noise ratios for Fig. 3, separated by commas; up to 6.
        noise: noise level β for Fig. 3.
        seed: of the bootstrap, of the random halves, and of the images and noise in Fig. 3.
    """
    began = time.perf_counter()
    check(0 < tolerance < 1, f"--tolerance is {tolerance}: an attenuation is between 0 and 1, such as 0.03")
    check(0 < noise < math.inf, f"--noise is {noise}: a noise level is above 0, such as 0.5")
    check(limit is None or limit > 0, f"--limit is {limit}: it must be at least 1")
    ratios = parse_bnrs(bnrs)
    check_matplotlib()
    _, data = module_from_options(settings)
    folder = writable_folder(outdir)
    other = open_images(images) if images else None
    data.prepare_data()
    training = random_subset(data.train_images(), limit, seed)
    other = other and match_data(other, training, str(images))
    measured = measure_spectrum(training, seed)
    fits = power_law.fit_rows(measured, fit_below)
    fit = power_law.chosen_row(fits, fit_below)
    suggestions = power_law.suggestion_rows(fits, tolerance)
    by_law = [row for row in suggestions if row["below"] == fit["below"]]
    suggested = next(row for row in by_law if row["tolerance"] == tolerance)
    without_law = power_law.measured_rows(measured.mean_power, tolerance)
    suggested_without_law = next(row for row in without_law if row["tolerance"] == tolerance)
    compared = compare(measured, other, str(images), seed) if other else {"compared": None, "bands": None}
    all_bnrs = sorted({*BNRS, *ratios, suggested["bnr"]} - {None})
    c_of_law = None if suggested["bnr"] is None else fit["c_at_s1"]
    of_fit = ("c", "c_se", "s", "s_se", "residual", "explained", "c_at_s1", "c_at_s1_se", "explained_at_s1")
    result: dict[str, Any] = {
        **{name: fit[name] for name in of_fit},
        **{name: suggested[name] for name in ("tolerance", "bnr", "bnr_se", "path_bnr", "path_exponent")},
        "bnr_measured": suggested_without_law["bnr"],
        "bnr_strict": suggested_without_law["bnr_strict"],
        "sigma_data": measure_sigma_data(dequantised_batches(training, "pixels")).item(),
        "fits": fits,
        "suggestions": suggestions,
        "measured_suggestions": without_law,
        "attenuation": power_law.attenuation_rows(measured.mean_power, c_of_law, all_bnrs),
        "spectrum": spectrum_rows(measured),
        "targets": target_rows(measured.mean_power, noise, ratios),
        **compared,
    }
    about = f"{type(data).__name__}, {len(training):,} training images of {training.shape[-1]}×{training.shape[-1]}"
    spectrum_plots.plot_spectrum(result["spectrum"], fits, fit_below, about, folder / "spectrum.png")
    spectrum_plots.plot_bnr(measured.mean_power, c_of_law, by_law, tolerance, folder / "bnr.png")
    shown = dequantise(training.take(random_order(len(training), seed)[:SHOWN_IMAGES]))
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
    print(table(result))
    print(f"\nwritten to {folder}")


def parse_bnrs(bnrs: str) -> list[float]:
    """Parse numbers that are separated by commas, and sort them.

    Raises:
        UserError: they are not 1 to 6 blur-to-noise ratios.
    """
    try:
        ratios = sorted({float(part) for part in bnrs.strip("[]").split(",")})
    except ValueError as error:
        raise UserError(f"--bnrs is {bnrs}: give numbers separated by commas, such as 0,0.5,2") from error
    allowed = all(0 <= ratio < math.inf for ratio in ratios) and len(ratios) <= 6
    check(allowed, f"--bnrs is {bnrs}: give up to 6 numbers of 0 (noise only) or more, such as 0,0.5,2")
    return ratios


def random_subset(images: ImageSet, limit: int | None, seed: int) -> ImageSet:
    """Choose `limit` images at random, since the first ones are often of one class; all if there are not more."""
    if limit is None or limit >= len(images):
        return images
    chosen = random_order(len(images), seed)[:limit]
    return ImageSet(images.take(chosen), images.labels[chosen], images.class_names)


def match_data(images: ImageSet, data: ImageSet, path: str) -> ImageSet:
    """Give images the channels of the data.

    Raises:
        UserError: the images have another size, or are RGB while the data are grey.
    """
    if images.shape[0] == 1 < data.shape[0]:
        images = images.as_rgb()
    shape, expected = ("×".join(map(str, shape)) for shape in (images.shape, data.shape))
    check(
        shape == expected,
        f"{path}: the images are {shape} (channels, height, width), the data {expected}: convert them",
    )
    return images


def compare(measured: MeasuredSpectrum, other: ImageSet, path: str, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Compare the spectrum of other images with that of the data: a row for each ring, and the bands that differ."""
    rows = compare_rows(measured, measure_spectrum(other, seed, name=path), seed)
    return {"compared": rows, "bands": differing_bands(rows)}


def table(result: dict[str, Any]) -> str:
    """The result as text: tables of fits and of attenuations, the suggested BNR, and the bands that differ."""
    without_law = result["measured_suggestions"]
    tolerances = ", ".join(f"{100 * row['tolerance']:g}" for row in without_law)
    heads = ("S = c/λ^s", "c", "s", "misfit of ln S", "explained", "c at s = 1", "explained")
    fits: list[tuple[str, ...]] = [(*heads, f"BNR at {tolerances} % attenuation")]
    for fit in result["fits"]:
        bnrs = [f"{row['bnr']:.2f}" for row in result["suggestions"] if row["below"] == fit["below"] and row["bnr"]]
        c, s, c_at_s1 = (f"{fit[n]:.4f} ± {fit[n + '_se']:.4f}" for n in ("c", "s", "c_at_s1"))
        name = "all λ" if fit["below"] is None else f"λ < {fit['below']:g}"
        free, one = (f"{max(0, fit[share]):.0%}" for share in ("explained", "explained_at_s1"))
        fits.append((name, c, s, f"{fit['residual']:.3f}", free, c_at_s1, one, "  ".join(bnrs) or "no such law"))
    for name, column in (("no law, mean over ln β", "bnr"), ("no law, at every β", "bnr_strict")):
        fits.append((name, *[""] * 6, "  ".join(f"{row[column]:.2f}" for row in without_law)))
    gains = [("BNR", "M by formula", "measured", "range, where signal = noise")]
    for row in result["attenuation"]:
        formula = "–" if row["formula"] is None else f"{row['formula']:.4f}"
        measured, lowest, highest = (f"{row[n]:.4f}" for n in ("measured", "lowest", "highest"))
        gains.append((f"{row['bnr']:.3g}", formula, measured, f"{lowest} to {highest}"))
    lines = [text_table(fits, "<>>>>>><"), "", text_table(gains, "<>><"), "\n" + recommendation(result)]
    lines.append(f"Standard deviation of all pixels: {result['sigma_data']:.4f} (model.preconditioning.sigma_data)")
    if result["bands"] is not None:
        lines.append("\nPower of --images over the data's, where it differs by more than chance, in cycles/pixel:")
        lines += [band_text(band) for band in result["bands"]] or ["  nowhere"]
    return "\n".join(lines)


def recommendation(result: dict[str, Any]) -> str:
    """The suggested BNR and path in words, or that no power law holds."""
    fit_below = result["protocol"]["fit_below"]
    below = "over all λ" if fit_below is None else f"below λ = {fit_below:g}"
    if result["path_bnr"] is None:
        return (
            f"There is no power law {below}: c/λ^{result['s']:.2f} explains {result['explained']:.0%} of the variance "
            f"of ln S, and {power_law.EXPLAINED:.0%} are needed. No BNR is recommended"
        )
    ray = "no BNR, since s = 1 does not hold"
    if result["bnr"] is not None:
        ray = f"BNR {result['bnr']:.3f} ± {result['bnr_se']:.3f} by the law with s = 1"
    path = f"PowerLaw with bnr {result['path_bnr']:.3f} and exponent {result['path_exponent']:.3f}"
    return (
        f"At the chosen tolerance of {100 * result['tolerance']:g} %, fitted {below}: {ray}, or {path}; "
        f"{result['bnr_measured']:.3f} without a law"
    )


def band_text(band: dict[str, Any]) -> str:
    """A band as a line of text."""
    where = f"{band['from_cycles_per_pixel']:.3f} to {band['to_cycles_per_pixel']:.3f}"
    return f"  {where}: {band['ratio']:.3f} times"
