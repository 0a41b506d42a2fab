"""Paired comparisons over trainings: intervals that cover, and the number of trainings that an effect needs."""

import math
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from scipy import stats

from experiments.experiment import Plot
from experiments.measures import Reading
from experiments.paired import Comparison, paired_pivot, paired_table
from experiments.results import Group, Result


def test_the_interval_is_students_and_covers_as_often_as_it_says():
    draw = np.random.default_rng(0)
    samples = draw.normal(0.1, 0.2, (2000, 5))
    inside = 0
    for sample in samples:
        low, high = Comparison("", tuple(sample), relative=True).interval
        inside += low <= math.expm1(0.1) <= high
    assert inside / len(samples) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / len(samples)))
    expected = stats.ttest_1samp(samples[0], 0).confidence_interval(0.95)
    assert Comparison("", tuple(samples[0]), relative=False).interval == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("effect", [0.05, 0.2])
def test_an_effect_is_seen_with_the_number_of_trainings_that_it_needs(effect):
    """In 80 % of experiments of that size, with the spread that was found."""
    draw = np.random.default_rng(1)
    found = tuple(draw.normal(0, 0.08, 40))
    needed = Comparison("", found, relative=True).trainings_for(effect)
    trials = draw.normal(math.log1p(effect), np.std(found, ddof=1), (4000, needed))
    seen = np.mean(stats.ttest_1samp(trials, 0, axis=1).pvalue < 0.05)
    fewer = np.mean(stats.ttest_1samp(trials[:, : max(2, needed * 3 // 4)], 0, axis=1).pvalue < 0.05)
    assert seen > 0.78  # of 0.8, whose standard error is 0.006
    assert fewer < 0.76


def test_differences_of_scores_that_may_be_negative_are_not_relative():
    comparison = Comparison("", (-1.0, 0.5, 2.0), relative=False)
    assert comparison.value == 0.5
    assert comparison.trainings_for(0.05) is None
    assert Comparison("", (0.3,), relative=True).interval is None


def group(label: str, scores: dict[int, float], **others: str) -> Group:
    """Trainings of one arm, with a score for each seed."""
    return Group(
        tuple(
            cast(
                Result,
                SimpleNamespace(
                    cell=SimpleNamespace(seed=s, labels={"BNR": label, **others}), reading=Reading({"fd": v})
                ),
            )
            for s, v in scores.items()
        )
    )


def test_trainings_are_paired_by_their_seeds():
    """Ratios are 0.9, 1.1 and 1.0, though the arms list their seeds in another order and one has one more."""
    baseline, arm = group("0", {0: 2.0, 1: 4.0, 2: 3.0}), group("0.5", {7: 9.0, 2: 3.0, 0: 1.8, 1: 4.4})
    about, table = paired_table([baseline, arm], "fd")
    assert "from BNR 0" in about
    mean = math.log(0.9 * 1.1) / 3
    half = stats.t.ppf(0.975, 2) * np.std(np.log([0.9, 1.1, 1.0]), ddof=1) / math.sqrt(3)
    ends = [f"{100 * math.expm1(end):+.1f} %" for end in (mean - half, mean + half)]
    row = [word.strip() for word in table.splitlines()[-1].split("|")]
    assert row[1:5] == ["0.5", f"{100 * math.expm1(mean):+.1f} %", f"{ends[0]} to {ends[1]}", "3"]
    assert paired_table([group("0", {0: 2.0}), group("0.5", {0: 1.0})], "fd") == []
    assert paired_table([baseline, group("0.5", {8: 1.0, 9: 2.0})], "fd") == []


def test_lines_are_compared_with_the_first_one_at_each_place():
    def arm(line: str, place: str, scores: dict[int, float]) -> Group:
        return group(line, scores, NFE=place)

    groups = [
        arm("0", "19", {0: 2.0, 1: 4.0}),
        arm("0", "35", {0: 1.0, 1: 3.0}),
        arm("0.5", "19", {1: 3.0, 0: 1.8}),
        arm("0.5", "35", {0: 1.1, 1: 3.0}),
        arm("1", "35", {0: 1.2}),
    ]
    about, table = paired_pivot(Plot(x="NFE", lines="BNR"), groups, "fd")
    assert "from BNR 0" in about
    header, _, *rows = [[word.strip() for word in line.split("|")[1:-1]] for line in table.splitlines()]
    assert header == ["BNR \\ NFE", "19", "35"]
    assert rows[1] == ["1", "–", "–"]  # one training has no interval
    line, *cells = rows[0]
    assert line == "0.5"
    for cell, ratios in zip(cells, ([0.9, 0.75], [1.1, 1.0]), strict=True):
        expected = stats.ttest_1samp(np.log(ratios), 0).confidence_interval(0.95)
        numbers = [np.log(ratios).mean(), expected.low, expected.high]
        middle, low, high = (f"{100 * math.expm1(x):+.1f} %" for x in numbers)
        assert cell == f"{middle} ({low} to {high})"
    assert paired_pivot(Plot(x="NFE", lines="BNR"), [arm("0", "19", {0: 1.0}), arm("1", "19", {0: 2.0})], "fd") == []


def test_single_trainings_are_paired_image_by_image():
    """Bits of the same images vary far more than their differences between two models."""
    draw = np.random.default_rng(2)
    images = draw.normal(3, 1, 64)
    change = draw.normal(-0.02, 0.01, 64)

    def model(label: str, values: np.ndarray) -> Group:
        reading = Reading({"bpd": values.mean(), "prior_gap": 0.1}, per_image={"bpd": values.tolist()})
        cell = SimpleNamespace(seed=0, labels={"BNR": label})
        return Group((cast(Result, SimpleNamespace(cell=cell, reading=reading)),))

    groups = [model("0", images), model("0.5", images + change)]
    about, table = paired_table(groups, "bpd")
    assert "image by image" in about
    row = [word.strip() for word in table.splitlines()[-1].split("|")[1:-1]]
    expected = stats.ttest_1samp(change, 0).confidence_interval(0.95)
    assert row == ["0.5", f"{change.mean():+.3g}", f"{expected.low:+.3g} to {expected.high:+.3g}", "64"]
    assert paired_table(groups, "prior_gap") == []
    assert paired_table([groups[0], model("0.5", images[:9])], "bpd") == []
