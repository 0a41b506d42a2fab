"""What scores are made of, against closed forms, brute force, scipy and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore as TorchmetricsInceptionScore

from warm_lightning.data import Digits
from warm_lightning.metrics import neighbours
from warm_lightning.metrics.frechet import Moments, Normal, frechet_distance
from warm_lightning.metrics.gaussian import moment_matched
from warm_lightning.metrics.inception_score import InceptionScore
from warm_lightning.metrics.neighbours import memorisation, precision_recall, unseen_distance


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise_images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def normal(features: Tensor, parts: int = 1) -> Normal:
    moments = Moments(features.shape[1])
    for part in features.chunk(parts):
        moments.update(part)
    return Normal(*moments.compute()[:2])


# ------------------------------------------------------------------ Fréchet distance


def test_frechet_distance_of_commuting_normals_has_a_closed_form():
    basis = torch.linalg.qr(draw(8, 8)).Q
    a, b = torch.linspace(0, 3, 8).double(), torch.linspace(2, 1, 8).double()
    mean = draw(8, seed=1)
    first, second = (Normal(m, basis * v @ basis.T) for m, v in ((mean, a), (mean + 0.5, b)))
    expected = 8 * 0.25 + (a.sqrt() - b.sqrt()).square().sum()
    assert frechet_distance(first, second) == pytest.approx(expected.item(), rel=1e-12)
    assert frechet_distance(first, first) < 1e-12


def test_frechet_distance_is_scipys_and_torchmetrics():
    # Full rank and well conditioned, where all three are accurate.
    x, y = draw(300, 20) @ draw(20, 20, seed=1) + 5, draw(200, 20, seed=2) @ draw(20, 20, seed=3) + 4
    ours = frechet_distance(normal(x, 7), normal(y, 3))
    covariances = np.cov(x.numpy().T), np.cov(y.numpy().T)
    scipys = (x.mean(0) - y.mean(0)).square().sum().item() + sum(c.trace() for c in covariances)
    scipys -= 2 * sqrtm(covariances[0] @ covariances[1]).trace().real
    assert ours == pytest.approx(scipys, rel=1e-9)

    identity = nn.Identity()
    identity.num_features = 20
    metric = FrechetInceptionDistance(feature=identity)
    metric.update(x, real=True)
    metric.update(y, real=False)
    assert ours == pytest.approx(metric.compute().item(), rel=1e-9)


@pytest.mark.parametrize("near", [True, False])
def test_frechet_distance_holds_without_full_rank(near):
    # tr(Σa Σb)^½ is the nuclear norm of A Bᵀ, with A and B the centred features over √(N−1): another route,
    # without any covariance. For near sets, eigenvalues of Σa Σb and scipy's sqrtm are off by per cents.
    x = draw(60, 150) + 3
    y = x + 1e-3 * draw(60, 150, seed=1) if near else 1.3 * draw(40, 150, seed=1) + 3.1
    y[:, 100:] = x[:, 100:] = 0  # features that never fire
    a, b = ((f - f.mean(0)) / (len(f) - 1) ** 0.5 for f in (x, y))
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    expected -= 2 * torch.linalg.svdvals(a @ b.T).sum()
    assert frechet_distance(normal(x), normal(y)) == pytest.approx(expected.item(), rel=1e-6)


# ------------------------------------------------------------------ class scores


@pytest.mark.filterwarnings("ignore")  # torchmetrics' own
def test_inception_score_is_torchmetrics_with_one_split():
    logits = 3 * draw(200, 10)
    ours, theirs = InceptionScore(10), TorchmetricsInceptionScore(feature=nn.Identity(), splits=1)
    for part in logits.split(60):
        ours.update(part)
        theirs.update(part)
    assert ours.compute().item() == pytest.approx(theirs.compute()[0].item(), rel=1e-12)


@pytest.mark.parametrize(("certainty", "expected"), [(0.0, 1.0), (1e4, 5.0)])
def test_inception_score_of_ignorance_is_1_and_of_certain_balanced_classes_their_number(certainty, expected):
    score = InceptionScore(5)
    score.update(certainty * torch.eye(5).repeat(8, 1))
    assert score.compute().item() == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------ neighbours


def brute_force_coverage(queries: Tensor, points: Tensor, k: int) -> float:
    radii = [sorted((p - q).norm().item() for q in points)[k] for p in points]
    inside = [any((q - p).norm() <= r for p, r in zip(points, radii, strict=True)) for q in queries]
    return sum(inside) / len(queries)


def test_precision_and_recall_are_those_of_brute_force_in_any_blocks(monkeypatch):
    samples, reference = draw(30, 3) + 1.5, draw(45, 3, seed=1)
    expected = brute_force_coverage(samples, reference, 3), brute_force_coverage(reference, samples, 3)
    assert 0.2 < min(expected) < max(expected) < 1  # or the comparison would say little
    for block in (1, 200, 10**6):
        monkeypatch.setattr(neighbours, "BLOCK", block)
        assert precision_recall(samples.float(), reference.float()) == expected


def test_precision_and_recall_of_a_set_and_itself_are_1_even_with_repeated_images():
    features = draw(20, 30).float() + 100  # far from 0, where products would cancel
    features = torch.cat([features, features[:10].repeat(5, 1)])  # radius 0: only equal images are inside
    assert precision_recall(features, features.flip(0)) == (1, 1)


def test_precision_and_recall_of_distant_sets_are_0():
    assert precision_recall(draw(50, 30).float(), draw(60, 30).float() + 50) == (0, 0)


def test_memorisation_of_copies_is_0_and_of_held_out_images_1(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 1000)
    training, held_out = draw(300, 5).float() + 10, draw(80, 5, seed=1).float() + 10
    unseen = unseen_distance(training, held_out, 1000)
    distances = (held_out[:, None] - training).norm(dim=-1).min(dim=1).values
    assert unseen == pytest.approx(distances.mean().item(), rel=1e-6)
    assert memorisation(held_out, training, unseen) == 1
    assert memorisation(training[5:50], training, unseen) == 0
    assert math.isnan(memorisation(held_out, training, unseen_distance(training, training[:9], 1000)))
    assert unseen_distance(training, held_out, 7) == pytest.approx(distances[:7].mean().item(), rel=1e-6)


def test_memorisation_without_held_out_images_is_1_for_new_images_and_a_half_where_half_are_copies():
    # The standard deviation of a mean of 2,000 nearest distances in 4 dimensions is below 1 %.
    training, new = draw(4000, 4).float(), draw(2000, 4, seed=1).float()
    unseen = unseen_distance(training, None, 10_000)
    assert memorisation(new, training, unseen) == pytest.approx(1, abs=0.04)
    half = torch.cat([new[:1000], training[:1000]])
    assert memorisation(half, training, unseen) == pytest.approx(0.5, abs=0.03)


# ------------------------------------------------------------------ the moment-matched Gaussian


def test_gaussian_has_the_datas_mean_and_covariance():
    images = Digits().train_images().images
    draws = moment_matched(images, 40_000).flatten(1).double()
    pixels = images.flatten(1).double() / 127.5 - 1
    covariance = pixels.T.cov()
    error = draws.mean(0) - pixels.mean(0)
    assert (error.abs() <= 5 * (covariance.diag() / 40_000).sqrt() + 1e-6).all()  # 5 standard deviations
    # E‖Ĉ − C‖² = (tr² C + tr C²)/n for n normal draws.
    expected = ((covariance.trace() ** 2 + covariance.square().sum()) / 40_000).sqrt()
    assert (draws.T.cov() - covariance).norm() < 1.5 * expected


def test_gaussian_of_few_images_stays_in_their_span_and_depends_on_the_seed_alone():
    images = noise_images(5, 3, 8, 8)
    draws = moment_matched(images, 20, seed=3)
    pixels = images.flatten(1).double() / 127.5 - 1
    basis = torch.linalg.qr((pixels - pixels.mean(0)).T).Q[:, :4]
    centred = draws.flatten(1).double() - pixels.mean(0)
    assert (centred - centred @ basis @ basis.T).abs().max() < 1e-5
    torch.rand(1)
    assert torch.equal(draws, moment_matched(images, 20, seed=3))
    assert not torch.equal(draws, moment_matched(images, 20, seed=4))
