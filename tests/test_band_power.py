"""The power of samples by bands of frequencies: from moments of pixels, against the images themselves."""

import pytest
import torch
from truths import digits

from warm_lightning.images import dequantise, quantise
from warm_lightning.metrics import Pixels
from warm_lightning.metrics.classifiers import DigitsFeatures
from warm_lightning.metrics.distances import Normal, ThinNormal, moment_sums
from warm_lightning.metrics.scores import HighPower, LowPower, MidPower, Reference, Summary, all_scores, usable
from warm_lightning.spectral import band_index, dct, idct

BANDS = (LowPower(), MidPower(), HighPower())


def normal(images: torch.Tensor, thin: bool) -> Normal | ThinNormal:
    features = Pixels()(images)[0]
    return ThinNormal.from_features(features) if thin else Normal.from_sums(moment_sums(features))


@pytest.mark.parametrize("thin", [False, True])
def test_power_is_that_of_the_images(thin: bool) -> None:
    data = torch.cat([digits(200), digits(200).flip(2), digits(200).roll(1, 3)], 1)  # three channels that are not alike
    gains = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)[band_index(data, 3)]
    reference = quantise(data)
    samples = quantise(idct(gains * dct(data)) / 8)
    of_samples = Summary(200, normal(samples, thin), torch.zeros(0), {})
    of_reference = Reference(normal(reference, thin), "digits", shape=(3, 8, 8))
    for k, score in enumerate(BANDS):
        here, there = (
            dct(dequantise(x).double()).square().mean((0, 1))[band_index(data, 3) == k].mean()
            for x in (samples, reference)
        )
        # The covariance is divided by N - 1, which is 0.5 % of it, and in both.
        assert score.compute(of_samples, of_reference) == pytest.approx((here / there).item(), rel=2e-3)


def test_it_is_left_out_for_features_and_unknown_sizes() -> None:
    reference = Reference(normal(quantise(digits(200)), False), "digits", shape=(1, 8, 8))
    assert usable(BANDS, Pixels(), reference, False) == list(BANDS)
    assert usable(BANDS, DigitsFeatures(), reference, True) == []
    assert usable(BANDS, Pixels(), Reference(reference.normal, "a file"), False) == []
    assert not any(isinstance(score, type(band)) for score in all_scores() for band in BANDS)  # asked for by name only
