"""Spectra: that spectra, laws, BNRs and comparisons are what is true of images whose truth is known."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from experiments.studies.jpeg_spectrum import CORRELATION, fields
from warm_lightning.analysis import power_law
from warm_lightning.analysis import spectrum as analysis
from warm_lightning.analysis.power_law import attenuation_rows, crossings, fit_row, measured_rows
from warm_lightning.analysis.spectrum import (
    MeasuredSpectrum,
    compare_rows,
    differing_bands,
    measure_spectrum,
    ring_means,
    spectrum_rows,
    target_pictures,
    target_rows,
)
from warm_lightning.data import ImageSet
from warm_lightning.images import dequantise, quantise
from warm_lightning.processes import PowerLaw
from warm_lightning.spectral import dct, frequencies, idct, log_blur_mask, power_spectrum

TRUE_C, TRUE_S, COUNT = 0.02, 1.2, 1500  # so faint that no pixel is clipped
GREY_LEVEL = 1 / 127.5
ROUNDING = GREY_LEVEL**2 / 12  # variance that rounding to 8 bits adds to every coefficient
SIZE = 16


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """Fields of known spectrum, uint8 [1500, 3, 16, 16]."""
    return quantise(fields(COUNT, SIZE, seed=1, c=TRUE_C, s=TRUE_S))


@pytest.fixture(scope="module")
def measured(photographs: torch.Tensor) -> MeasuredSpectrum:
    return measure_spectrum(ImageSet.without_classes(photographs))


def law(c: float, s: float, size: int = 32) -> torch.Tensor:
    """S = c/λˢ exactly, [size, size]."""
    rates = frequencies(torch.zeros(size, size, dtype=torch.float64))
    return c / rates.clamp(min=rates[0, 1] / 2) ** s


def test_streamed_spectrum_is_the_variance_at_one_go(photographs, monkeypatch) -> None:
    monkeypatch.setattr(analysis, "VALUES_AT_ONCE", 4 * photographs[0].numel())  # four images at a time
    truth = dctn(dequantise(photographs[:230], torch.float64).numpy(), norm="ortho", axes=(2, 3)).var(axis=0)
    streamed = measure_spectrum(ImageSet.without_classes(photographs[:230])).power
    batches = power_spectrum(dequantise(part) for part in photographs[:230].split([100, 1, 129]))
    for power in (streamed, batches):
        # The second is of float32 images, whose pixels are rounded to 6e-8.
        np.testing.assert_allclose(power.numpy(), truth, rtol=1e-5 if power is batches else 1e-11)


def test_known_law_is_found_within_its_standard_errors(measured: MeasuredSpectrum) -> None:
    for row in [*power_law.fit_rows(measured, 2.0), fit_row(measured, 3.0)]:
        for name, truth in (("c", TRUE_C), ("s", TRUE_S)):
            # Four standard errors, of which sampling is the most: rounding adds at most 1 % to S, at the corner.
            assert abs(row[name] - truth) < 4 * row[f"{name}_se"] + 0.005 * truth
    with_s_1 = fit_row(measured, 3.0)
    rates = frequencies(measured.power)
    chosen = rates[(rates > 0) & (rates < 3)]
    # With s = 1, ln c is the mean of ln λS, whatever S is.
    assert with_s_1["c_at_s1"] == pytest.approx(TRUE_C * (chosen.log() * (1 - TRUE_S)).mean().exp().item(), rel=0.01)


def test_a_law_explains_what_least_squares_leave(measured: MeasuredSpectrum) -> None:
    """The share is R², as of NumPy's correlation; and all, some or nothing where the truth says so."""
    rates, power = frequencies(measured.power), measured.mean_power
    chosen = (rates > 0) & (rates < 2)
    correlation = np.corrcoef(rates[chosen].log(), power[chosen].log())[0, 1]
    assert fit_row(measured, 2.0)["explained"] == pytest.approx(correlation**2, rel=1e-9)
    assert power_law.fit(law(0.3, 0.2), 2.0).explained.item() == pytest.approx(1, abs=1e-12)
    assert power_law.fit(law(0.3, 0.2), 2.0, s=1.0).explained.item() < 0
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(32, 32, generator=generator, dtype=torch.float64).exp()
    assert power_law.fit(noise, math.inf).explained.item() < 0.01  # 1023 coefficients: about 1/1023 by chance
    half = law(1.0, 1.0) * noise ** law(1.0, 1.0)[1:, 1:].log().std().item()
    assert power_law.fit(half, math.inf).explained.item() == pytest.approx(0.5, abs=0.1)


