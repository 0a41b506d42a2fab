"""The power spectrum of a set of images: over frequencies, by radius, with standard errors, and beside another's."""

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

BLOCKS = 100  # of images in random order, which the bootstrap draws; a standard error is then known to about 7 %
RESAMPLES = 200
FEWEST = 20
"""Images without which a bootstrap means nothing."""
NUMBERS = 2**22  # float64 values held at once: 34 MB
CHANCE = 0.05  # that any ring of two sets of one law is said to differ


@dataclass(frozen=True)
class Measured:
    """A spectrum as measured.

    Attributes:
        count: number of images.
        blocks: the moments of K = 100 random blocks of them, or of single images where there are fewer.
        power: S of each channel, float64 [C, H, W]: the variance over images of each orthonormal DCT-II coefficient
            of images in [-1, 1].
        resampled: S averaged over channels of 200 bootstrap samples of the blocks, float64 [200, H, W].
    """

    count: int
    blocks: Moments
    power: Tensor
    resampled: Tensor

    @property
    def mean_power(self) -> Tensor:
        """S averaged over channels, [H, W]."""
        return self.power.mean(dim=0)


def measure(images: ImageSet, seed: int = 0, what: str = "spectrum") -> Measured:
    """The spectrum of images that are read once, a few at a time.

    Args:
        images: at least `FEWEST`.
        seed: of the order that makes the blocks, and of the bootstrap.
        what: to call it while progress is shown.

    Raises:
        UserError: there are too few images, or some frequency at which none of them differs from the others.
    """
    check(len(images) >= FEWEST, f"{what}: {len(images)} images are too few to measure: give {FEWEST} or more")
    side = images.shape[-1]
    check(side >= 4, f"{what}: images of {side}×{side} pixels have no spectrum to speak of: give 4×4 or more")
    parts = random_order(len(images), seed).tensor_split(min(BLOCKS, len(images)))
    blocks = Moments.cat([_moments(images, part) for part in progress(parts, what)])
    power = blocks.variance()
    still = int((power.mean(dim=0).flatten()[1:] < 1e-12).sum())  # rounding errors are of order 1e-30
    check(
        still == 0,
        f"{what}: at {still} frequencies of {power[0].numel()} no image differs from another: give images with detail",
    )
    generator = torch.Generator().manual_seed(key(seed, "bootstrap", what))
    chance = torch.ones(len(parts), dtype=torch.float64)
    draws = torch.stack([torch.multinomial(chance, len(parts), True, generator=generator) for _ in range(RESAMPLES)])
    resampled = [blocks.weighted(draw.bincount(minlength=len(parts)).double()).variance().mean(dim=0) for draw in draws]
    return Measured(len(images), blocks, power, torch.stack(resampled))


