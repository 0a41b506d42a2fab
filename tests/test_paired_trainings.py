"""Paired comparisons over trainings: intervals that cover, and the number of trainings that an effect needs."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.paired import Comparison


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
