"""Two classifiers on the same images: McNemar's test by hand, and the interval by drawing images."""

import math

import numpy as np
import pytest

from imago.statistics.paired import PairedComparison, compare_paired


def compared(num_only_a: int, num_only_b: int) -> PairedComparison:
    """Compare two classifiers by the numbers of images that only one classifies correctly."""
    counts = [num_only_a, num_only_b]
    return compare_paired(np.repeat([True, False], counts), np.repeat([False, True], counts))


@pytest.mark.parametrize(("num_only_a", "num_only_b"), [(0, 1), (3, 3), (1, 9), (79, 31), (500, 620)])
def test_mcnemar_is_twice_the_tail_of_a_fair_coin(num_only_a: int, num_only_b: int):
    tosses = num_only_a + num_only_b
    tail = sum(math.comb(tosses, heads) for heads in range(min(num_only_a, num_only_b) + 1))
    expected = pytest.approx(min(1, 2 * tail / 2**tosses))
    assert compared(num_only_a, num_only_b).p_value == compared(num_only_b, num_only_a).p_value == expected


def test_mcnemar_of_large_counts_is_a_number():
    assert compared(30_000, 30_000).p_value == 1.0
    assert compared(0, 5000).p_value == 0.0  # smaller than the smallest float
    assert 0 < compared(9_800, 10_200).p_value < 0.01


def test_only_images_that_exactly_one_got_right_count():
    a = np.array([True, True, True, False, False, True])
    b = np.array([True, False, False, True, False, False])
    found = compare_paired(a, b)
    assert (found.num_images, found.num_only_a, found.num_only_b) == (6, 3, 1)
    assert found.difference == pytest.approx(-2 / 6)
    assert found.p_value == pytest.approx(0.625)  # 2 * (1 + 4) / 16
    assert found.p_text == "p = 0.62"
    assert "No significant difference" in found.verdict


def test_the_verdict_names_the_better_one():
    right, wrong = np.ones(20, bool), np.zeros(20, bool)
    assert compare_paired(right, wrong).verdict.startswith("a is significantly better")
    assert compare_paired(wrong, right).verdict.startswith("b is significantly better")
    equal = compare_paired(right, right)
    assert (equal.difference, equal.interval_95, equal.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_the_interval_is_that_of_drawing_images_with_replacement():
    draws = np.random.default_rng(1)
    a, b = draws.random(400) < 0.8, draws.random(400) < 0.7
    difference = b.astype(int) - a.astype(int)
    means = difference[draws.integers(0, 400, (10_000, 400))].mean(axis=1)
    expected = np.quantile(means, [0.025, 0.975])
    assert compare_paired(a, b).interval_95 == pytest.approx(expected, abs=0.004)