def test_standard_errors_are_those_of_least_squares(measured: MeasuredSpectrum) -> None:
    """The intervals are known for independent coefficients of Gaussian images: var ln S = 2/N a channel."""
    rates = frequencies(measured.power)
    x = rates[(rates > 0) & (rates < 5)].log()
    # The mean over three channels, whose squares correlate by CORRELATION².
    variance = 2 / COUNT * (1 + 2 * CORRELATION**2) / 3
    slope = math.sqrt(variance / (x - x.mean()).square().sum())
    intercept = math.sqrt(variance * (1 / len(x) + x.mean() ** 2 / (x - x.mean()).square().sum()))
    row = fit_row(measured, 5.0)
    # 100 blocks and 200 samples give a standard error to about 9 %; three times that.
    assert row["s_se"] == pytest.approx(slope, rel=0.27)
    assert row["c_se"] == pytest.approx(TRUE_C * intercept, rel=0.27)
    assert row["c_at_s1_se"] == pytest.approx(row["c_at_s1"] * math.sqrt(variance / len(x)), rel=0.27)
    power_error = next(r for r in spectrum_rows(measured) if r["ring"] == 8)
    expected = power_error["power"] * math.sqrt(variance / power_error["coefficients"])
    assert power_error["power_se"] == pytest.approx(expected, rel=0.27)


