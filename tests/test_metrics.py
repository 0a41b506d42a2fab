"""The mathematics of scores, against closed forms, brute force and torchmetrics; Fréchet: `test_frechet.py`."""

import json
import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore as TorchmetricsInceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from warm_lightning.data import Digits, ImageSet
from warm_lightning.images import quantise
from warm_lightning.metrics import distances, reference
from warm_lightning.metrics.distances import (
    class_score,
    class_sums,
    coverage,
    kernel_distance,
    memorisation,
    unseen_distance,
)
from warm_lightning.metrics.reference import moment_matched
from warm_lightning.records import tensors_hash, to_json
from warm_lightning.rng import key


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise_images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


# ------------------------------------------------------------------ class scores


@pytest.mark.filterwarnings("ignore")  # torchmetrics' own
@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score_is_torchmetrics(splits, monkeypatch):
    logits = 3 * draw(200, 10)
    theirs = TorchmetricsInceptionScore(feature=nn.Identity(), splits=splits)
    theirs.update(logits)
    parts = [class_sums(logits[index], index, splits) for index in torch.arange(200).split(60)]
    sums = {name: sum(part[name] for part in parts) for name in parts[0]}
    # It cuts a random order into splits; we take turns.
    monkeypatch.setattr(torch, "randperm", lambda n: torch.arange(n).view(-1, splits).T.flatten())
    mean, spread = class_score(sums)
    expected = theirs.compute()
    assert mean == pytest.approx(expected[0].item(), rel=1e-12)
    assert math.isnan(spread) if splits == 1 else spread == pytest.approx(expected[1].item(), rel=1e-12)


@pytest.mark.parametrize(("certainty", "expected"), [(0.0, 1.0), (1e4, 5.0)])
def test_inception_score_of_ignorance_is_1_and_of_certain_balanced_classes_their_number(certainty, expected):
    sums = class_sums(certainty * torch.eye(5).repeat(8, 1), torch.arange(40), splits=1)
    assert class_score(sums)[0] == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------ kernel distance


@pytest.mark.filterwarnings("ignore")  # torchmetrics warns that it keeps features
@pytest.mark.parametrize(("subsets", "size"), [(1, 90), (7, 40), (7, 20)])  # the last with an own kernel each
def test_kernel_distance_is_torchmetrics_on_the_same_subsets(subsets, size, monkeypatch):
    data, samples = draw(90, 12), draw(90, 12, seed=1) + 0.3
    monkeypatch.setattr(distances, "SUBSETS", subsets)
    monkeypatch.setattr(distances, "SUBSET_SIZE", size)
    ours = kernel_distance(samples, data, seed=4)

    identity = nn.Identity()
    identity.num_features = 12
    theirs = KernelInceptionDistance(identity, subsets=subsets, subset_size=size)
    theirs.update(data, real=True)
    theirs.update(samples, real=False)
    generator, randperm = torch.Generator().manual_seed(key(4, "kernel distance")), torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n: randperm(n, generator=generator))
    expected = [value.item() for value in theirs.compute()]
    assert ours == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_kernel_distance_is_unbiased_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    # Sets of one law: the mean over 60 independent pairs is 0 to within a few of its standard errors.
    values = torch.tensor([kernel_distance(draw(50, 4, seed=2 * i), draw(50, 4, seed=2 * i + 1))[0] for i in range(60)])
    assert values.mean().abs() < 4 * values.std() / 60**0.5
    # The mean kernel of two points one apart in each of 4 features, worked out: k = (0 + 1)³ and (4/4 + 1)³.
    x, y = torch.zeros(5, 4), torch.ones(5, 4)
    assert kernel_distance(x, y) == (pytest.approx(1 + 8 - 2), 0)
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------ neighbours


def brute_force_coverage(queries: Tensor, points: Tensor, k: int) -> float:
    radii = [sorted((p - q).norm().item() for q in points)[k] for p in points]
    inside = [any((q - p).norm() <= r for p, r in zip(points, radii, strict=True)) for q in queries]
    return sum(inside) / len(queries)


def precision_recall(samples: Tensor, data: Tensor) -> tuple[float, float]:
    return coverage(samples, data), coverage(data, samples)


def test_precision_and_recall_are_those_of_brute_force_in_any_blocks(monkeypatch):
    samples, data = draw(30, 3) + 1.5, draw(45, 3, seed=1)
    expected = brute_force_coverage(samples, data, 3), brute_force_coverage(data, samples, 3)
    assert 0.2 < min(expected) < max(expected) < 1  # or the comparison would say little
    for block in (1, 200, 10**6):
        monkeypatch.setattr(distances, "BLOCK", block)
        assert precision_recall(samples.float(), data.float()) == expected