def _moments(images: ImageSet, index: Tensor) -> Moments:
    at_once = max(1, NUMBERS // math.prod(images.shape))
    return Moments.cat([Moments.of(dequantise(images.take(i), torch.float64)) for i in index.split(at_once)]).merged()


def ring_index(like: Tensor) -> Tensor:
    """Which ring each frequency of square images [..., N, N] is in, int64 [N, N].

    Ring r has the radial frequencies √λ nearest to r·π/N, r half-waves an image side: 0 is the mean alone, and N - 1
    the last whole one, beyond which rings are only corners.
    """
    return (frequencies(like).double().sqrt() * like.shape[-1] / math.pi).round().long()


def band_index(like: Tensor, count: int) -> Tensor:
    """Which of `count` bands each frequency of images [..., H, W] is in, int64 [H, W]: rings of equal width in √λ, from
    the mean to the highest, for tables that have no room for every ring."""
    radius = frequencies(like.double()).sqrt()
    share = count * radius / radius.max()
    return (share + 1e-9).long().clamp(max=count - 1)  # frequencies on an edge belong to the higher band, all of them


def ring_means(values: Tensor) -> Tensor:
    """Means over the frequencies of each ring, [..., N, N] → [..., R]."""
    ring = ring_index(values).flatten()
    counts = ring.bincount()
    sums = values.new_zeros(*values.shape[:-2], len(counts)).index_add_(-1, ring, values.flatten(-2))
    return sums / counts


def ring_frequencies(power: Tensor) -> Iterator[dict[str, Any]]:
    """What each ring is: its number, mean λ, radial frequency in two units, and number of coefficients a channel."""
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


def spectrum_rows(measured: Measured) -> list[dict[str, Any]]:
    """S by radius: `ring_frequencies` and power, power_se (by the bootstrap) and power_channels of each ring."""
    power, channels = ring_means(measured.mean_power), ring_means(measured.power)
    errors = ring_means(measured.resampled).std(dim=0)
    return [
        {**about, "power": power[r].item(), "power_se": errors[r].item(), "power_channels": channels[:, r].tolist()}
        for r, about in enumerate(ring_frequencies(measured.power))
    ]


def compare_rows(data: Measured, other: Measured, seed: int = 0) -> list[dict[str, Any]]:
    """The spectrum of other images over that of the data, ring by ring.

    Returns:
        `ring_frequencies` with ratio; ratio_se, its standard error by both bootstraps; halves_low and halves_high,
        between which the ratio of one random half of the data to the other is for 95 % of 200 splits; and differs,
        whether ln ratio is so many standard errors from 0 (`significant`) that only 5 % of comparisons of one law have
        any such ring.
    """
    unbiased = [n / (n - 1) for n in (data.count, other.count)]  # S is a mean of squares; few images have too little
    ratio = ring_means(other.mean_power * unbiased[1]) / ring_means(data.mean_power * unbiased[0])
    variances = [ring_means(measured.resampled).log().var(dim=0) for measured in (data, other)]
    error = (variances[0] + variances[1]).sqrt()  # of ln ratio: the sets are independent
    many = significant(len(ratio), min(len(data.blocks.count), len(other.blocks.count)))
    halves = torch.stack(list(_halves(data, seed))).quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    return [
        {
            **about,
            "ratio": ratio[r].item(),
            "ratio_se": (ratio[r] * error[r]).item(),
            "halves_low": halves[0, r].item(),
            "halves_high": halves[1, r].item(),
            "differs": bool(ratio[r].log().abs() > many * error[r]),
        }
        for r, about in enumerate(ring_frequencies(data.power))
    ]


def significant(rings: int, blocks: int) -> float:
    """Standard errors beyond which one of so many rings is off by chance in 5 % of cases.

    Student's t of the blocks that the errors are known from, with Bonferroni's share for each ring.
    """
    return float(student.ppf(1 - CHANCE / (2 * rings), blocks - 1))


def _halves(data: Measured, seed: int) -> Iterator[Tensor]:
    """The ratio by ring of the spectra of random halves of the blocks."""
    generator = torch.Generator().manual_seed(key(seed, "halves"))
    count = len(data.blocks.count)
    for _ in range(RESAMPLES):
        first = torch.zeros(count, dtype=torch.float64)
        first[torch.randperm(count, generator=generator)[: count // 2]] = 1
        a, b = (ring_means(data.blocks.weighted(w).variance().mean(dim=0)) for w in (first, 1 - first))
        yield a / b


def differing_bands(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of rings that differ, all to the same side: from and to in cycles a pixel, rings, and the mean ratio."""
    bands: list[list[dict[str, Any]]] = []
    before: tuple[bool, bool] | None = None
    for row in rows:
        now = (row["differs"], row["ratio"] > 1)
        if row["differs"]:
            if now != before:
                bands.append([])
            bands[-1].append(row)
        before = now
    return [
        {
            "from_cycles_per_pixel": band[0]["cycles_per_pixel"],
            "to_cycles_per_pixel": band[-1]["cycles_per_pixel"],
            "rings": [band[0]["ring"], band[-1]["ring"]],
            "ratio": sum(row["ratio"] for row in band) / len(band),
        }
        for band in bands
    ]


NAMES = ("observed", "denoising_target", "deblurring_target")
"""What Fig. 3 shows of an image: M x0 + β z, M x0 and (1 - M) x0."""


def target_rows(power: Tensor, noise: float, bnrs: Sequence[float]) -> list[dict[str, Any]]:
    """Spectra by radius at β = noise and α = BNR·β; mean S of each ring after the gains.

    Args:
        power: S, [H, W].
        noise: β.
        bnrs: the BNRs.

    Returns:
        A row a BNR and ring: bnr, `ring_frequencies`, power S, observed M²S + β², signal M²S, noise β²,
        denoising_target M²S and deblurring_target (1 - M)²S.
    """
    log_gains = log_blur_mask(noise * torch.tensor(bnrs, dtype=power.dtype), power)[:, 0]
    whole = ring_means(power)
    signal, rest = (ring_means(gain.square() * power) for gain in (log_gains.exp(), torch.expm1(log_gains)))
    return [
        {
            "bnr": bnr,
            **about,
            "power": whole[r].item(),
            "observed": signal[i, r].item() + noise**2,
            "signal": signal[i, r].item(),
            "noise": noise**2,
            "denoising_target": signal[i, r].item(),
            "deblurring_target": rest[i, r].item(),
        }
        for i, bnr in enumerate(bnrs)
        for r, about in enumerate(ring_frequencies(power))
    ]


def target_pictures(images: Tensor, noise: float, bnrs: Sequence[float], seed: int = 0) -> Tensor:
    """`NAMES` of images [N, C, H, W] in [-1, 1], for each BNR: [BNRs, 3, N, C, H, W], the noise the same for all."""
    generator = torch.Generator().manual_seed(key(seed, "noise"))
    z = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    pictures = []
    for bnr in bnrs:
        gain = log_blur_mask(torch.tensor([bnr * noise], dtype=images.dtype), images).exp()
        blurred = idct(gain * dct(images))
        pictures.append(torch.stack([blurred + noise * z, blurred, images - blurred]))
    return torch.stack(pictures)