@pytest.mark.parametrize("size", [4, 8, 15, 32])
def test_rings_are_a_partition_by_radius(size: int) -> None:
    power = torch.rand(1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    rows = spectrum_rows(MeasuredSpectrum(1, None, power, power.repeat(2, 1, 1)))  # type: ignore[arg-type]
    by_hand: dict[int, list[float]] = {}
    for (i, j), value in np.ndenumerate(power[0].numpy()):
        by_hand.setdefault(round(math.hypot(i, j)), []).append(value)
    assert [row["ring"] for row in rows] == sorted(by_hand)
    assert sum(row["coefficients"] for row in rows) == size**2
    for row in rows:
        assert row["coefficients"] == len(by_hand[row["ring"]])
        assert row["power"] == pytest.approx(np.mean(by_hand[row["ring"]]))
        # A cosine of r half-waves an image side has r/(2·size) cycles a pixel.
        assert row["cycles_per_pixel"] == pytest.approx(row["ring"] / (2 * size), abs=0.51 / (2 * size))
    assert rows[0]["coefficients"] == 1
    assert rows[0]["lambda"] == 0


def test_attenuation_of_an_exact_law_is_the_formulas() -> None:
    for row in attenuation_rows(law(0.25, 1), 0.25, (0, 0.5, 2)):
        for name in ("measured", "lowest", "highest"):
            assert row[name] == pytest.approx(math.exp(-0.25 * row["bnr"] ** 2 / 2), rel=1e-9)
    # Section 4 of the design: BNR 0.5 attenuates by about 3 % where SNR = 1 if c is about 0.25.
    assert 1 - power_law.formula(0.25, 0.5) == pytest.approx(0.03, abs=0.002)


@pytest.mark.parametrize("tolerance", [0.01, 0.03, 0.2, 0.9])
@pytest.mark.parametrize("s", [0.6, 1.0, 1.7])
def test_suggestions_attenuate_by_the_tolerance(s: float, tolerance: float) -> None:
    power = law(0.3, s)
    path = power_law.suggested_path(0.3, s, tolerance)
    beta, rate = crossings(power)
    torch.testing.assert_close(0.3 / rate**s, beta**2)  # λ* is where the noise meets the signal
    gain = torch.exp(-rate * PowerLaw(**path)(beta) ** 2 / 2)
    torch.testing.assert_close(gain, torch.full_like(gain, 1 - tolerance), rtol=1e-9, atol=0)
    bnr = power_law.suggested_bnr(0.3, tolerance)
    assert power_law.formula(0.3, bnr) == pytest.approx(1 - tolerance)
    row = next(row for row in measured_rows(power, tolerance) if row["tolerance"] == tolerance)
    gains = torch.exp(-rate * (row["bnr"] * beta) ** 2 / 2)
    assert 1 - gains.mean().item() == pytest.approx(tolerance, rel=1e-6)
    strict = torch.exp(-rate * (row["bnr_strict"] * beta) ** 2 / 2)
    assert 1 - strict.min().item() == pytest.approx(tolerance)
    if s == 1:
        assert path == pytest.approx({"bnr": bnr, "exponent": 1})
        assert row["bnr"] == pytest.approx(bnr)


def test_noise_meets_a_bumpy_spectrum_where_it_stays_above() -> None:
    power = law(0.3, 1)
    ring = analysis.ring_index(power)
    power[ring == 2] *= 0.1  # a dip, so that some noise levels meet the signal three times
    power[ring == 12] *= 4
    beta, rate = crossings(power)
    x, y = (ring_means(values.log())[1:] for values in (frequencies(power), power))
    interpolated = np.interp(rate.log().numpy(), x.numpy(), y.numpy())
    np.testing.assert_allclose(interpolated, 2 * beta.log().numpy(), atol=1e-9)
    for level, meeting in zip(2 * beta.log(), rate.log(), strict=True):
        assert (y[x > meeting + 1e-9] < level).all()


def test_halves_of_a_set_have_the_same_spectrum(photographs) -> None:
    a, b = (measure_spectrum(ImageSet.without_classes(half), name="half") for half in photographs.split(750))
    rows = compare_rows(a, b)
    scores = [(row["ratio"] - 1) / row["ratio_se"] for row in rows]
    # 22 normal scores: their mean square is 1 ± 0.3.
    assert 0.3 < np.mean(np.square(scores)) < 2.2
    assert sum(row["differs"] for row in rows) <= 1
    assert all(row["halves_low"] < 1 < row["halves_high"] for row in rows)
    # Halves of 375 images on each side: var ln ratio = 2·var of each; 95 % is 3.92 standard deviations wide.
    for row in rows[4:]:
        spread = math.sqrt(2 * 2 / 375 * (1 + 2 * CORRELATION**2) / 3 / row["coefficients"])
        assert math.log(row["halves_high"] / row["halves_low"]) == pytest.approx(3.92 * spread, rel=0.4)


def test_few_images_of_the_same_law_do_not_differ(photographs) -> None:
    """A spectrum of 20 images is a twentieth too small, and its errors are known from 20 numbers."""
    data = measure_spectrum(ImageSet.without_classes(photographs[500:]))
    ratios, differing = [], 0
    for start in range(0, 500, 20):
        rows = compare_rows(data, measure_spectrum(ImageSet.without_classes(photographs[start : start + 20])))[4:]
        weights = [row["coefficients"] for row in rows]
        ratios.append(np.average([row["ratio"] for row in rows], weights=weights))
        differing += any(row["differs"] for row in rows)
    assert np.mean(ratios) == pytest.approx(1, abs=4 * np.std(ratios) / 5)
    assert np.std(ratios) / 5 < 0.01  # so that a twentieth is seen
    assert differing <= 5  # of 25; 3 standard errors alone would give more


def test_blurred_images_lack_power_by_the_square_of_the_mask(photographs, measured) -> None:
    u = dct(dequantise(photographs, torch.float64))
    mask = log_blur_mask(torch.tensor([0.4]), u).exp()
    rows = compare_rows(measured, measure_spectrum(ImageSet.without_classes(quantise(idct(mask * u))), name="blurred"))
    blurred = ring_means(mask[0, 0].square() * measured.mean_power) + ROUNDING
    expected = (blurred / ring_means(measured.mean_power)).tolist()
    # Rounding adds its variance to within a few per cent of itself, at most a tenth of what is left.
    assert [row["ratio"] for row in rows] == pytest.approx(expected, rel=0.02)
    bands = differing_bands(rows)
    assert len(bands) == 1  # from somewhere on, all frequencies
    assert bands[0]["rings"][1] == rows[-1]["ring"]
    assert bands[0]["ratio"] < 0.8


def test_targets_are_the_spectra_of_the_pictures(photographs, measured) -> None:
    """Fig. 3's spectra by another route: those of the images that it shows, for all images."""
    images, noise, bnrs = dequantise(photographs, torch.float64), 0.2, [0.0, 2.0]
    pictures = target_pictures(images, noise, bnrs)
    rows = target_rows(measured.mean_power, noise, bnrs)
    for bnr, (observed, denoising, deblurring) in zip(bnrs, pictures, strict=True):
        mine = [row for row in rows if row["bnr"] == bnr]
        for name, images in (("denoising_target", denoising), ("deblurring_target", deblurring)):
            expected = ring_means(power_spectrum(images).mean(dim=0)).tolist()
            assert [row[name] for row in mine] == pytest.approx(expected, rel=1e-9, abs=1e-15)
        # Noise is drawn: 4,500 values at each of a ring's coefficients, of which the first has one: 5 deviations.
        found = ring_means(power_spectrum(observed).mean(dim=0)).tolist()
        for row, value in zip(mine, found, strict=True):
            assert row["observed"] == pytest.approx(value, rel=5 * math.sqrt(2 / 1500 / row["coefficients"]))
            assert row["observed"] == row["signal"] + row["noise"]
    assert all(row["signal"] == row["power"] and row["deblurring_target"] == 0 for row in rows if row["bnr"] == 0)


def test_fields_have_the_law_and_correlation_they_state() -> None:
    x = dct(fields(3000, 8, seed=0, c=0.3, s=0.9))
    rates = frequencies(x)
    white = x * (rates**0.9 / 0.3).sqrt()
    products = torch.einsum("nihw,njhw->ijhw", white, white).flatten(2)[:, :, 1:] / len(x)
    # 3,000 Gaussian values each: a variance to 2.6 %; of 63 × 3 none is further off than 4 such deviations.
    assert (products.diagonal() - 1).abs().max() < 4 * math.sqrt(2 / 3000)
    assert products[0, 1].mean().item() == pytest.approx(CORRELATION, abs=0.01)