def test_precision_and_recall_of_a_set_and_itself_are_1_even_with_repeated_images():
    features = draw(20, 30).float() + 100  # far from 0, where products would cancel
    features = torch.cat([features, features[:10].repeat(5, 1)])  # radius 0: only equal images are inside
    assert precision_recall(features, features.flip(0)) == (1, 1)


def test_precision_and_recall_of_distant_sets_are_0():
    assert precision_recall(draw(50, 30).float(), draw(60, 30).float() + 50) == (0, 0)


def test_memorisation_of_copies_is_0_and_of_held_out_images_1(monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", 1000)
    training, held_out = draw(300, 5).float() + 10, draw(80, 5, seed=1).float() + 10
    unseen = unseen_distance(training, held_out, 1000)
    nearest = (held_out[:, None] - training).norm(dim=-1).min(dim=1).values
    assert unseen == pytest.approx(nearest.mean().item(), rel=1e-6)
    assert memorisation(held_out, training, unseen) == 1
    assert memorisation(training[5:50], training, unseen) == 0
    assert math.isnan(memorisation(held_out, training, unseen_distance(training, training[:9], 1000)))
    assert unseen_distance(training, held_out, 7) == pytest.approx(nearest[:7].mean().item(), rel=1e-6)


def test_memorisation_without_held_out_images_is_1_for_new_images_and_a_half_where_half_are_copies():
    # The standard deviation of a mean of 2,000 nearest distances in 4 dimensions is below 1 %.
    training, new = draw(4000, 4).float(), draw(2000, 4, seed=1).float()
    unseen = unseen_distance(training, None, 10_000)
    assert memorisation(new, training, unseen) == pytest.approx(1, abs=0.04)
    half = torch.cat([new[:1000], training[:1000]])
    assert memorisation(half, training, unseen) == pytest.approx(0.5, abs=0.03)


# ------------------------------------------------------------------ records


def test_records_are_json_that_any_program_reads():
    assert json.loads(to_json({"a": math.nan, "b": [1, math.inf, {"c": (0.5,)}]}), parse_constant=pytest.fail) == {
        "a": None,
        "b": [1, None, {"c": [0.5]}],
    }


def test_the_hash_of_tensors_is_of_names_shapes_and_values_whatever_their_order_and_precision():
    a, b = torch.arange(6.0).view(2, 3), torch.tensor([1, 2])
    expected = tensors_hash({"a": a, "b": b}.items())
    assert tensors_hash({"b": b, "a": a.double()}.items()) == expected
    others = ({"a": a.view(3, 2), "b": b}, {"c": a, "b": b}, {"a": a + 1e-6, "b": b}, {"a": a}, {"a": a, "b": b + 1})
    assert len({expected, *(tensors_hash(other.items()) for other in others)}) == 6


# ------------------------------------------------------------------ the moment-matched Gaussian


def test_gaussian_has_the_datas_mean_and_covariance():
    images = Digits().train_images().as_tensor() // 4 + 96  # far from black and white, where draws would be cut off
    draws = moment_matched(ImageSet.without_classes(images), 20_000).flatten(1).double()
    pixels = images.flatten(1).double()
    covariance = pixels.T.cov()
    error = draws.mean(0) - pixels.mean(0)
    # 5 standard deviations; levels are rounded down from half a level above.
    assert (error.abs() <= 5 * (covariance.diag() / 20_000).sqrt() + 0.01).all()
    # E‖Ĉ − C‖² = (tr² C + tr C²)/n for n normal draws; rounding adds a variance of 1/12 to each pixel.
    expected = ((covariance.trace() ** 2 + covariance.square().sum()) / 20_000).sqrt()
    assert (draws.T.cov() - covariance - torch.eye(64) / 12).norm() < 1.5 * expected


def test_gaussian_of_few_images_stays_in_their_span_and_depends_on_the_seed_alone(monkeypatch):
    images = noise_images(5, 3, 8, 8) // 8 + 112  # far from black and white, where draws would be cut off
    draws = moment_matched(ImageSet.without_classes(images), 20, seed=3)
    pixels = images.flatten(1).double()
    basis = torch.linalg.qr((pixels - pixels.mean(0)).T).Q[:, :4]
    centred = draws.flatten(1).double() - pixels.mean(0)
    # Rounding moves each of 192 pixels by at most half a level, and what is in the span hides part of it.
    assert (centred - centred @ basis @ basis.T).norm(dim=1).max() < 192**0.5 / 2
    torch.rand(1)
    sizes = []
    monkeypatch.setattr(reference, "quantise", lambda x: sizes.append(len(x)) or quantise(x))
    moment_matched(ImageSet.without_classes(images), reference.DRAWN_AT_ONCE + 5)
    assert sizes == [reference.DRAWN_AT_ONCE, 5]  # never a second copy of all draws in float32
    assert torch.equal(draws, moment_matched(ImageSet.without_classes(images), 20, seed=3))
    assert not torch.equal(draws, moment_matched(ImageSet.without_classes(images), 20, seed=4))
