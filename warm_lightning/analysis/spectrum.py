"""The power spectrum of a set of images: its measurement with standard errors, tables by radius, and comparisons.

The spectrum S is the variance over images of each orthonormal DCT-II coefficient of images in [-1, 1]. Rings collect
the frequencies of about the same radial frequency √λ.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from warm_lightning.data import ImageSet
from warm_lightning.data.image_set import random_order
from warm_lightning.distributed import progress
from warm_lightning.errors import check
from warm_lightning.images import dequantise
from warm_lightning.rng import key
from warm_lightning.spectral import Moments, dct, frequencies, idct, log_blur_mask

# ---- measurement

BLOCKS = 100  # blocks of images for the bootstrap; a standard error is then known to about 7 %
RESAMPLES = 200  # bootstrap samples, and random halves
MIN_IMAGES = 20  # with fewer images the bootstrap is meaningless
VALUES_AT_ONCE = 2**22  # float64 values in memory at once: 34 MB


@dataclass(frozen=True)
class MeasuredSpectrum:
    """The spectrum of a set of images with the data for its standard errors.

    Attributes:
        count: number of images.
        blocks: the moments of K = 100 random blocks of the images, or of single images if there are fewer.
        power: S of each channel, float64 [C, H, W].
        resampled: S averaged over channels, for 200 bootstrap samples of the blocks, float64 [200, H, W].
    """

    count: int
    blocks: Moments
    power: Tensor
    resampled: Tensor

    @property
    def mean_power(self) -> Tensor:
        """S averaged over channels, [H, W]."""
        return self.power.mean(dim=0)


def measure_spectrum(images: ImageSet, seed: int = 0, name: str = "spectrum") -> MeasuredSpectrum:
    """Measure the spectrum of images, which are read once, a few at a time.

    Args:
        images: at least `MIN_IMAGES` images.
        seed: of the random blocks and of the bootstrap.
        name: of the images in the progress bar and in errors; the bootstrap depends on it, too.

    Raises:
        UserError: there are too few images, or they are too small, or all are equal at some frequency.
    """
    check(len(images) >= MIN_IMAGES, f"{name}: {len(images)} images are too few to measure: give {MIN_IMAGES} or more")
    side = images.shape[-1]
    check(side >= 4, f"{name}: images of {side}×{side} pixels are too small for a spectrum: give 4×4 or more")
    parts = random_order(len(images), seed).tensor_split(min(BLOCKS, len(images)))
    blocks = Moments.cat([_moments(images, part) for part in progress(parts, name)])
    power = blocks.variance()
    constant = int((power.mean(dim=0).flatten()[1:] < 1e-12).sum())  # rounding errors are of order 1e-30
    check(
        constant == 0,
        f"{name}: at {constant} frequencies of {power[0].numel()} no image differs from another: "
        "give images with detail",
    )
    generator = torch.Generator().manual_seed(key(seed, "bootstrap", name))
    equal = torch.ones(len(parts), dtype=torch.float64)
    draws = torch.stack([torch.multinomial(equal, len(parts), True, generator=generator) for _ in range(RESAMPLES)])
    resampled = [blocks.weighted(draw.bincount(minlength=len(parts)).double()).variance().mean(dim=0) for draw in draws]
    return MeasuredSpectrum(len(images), blocks, power, torch.stack(resampled))


def _moments(images: ImageSet, index: Tensor) -> Moments:
    at_once = max(1, VALUES_AT_ONCE // math.prod(images.shape))
    return Moments.cat([Moments.of(dequantise(images.take(i), torch.float64)) for i in index.split(at_once)]).merged()


# ---- rings of frequencies


def ring_index(like: Tensor) -> Tensor:
    """The number of the ring of each frequency of square images [..., N, N], int64 [N, N].

    Ring r contains the radial frequencies √λ nearest to r·π/N, which is r half-waves per image side. Ring 0 is the mean
    alone, and N - 1 is the last whole ring; larger rings contain only corners of the plane of frequencies.
    """
    return (frequencies(like).double().sqrt() * like.shape[-1] / math.pi).round().long()


def ring_means(values: Tensor) -> Tensor:
    """The mean over the frequencies of each ring, [..., N, N] → [..., rings]."""
    ring = ring_index(values).flatten()
    counts = ring.bincount()
    sums = values.new_zeros(*values.shape[:-2], len(counts)).index_add_(-1, ring, values.flatten(-2))
    return sums / counts


def ring_frequencies(power: Tensor) -> Iterator[dict[str, Any]]:
    """A row for each ring: number, mean λ, radial frequency in two units, and number of coefficients per channel."""
    counts = ring_index(power).flatten().bincount().tolist()
    for ring, (rate, count) in enumerate(zip(ring_means(frequencies(power)).tolist(), counts, strict=True)):
        radians = math.sqrt(rate)
        yield {
            "ring": ring,
            "lambda": rate,
            "radians_per_pixel": radians,
            "cycles_per_pixel": radians / (2 * math.pi),
            "coefficients": count,
        }


def spectrum_rows(measured: MeasuredSpectrum) -> list[dict[str, Any]]:
    """S by radius, a row for each ring: `ring_frequencies`, power, power_se (by the bootstrap) and power_channels."""
    power, channels = ring_means(measured.mean_power), ring_means(measured.power)
    errors = ring_means(measured.resampled).std(dim=0)
    return [
        {**ring, "power": power[r].item(), "power_se": errors[r].item(), "power_channels": channels[:, r].tolist()}
        for r, ring in enumerate(ring_frequencies(measured.power))
    ]


# ---- comparison of two sets of images

SIGNIFICANCE = 0.05  # probability that any ring of two sets of images from the same law is reported as different


def compare_rows(data: MeasuredSpectrum, other: MeasuredSpectrum, seed: int = 0) -> list[dict[str, Any]]:
    """The ratio of the spectrum of other images to that of the data, a row for each ring.

    Returns:
        `ring_frequencies` with ratio; ratio_se, its standard error by both bootstraps; halves_low and halves_high,
        the 95 % interval over 200 random splits of the ratio of one half of the data to the other half; and differs,
        whether ln ratio is more than `critical_value` standard errors from 0, so that only 5 % of comparisons of sets
        from the same law have any such ring.
    """
    unbiased = [n / (n - 1) for n in (data.count, other.count)]  # S is a mean of squares, which is biased low
    ratio = ring_means(other.mean_power * unbiased[1]) / ring_means(data.mean_power * unbiased[0])
    variances = [ring_means(measured.resampled).log().var(dim=0) for measured in (data, other)]
    error = (variances[0] + variances[1]).sqrt()  # of ln ratio: the sets are independent
    critical = critical_value(len(ratio), min(len(data.blocks.count), len(other.blocks.count)))
    halves = torch.stack(list(_halves(data, seed))).quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    return [
        {
            **ring,
            "ratio": ratio[r].item(),
            "ratio_se": (ratio[r] * error[r]).item(),
            "halves_low": halves[0, r].item(),
            "halves_high": halves[1, r].item(),
            "differs": bool(ratio[r].log().abs() > critical * error[r]),
        }
        for r, ring in enumerate(ring_frequencies(data.power))
    ]


def critical_value(rings: int, blocks: int) -> float:
    """The number of standard errors that any of the rings exceeds by chance in 5 % of comparisons.

    It is Student's t for the number of blocks behind the errors, with Bonferroni's correction for the number of rings.
    """
    return float(student.ppf(1 - SIGNIFICANCE / (2 * rings), blocks - 1))


def _halves(data: MeasuredSpectrum, seed: int) -> Iterator[Tensor]:
    """The ratio of the spectra of two random halves of the blocks, [rings], for each of many splits."""
    generator = torch.Generator().manual_seed(key(seed, "halves"))
    count = len(data.blocks.count)
    for _ in range(RESAMPLES):
        first = torch.zeros(count, dtype=torch.float64)
        first[torch.randperm(count, generator=generator)[: count // 2]] = 1
        a, b = (ring_means(data.blocks.weighted(w).variance().mean(dim=0)) for w in (first, 1 - first))
        yield a / b


def differing_bands(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of neighbouring rings that differ in one direction: limits in cycles per pixel, rings, and mean ratio."""
    bands: list[list[dict[str, Any]]] = []
    previous: tuple[bool, bool] | None = None
    for row in rows:
        current = (row["differs"], row["ratio"] > 1)
        if row["differs"]:
            if current != previous:
                bands.append([])
            bands[-1].append(row)
        previous = current
    return [
        {
            "from_cycles_per_pixel": band[0]["cycles_per_pixel"],
            "to_cycles_per_pixel": band[-1]["cycles_per_pixel"],
            "rings": [band[0]["ring"], band[-1]["ring"]],
            "ratio": sum(row["ratio"] for row in band) / len(band),
        }
        for band in bands
    ]


