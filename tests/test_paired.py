"""Confidence intervals of differences, where the truth is known."""

import pytest
import torch
from torch import Tensor

from warm_lightning.metrics.distances import Normal, frechet_distance
from warm_lightning.metrics.paired import paired_frechet, paired_rounds, too_few

F = 4
REFERENCE = Normal(torch.zeros(F).double(), torch.eye(F).double())


def models(seed: int, count: int = 400, shared: float = 1.0) -> tuple[Tensor, Tensor]:
    """Samples of two models, mostly of the noise of the same seeds: N(0.3, 1) and N(0.35, 1.05²) in each feature."""
    generator = torch.Generator().manual_seed(seed)
    z, other, small = torch.randn(3, count, F, generator=generator, dtype=torch.float64)
    a = z
    b = shared * (0.98 * z + (1 - 0.98**2) ** 0.5 * small) + (1 - shared) * other
    return 0.3 + a, 0.35 + 1.05 * b


TRUE_DIFFERENCE = F * (0.3**2 - 0.35**2 - 0.05**2)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    found = [paired_frechet(*models(seed), REFERENCE) for seed in range(60)]
    # The bias of both distances, about F²/(2N) each, cancels but for a little: without it the truth is the closed form.
    values = torch.tensor([d.value for d in found])
    assert values.mean().item() == pytest.approx(TRUE_DIFFERENCE, abs=3 * values.std().item() / 60**0.5 + 1e-3)
    covered = sum(d.low <= TRUE_DIFFERENCE <= d.high for d in found)
    assert 51 <= covered <= 60  # 57 expected; 51 and fewer has a chance of 2 % at 95 %
    # And they are as wide as the values' own spread asks for: 4.2 standard deviations with 19 degrees of freedom.
    widths = torch.tensor([d.high - d.low for d in found])
    assert widths.mean() / values.std() == pytest.approx(4.2, rel=0.25)


def test_near_the_reference_intervals_are_too_wide_rather_than_too_narrow():
    # Two perfect models: the difference of their expected distances is 0.
    found = []
    for seed in range(60):
        z, small = torch.randn(2, 300, F, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found.append(paired_frechet(z, 0.9 * z + (1 - 0.9**2) ** 0.5 * small, REFERENCE))
    assert sum(d.low <= 0 <= d.high for d in found) >= 55  # 57 expected of exact intervals, more of wider ones
    values, widths = (torch.tensor(v) for v in ([d.value for d in found], [d.high - d.low for d in found]))
    # 1.3 to 1.5 times the 4.2 standard deviations of exact ones; the spread of 60 values is known to 10 %.
    assert 4.2 * 1.1 < widths.mean() / values.std() < 4.2 * 1.7


def test_too_few_images_for_the_features_are_called_so():
    assert too_few(200, 100) == ""
    assert "199 images are fewer than twice the 100 features" in too_few(199, 100)


def test_pairing_makes_the_interval_narrower():
    paired, independent = (paired_frechet(*models(1, shared=s), REFERENCE) for s in (1.0, 0.0))
    assert paired.high - paired.low < 0.5 * (independent.high - independent.low)


def test_scores_are_those_of_all_samples_and_a_model_does_not_differ_from_itself():
    a, b = models(2)
    found = paired_frechet(a, b, REFERENCE)
    assert found.a == pytest.approx(frechet_distance(Normal(a.mean(0), a.T.cov()), REFERENCE), rel=1e-9)
    assert found.b == pytest.approx(frechet_distance(Normal(b.mean(0), b.T.cov()), REFERENCE), rel=1e-9)
    assert found.low < found.value < found.high
    same = paired_frechet(a, a, REFERENCE)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_rounds_have_students_interval():
    # Differences 1, 2, 3: mean 2, standard error 1/√3, t(0.975; 2) = 4.302653.
    found = paired_rounds([3, 5, 7], [2, 3, 4])
    assert (found.a, found.b, found.value) == (5, 3, 2)
    assert (found.low, found.high) == (pytest.approx(2 - 4.302653 / 3**0.5), pytest.approx(2 + 4.302653 / 3**0.5))
