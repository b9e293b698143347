"""Two classifiers on the same images: McNemar's test by hand, and the interval by likelihood and by simulation."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from imago.statistics.paired import PairedComparison, compare_paired, num_images_needed, tango_interval


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
    assert (equal.difference, equal.p_value) == (0.0, 1.0)
    assert equal.interval_95 == pytest.approx((-0.1611, 0.1611), abs=5e-5)  # as 0 of 20, see Wilson's in test_intervals


def score_statistic(num_only_a: int, num_only_b: int, num_images: int, difference: float) -> float:
    """The score statistic of a difference, whose likeliest shares are found numerically."""

    def loss(share_a: float) -> float:
        share_b = share_a + difference
        shares, counts = (share_a, share_b, 1 - share_a - share_b), (num_only_a, num_only_b)
        numbers = (*counts, num_images - sum(counts))
        return -sum(n * math.log(max(share, 1e-300)) for n, share in zip(numbers, shares, strict=True) if n)

    bounds = max(0.0, -difference), (1 - difference) / 2
    share = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    spread = math.sqrt(num_images * (2 * share + difference - difference**2))
    return (num_only_b - num_only_a - num_images * difference) / spread


@pytest.mark.parametrize(
    ("num_only_a", "num_only_b", "num_images"),
    [(12, 2, 50), (3, 9, 153), (0, 5, 100), (6, 0, 100), (79, 31, 1000), (0, 20, 30), (500, 620, 10_000)],
)
def test_the_ends_of_the_interval_are_where_the_score_test_rejects(num_only_a: int, num_only_b: int, num_images: int):
    low, high = tango_interval(num_only_a, num_only_b, num_images)
    assert score_statistic(num_only_a, num_only_b, num_images, low) == pytest.approx(1.96, abs=2e-3)
    assert score_statistic(num_only_a, num_only_b, num_images, high) == pytest.approx(-1.96, abs=2e-3)
    assert tango_interval(num_only_b, num_only_a, num_images) == pytest.approx((-high, -low))


@pytest.mark.parametrize("num_images", [1, 20])
def test_the_interval_stays_between_minus_1_and_1(num_images: int):
    assert tango_interval(0, num_images, num_images)[1] == 1
    assert tango_interval(num_images, 0, num_images)[0] == -1
    assert tango_interval(0, 0, num_images)[1] == pytest.approx(1.96**2 / (num_images + 1.96**2), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_images", "only_a", "only_b", "before"),
    [
        (100, 0, 0.02, 0.82),
        (153, 0, 0.013, 0.86),
        (153, 0.01, 0.03, 0.91),
        (153, 0.05, 0.08, 0.97),
        (300, 0.1, 0.2, 0.96),
    ],
)
def test_intervals_contain_the_true_difference_and_agree_with_the_test(
    num_images: int, only_a: float, only_b: float, before: float
):
    """`before` is the coverage by drawing images with replacement, which the interval must not fall below."""
    drawn = np.random.default_rng(1).multinomial(num_images, [only_a, only_b, 1 - only_a - only_b], 300)
    found = []
    for num_a, num_b, others in drawn:
        result = compare_paired(
            np.repeat([True, False, True], (num_a, num_b, others)),
            np.repeat([False, True, True], (num_a, num_b, others)),
        )
        found.append(result.interval_95)
        low, high = result.interval_95
        assert low < result.difference < high
        assert (low <= 0 <= high) == (result.p_value >= 0.05)
    assert np.mean([low <= only_b - only_a <= high for low, high in found]) >= max(0.92, before - 0.02)


# num_images_needed


@pytest.mark.slow
@pytest.mark.parametrize(("only_a", "only_b", "num_images"), [(30, 45, 1000), (5, 30, 300), (0, 3, 100), (90, 60, 500)])
def test_the_power_with_the_needed_images_is_80_percent_by_simulation(only_a: int, only_b: int, num_images: int):
    needed, num_repeats = num_images_needed(only_a, only_b, num_images), 4000
    shares = np.array([only_a, only_b, num_images - only_a - only_b]) / num_images
    counts = np.random.default_rng(0).multinomial(needed, shares, num_repeats)
    p_values = {pair: binomtest(pair[0], max(1, sum(pair))).pvalue for pair in set(map(tuple, counts[:, :2].tolist()))}
    found = np.mean([p_values[tuple(row)] < 0.05 for row in counts[:, :2].tolist()])
    assert found == pytest.approx(0.8, abs=4 * np.sqrt(0.8 * 0.2 / num_repeats) + 0.005)  # the exact test has steps


def test_the_needed_images_are_about_those_of_the_formula_for_many():
    share, difference = (
        0.064,
        0.004,
    )  # Connor 1987: (1.96 sqrt(share) + 0.84 sqrt(share - difference^2))^2 / difference^2
    formula = ((1.959964 * share**0.5 + 0.841621 * (share - difference**2) ** 0.5) / difference) ** 2
    assert num_images_needed(300, 340, 10_000) == pytest.approx(formula, rel=0.03)
    assert num_images_needed(300, 340, 10_000) == num_images_needed(340, 300, 10_000)


def test_no_number_of_images_finds_a_difference_of_zero():
    assert num_images_needed(7, 7, 100) is None