# ---- the targets of Fig. 3


def target_rows(power: Tensor, noise: float, bnrs: Sequence[float]) -> list[dict[str, Any]]:
    """Spectra by radius of the observed image and of both training targets, at β = noise and α = BNR·β.

    Args:
        power: S, [H, W].
        noise: β.
        bnrs: the BNRs.

    Returns:
        A row for each BNR and ring, with means over the ring: bnr, `ring_frequencies`, power S, observed M²S + β²,
        signal M²S, noise β², denoising_target M²S and deblurring_target (1 - M)²S.
    """
    log_gains = log_blur_mask(noise * torch.tensor(bnrs, dtype=power.dtype), power)[:, 0]
    whole = ring_means(power)
    signal, residual = (ring_means(gain.square() * power) for gain in (log_gains.exp(), torch.expm1(log_gains)))
    return [
        {
            "bnr": bnr,
            **ring,
            "power": whole[r].item(),
            "observed": signal[i, r].item() + noise**2,
            "signal": signal[i, r].item(),
            "noise": noise**2,
            "denoising_target": signal[i, r].item(),
            "deblurring_target": residual[i, r].item(),
        }
        for i, bnr in enumerate(bnrs)
        for r, ring in enumerate(ring_frequencies(power))
    ]


def target_pictures(images: Tensor, noise: float, bnrs: Sequence[float], seed: int = 0) -> Tensor:
    """The observed images M x0 + β z and the targets M x0 and (1 - M) x0 of Fig. 3, with equal noise z for all BNRs.

    Args:
        images: [N, C, H, W] in [-1, 1].
        noise: β.
        bnrs: the BNRs.
        seed: of the noise.

    Returns:
        [BNRs, 3, N, C, H, W].
    """
    generator = torch.Generator().manual_seed(key(seed, "noise"))
    z = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    pictures = []
    for bnr in bnrs:
        gain = log_blur_mask(torch.tensor([bnr * noise], dtype=images.dtype), images).exp()
        blurred = idct(gain * dct(images))
        pictures.append(torch.stack([blurred + noise * z, blurred, images - blurred]))
    return torch.stack(pictures)
