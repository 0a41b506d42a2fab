"""`Evaluation` of digits, copies and noise, which depend neither on the number of processes nor on contexts."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import spawn
from torch import Tensor

from warm_lightning.cache import cache_folder
from warm_lightning.data import CIFAR10, Digits, ImageSet
from warm_lightning.errors import UserError
from warm_lightning.metrics import (
    DigitsFeatures,
    Evaluation,
    Extraction,
    FeatureExtractor,
    ImportedFeatures,
    Pixels,
    ScoreProtocol,
    TorchScriptFeatures,
    measure_reference,
    summarise_rounds,
)
from warm_lightning.metrics.distances import coverage


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARM_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return Digits().train_images().as_tensor()


def scores_against(
    extractor: FeatureExtractor, data: Tensor, held_out: Tensor | None = None, batch_size: int = 500, **protocol: int
) -> Evaluation:
    """Scores against some images."""
    extraction = Extraction(extractor, batch_size)
    unseen = None if held_out is None else ImageSet.without_classes(held_out)
    protocol = {"max_neighbours": 500, **protocol}
    reference = measure_reference(
        extraction, ImageSet.without_classes(data), unseen, protocol=ScoreProtocol(**protocol)
    )
    return Evaluation(extraction, reference, ImageSet.without_classes(data).shape)


@pytest.fixture(scope="module")
def digit_scores(digits) -> Evaluation:
    return scores_against(DigitsFeatures(), digits, max_neighbours=1797)


def noise_images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def score(scores: Evaluation, images: Tensor) -> dict[str, float]:
    scores.reset()
    scores.update(images)
    count, values = scores.compute()
    return values | scores.companions(count)


class InSplits(DigitsFeatures):
    """With a class score over splits, of which every device has images."""

    splits = 5


# The first test of the file: both processes find the cache empty and train the digits' classifier.
def in_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "WARM_CACHE": str(folder)}
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(in_all_ways(rank, 2), folder / f"{rank}.pt")
    dist.destroy_process_group()


def in_all_ways(rank: int, world_size: int) -> list[dict[str, float]]:
    data, samples = Digits().train_images().as_tensor(), noise_images(101, 1, 8, 8)
    reference = data[:300]
    mine = samples[rank::world_size]
    pixels = scores_against(Pixels(), reference, data[300:340], batch_size=7)
    results = [score(pixels, mine)]
    results.append(score(pixels, samples if rank == 0 else samples[:0]))  # and nothing on the others
    lopsided = samples.tensor_split([71])[rank] if world_size == 2 else samples
    results.append(score(pixels, lopsided))
    results.append(score(scores_against(Pixels(), reference, max_neighbours=30), mine))
    results.append(score(scores_against(InSplits(), reference), mine))
    return results


def test_two_processes_give_the_scores_of_one(cache):
    spawn(in_process, cache)
    first, second = (torch.load(cache / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert [file.name for file in cache_folder().iterdir()] == [DigitsFeatures().file_name]
    # 1e-10: sums of float64 in another order, and what the eigenvalues make of it. Digits: their features are
    # of float32, with rounding that depends on the size of a batch.
    for ours, expected, tolerance in zip(first, in_all_ways(0, 1), [1e-10] * 4 + [1e-4], strict=True):
        assert ours == pytest.approx(expected, rel=tolerance)


def test_scores_of_digits_rank_data_above_the_gaussian_above_noise(digits, digit_scores):
    values = score(digit_scores, noise_images(1797, 1, 8, 8))
    names = ("fd", "is", "kid", "precision", "recall", "memorisation")
    assert digit_scores.names(1797) == [f"{name}_digits" for name in names]
    assert set(values) == {"kid_digits_subset_std"} | {
        f"{name}_digits{end}" for name in names for end in ("", "_data" if name == "is" else "_halves", "_gaussian")
    }
    assert 5 * values["fd_digits_halves"] < values["fd_digits_gaussian"] < values["fd_digits"] / 5
    # The unbiased kernel distance of two halves is 0 but for chance: its spread over subsets bounds that.
    assert abs(values["kid_digits_halves"]) < 0.02 * values["kid_digits_gaussian"] < values["kid_digits"]
    assert 9.5 < values["is_digits_data"] <= 10
    assert values["is_digits"] < values["is_digits_gaussian"] < 0.8 * values["is_digits_data"]
    assert values["precision_digits"] < values["precision_digits_gaussian"] < 0.5
    assert values["precision_digits_halves"] > 0.85
    assert values["recall_digits_halves"] > 0.85
    assert values["memorisation_digits"] > values["memorisation_digits_gaussian"] > 1.2
    assert values["memorisation_digits_halves"] == pytest.approx(1, abs=0.1)

    copies = score(digit_scores, digits)
    expected = {"fd": 0, "is": values["is_digits_data"], "precision": 1, "recall": 1, "memorisation": 0}
    assert {name: copies[f"{name}_digits"] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_scores_with_held_out_images(digits):
    training, held_out, samples = digits[:1100], digits[1100:1400], digits[1400:]
    scores = scores_against(Pixels(), training, held_out, max_neighbours=1100)
    assert score(scores, held_out)["memorisation300_pixel"] == 1
    assert score(scores, training)["memorisation_pixel"] == 0
    assert score(scores, samples)["memorisation397_pixel"] == pytest.approx(1, abs=0.1)


def test_one_half_of_the_data_as_samples_and_the_other_as_data_score_as_the_halves(digits):
    generator = torch.Generator().manual_seed(5)
    parts = [digits[i] for i in torch.randperm(1797, generator=generator).tensor_split(2)]
    values = score(scores_against(Pixels(), parts[1], max_neighbours=1797), parts[0])
    halves = scores_against(Pixels(), digits, max_neighbours=1797).reference.companions["halves"]
    # Another split of the same images: 20 % is several times the spread between splits.
    names = ("fd899_pixel", "precision_pixel", "recall_pixel", "memorisation899_pixel")  # 899 samples, 898 of data
    for kind, name in zip(("frechet", "precision", "recall", "memorisation"), names, strict=True):
        assert halves[kind] == pytest.approx(values[name], rel=0.2)


def test_neighbours_of_many_images_are_those_of_a_random_part_of_the_data():
    # Data in the order of their classes: dark images, then bright ones. The first 100 are dark.
    reference = noise_images(400, 1, 4, 4) // 8
    reference[200:] += 200
    samples = noise_images(100, 1, 4, 4, seed=1) // 8
    samples[::2] += 200
    values = score(scores_against(Pixels(), reference, max_neighbours=100), samples)
    assert values["precision100_pixel"] > 0.8
    assert values["recall100_pixel"] > 0.8


def test_precision_and_recall_are_of_as_many_images_of_either_set(digits):
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    few, many = digits[order[:100]], digits[order[100:1100]]
    pixels = Pixels()
    scores = scores_against(pixels, many, max_neighbours=1000)
    values, features = score(scores, few), scores.reference.features
    of_few = pixels(few)[0]
    found = values["precision100_pixel"], values["recall100_pixel"]
    assert found == (coverage(of_few, features[:100]), coverage(features[:100], of_few))
    assert found != (coverage(of_few, features), coverage(features, of_few))
    assert scores.describe(100)["precision_recall"]["images_of_each"] == 100
    # With fewer images of data than samples it is the samples that are cut, and the names say so: 100 of all 100.
    scores = scores_against(pixels, few, max_neighbours=1000)
    values, features = score(scores, many), scores.reference.features
    assert {"kid1k_pixel", "fd1k_pixel"} <= set(values)
    first = pixels(many[:100])[0]
    assert (values["precision_pixel"], values["recall_pixel"]) == (coverage(first, features), coverage(features, first))


def test_names_say_how_many_samples_but_for_as_many_as_images_of_data(digits):
    scores = scores_against(Pixels(), digits[:60])
    assert "fd_pixel" in score(scores, digits[60:120])
    assert "fd50_pixel" in (values := score(scores, digits[60:110]))
    assert {"kid50_pixel", "precision50_pixel_halves", "memorisation50_pixel"} <= set(values)
    assert scores.names(50, spreads=True) == [name for name in values if "halves" not in name and "gaus" not in name]


def test_images_of_another_size_than_the_references_are_refused(digits):
    extraction = Extraction(ImportedFeatures(f"{__name__}:Mean", "mean"))
    reference = measure_reference(extraction, ImageSet.without_classes(digits[:50]))
    with pytest.raises(UserError, match=r"images of \(1, 16, 4\) cannot be scored against data of \(1, 8, 8\)"):
        Evaluation(extraction, reference, (1, 16, 4))


class Mean(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).float()


def test_scores_do_not_depend_on_what_surrounds_them_and_leave_it_alone(digits):
    samples = noise_images(50, 1, 8, 8)
    expected = score(scores_against(DigitsFeatures(), digits[:200]), samples)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        state = torch.get_rng_state()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            scores = scores_against(DigitsFeatures(), digits[:200])
            assert score(scores, samples) == expected
            scores.reset()
        scores.update(samples)  # as in `fit` after `test` with the same callback
        count, values = scores.compute()
        assert values | scores.companions(count) == expected
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)


def test_reset_forgets_the_samples_and_keeps_the_reference(digits):
    scores = scores_against(Pixels(), digits[:200])
    first = score(scores, digits[200:300])
    scores.update(noise_images(30, 1, 8, 8))
    assert scores.compute()[1]["fd130_pixel"] != first["fd100_pixel"]
    assert score(scores, digits[200:300]) == first


def test_table_has_a_row_for_each_score_and_states_its_limits(digits):
    scores = scores_against(DigitsFeatures(), digits[:200], max_neighbours=64)
    values = score(scores, noise_images(100, 1, 8, 8))
    lines = scores.table({**values, "fd_other": 1.0}, 100).splitlines()
    assert "samples" in lines[0]
    assert "halves of the data" in lines[0]
    for line, name in zip(lines[2:8], ("fd", "is", "kid", "precision", "recall", "memorisation"), strict=True):
        cells = line.split()
        count = 64 if name in ("kid", "precision", "recall", "memorisation") else 100
        assert cells[0] == f"{name}{count}_digits"
        ends = ("", "_data" if name == "is" else "_halves", "_gaussian")
        expected = [values[f"{name}{count}_digits{end}"] for end in ends]
        assert [float(cell) for cell in cells[1:4]] == pytest.approx(expected, rel=1e-3)
    assert lines[8] == "100 samples, 200 images of data, 64 of the Gaussian."
    assert "twice a perfect model's bias" in lines[9]
    assert lines[-1] == "kid, precision, recall, memorisation: of 64 images at most."
    description = scores.describe(100)
    assert [description[name] for name in ("samples", "reference_images", "max_neighbours")] == [100, 200, 64]
    assert description["kernel_distance"]["subset_size"] == 64
    assert (description["halves_images"], description["gaussian_images"]) == ([100, 100], 64)


def test_rounds_are_summarised_with_the_best_named_by_its_direction():
    rounds = [
        {"fid2k": 3.0, "is2k": 7.0, "is2k_split_std": 0.1, "memorisation2k": 1.2},
        {"fid2k": 1.0, "is2k": 9.0, "is2k_split_std": 0.3, "memorisation2k": math.nan},
    ]
    better = {"fid2k": "lower", "is2k": "higher", "memorisation2k": "near 1"}
    assert summarise_rounds(rounds[:1], better) == rounds[0]
    values = summarise_rounds(rounds, better)
    assert math.isnan(values.pop("memorisation2k_mean"))
    assert math.isnan(values.pop("memorisation2k_std"))
    assert math.isnan(values.pop("memorisation2k_round2"))
    assert values == pytest.approx({
        "fid2k_round1": 3, "fid2k_round2": 1, "fid2k_min": 1, "fid2k_mean": 2, "fid2k_std": 2**0.5,
        "is2k_round1": 7, "is2k_round2": 9, "is2k_max": 9, "is2k_mean": 8, "is2k_std": 2**0.5,
        "is2k_split_std_round1": 0.1, "is2k_split_std_round2": 0.3, "memorisation2k_round1": 1.2,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise_images(3, 1, 8, 8), "at least 4 samples, not 3"),
        (noise_images(9, 3, 8, 8), r"\(3, 8, 8\) cannot be scored against data of \(1, 8, 8\)"),
        (torch.zeros(9, 1, 8, 8), "take uint8 images, not torch.float32"),
    ],
)
def test_samples_that_cannot_be_scored_get_a_clear_message(digits, images, message):
    scores = scores_against(Pixels(), digits[:50])
    with pytest.raises(UserError, match=message):
        score(scores, images)


def test_too_little_data_gets_a_clear_message(digits):
    with pytest.raises(UserError, match="at least 8 images of data, not 7"):
        scores_against(Pixels(), digits[:7])


def test_cifar10_features_tell_photographs_from_noise(cifar10_zip, cifar10_features):
    held_out = CIFAR10(path=str(cifar10_zip), cache=False).load("held_out")
    photographs = held_out.take(torch.arange(0, len(held_out), 20))
    scores = scores_against(TorchScriptFeatures(str(cifar10_features)), photographs[::2])
    values = score(scores, photographs[1::2])
    noise = score(scores, noise_images(250, 3, 32, 32))
    assert values["fd250_cifar10_features"] < noise["fd250_cifar10_features"] / 10
    assert values["fd250_cifar10_features"] < values["fd250_cifar10_features_gaussian"] / 4
