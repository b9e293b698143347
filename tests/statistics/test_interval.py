"""Intervals against published values, against scipy and against chance itself."""

import numpy as np
import pytest
from scipy import stats

from imago.statistics.interval import mean_interval, wilson_interval


@pytest.mark.parametrize(
    ("num_right", "num_images", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # scipy.stats.binomtest(...).proportion_ci(method="wilson")
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_intervals_are_the_published_ones(num_right: int, num_images: int, low: float, high: float):
    assert wilson_interval(num_right, num_images) == pytest.approx((low, high), abs=5e-5)


def test_the_ends_are_exactly_0_and_1():
    for num_images in range(1, 200):
        assert wilson_interval(0, num_images)[0] == 0
        assert wilson_interval(num_images, num_images)[1] == 1


def test_intervals_lie_around_the_share_and_inside_0_to_1():
    for num_images in (1, 2, 7, 50):
        for num_right in range(num_images + 1):
            low, high = wilson_interval(num_right, num_images)
            assert 0 <= low <= num_right / num_images <= high <= 1


def test_ten_thousand_images_at_90_percent_are_known_to_within_0_6_points():
    low, high = wilson_interval(9000, 10_000)
    assert high - low == pytest.approx(2 * 0.0059, abs=1e-4)


def test_95_of_100_intervals_hold_the_truth():
    counts = np.random.default_rng(0).binomial(200, 0.7, 20_000)
    intervals = np.array([wilson_interval(int(count), 200) for count in range(201)])[counts]
    coverage = ((intervals[:, 0] <= 0.7) & (intervals[:, 1] >= 0.7)).mean()
    assert 0.94 < coverage < 0.965


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10, 11, 12, 20, 100])
def test_the_interval_of_a_mean_over_seeds_is_students(num_seeds: int):
    values = np.random.default_rng(num_seeds).normal(0.9, 0.01, num_seeds)
    expected = stats.t.interval(0.95, num_seeds - 1, values.mean(), stats.sem(values))
    assert mean_interval(values.tolist()) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_one_seed_tells_nothing_about_others():
    assert mean_interval([0.9]) is None
    assert mean_interval([]) is None


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_95_of_100_intervals_over_seeds_hold_the_mean(num_seeds: int):
    draws = np.random.default_rng(0).normal(0.9, 0.02, (4000, num_seeds)).tolist()
    held = [low <= 0.9 <= high for low, high in map(mean_interval, draws)]
    assert 0.94 < np.mean(held) < 0.96
