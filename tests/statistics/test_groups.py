"""Intervals and tests of correlated images in groups hold what they promise, and without groups they do not."""

import itertools
import math

import numpy as np
import pytest

from imago.statistics.groups import (
    ImageDraws,
    alike_groups_interval,
    design_effect,
    effective_interval,
    share_interval,
)
from imago.statistics.intervals import ece_interval, macro_intervals, wilson_interval
from imago.statistics.metrics import LabeledOutputs
from imago.statistics.paired import compare_paired, sign_flip_p_value


def draw_groups(
    accuracy: float, correlation: float, num_groups: int, mean_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw which images are correct, and their groups: two of a group have the correlation (beta-binomial)."""
    total = 1 / correlation - 1
    shares = rng.beta(accuracy * total, (1 - accuracy) * total, num_groups)
    groups = np.repeat(np.arange(num_groups), 1 + rng.poisson(mean_size - 1, num_groups))
    return rng.random(len(groups)) < shares[groups], groups


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accuracy", "correlation", "num_groups", "mean_size"),
    [(0.8, 0.3, 40, 10), (0.8, 0.3, 10, 20), (0.95, 0.3, 40, 10), (0.98, 0.5, 60, 10), (0.9, 0.1, 200, 5)],
)
def test_95_of_100_intervals_contain_the_accuracy_with_groups_and_too_few_without(
    accuracy: float, correlation: float, num_groups: int, mean_size: int
):
    rng, hits = np.random.default_rng(0), np.zeros(2)
    for _ in range(400):
        is_correct, groups = draw_groups(accuracy, correlation, num_groups, mean_size, rng)
        intervals = share_interval(is_correct, groups), wilson_interval(is_correct.sum(), len(groups))
        hits += [low <= accuracy <= high for low, high in intervals]
    assert hits[0] / 400 > 0.92  # three standard errors below 95 %
    assert hits[1] / 400 < 0.92


@pytest.mark.slow
def test_the_intervals_of_other_scores_contain_them_with_groups_and_too_rarely_without():
    rng, hits = np.random.default_rng(0), np.zeros((2, 2))
    labels_of_all, names = np.arange(3), ("a", "b", "c")
    # Each class is right with a probability of 80 % and otherwise each of the others: F1 and recall are 0.8. The
    # probability is 0.8 too, so that the calibration error is 0.
    for _ in range(60):
        is_correct, groups = draw_groups(0.8, 0.3, 40, 10, rng)
        labels = rng.choice(labels_of_all, len(groups))
        predicted = np.where(is_correct, labels, (labels + rng.integers(1, 3, len(groups))) % 3)
        logits = np.eye(3, dtype=np.float32)[predicted] * math.log(8)
        for row, own in enumerate((groups, None)):
            result = LabeledOutputs(names, labels, logits, np.full(len(groups), 0.8), groups=own)
            draw = result._draw_classes if row == 0 else None
            [low, high] = macro_intervals(result.confusion, num_draws=150, draw=draw)["f1"]
            ece = ece_interval(result.probability, result.is_correct, num_draws=150, draw=result.draws.draw)
            hits[row] += [low <= 0.8 <= high, ece[0] == 0]
    assert hits[0].min() >= 52  # of 60, three standard errors below 95 %
    assert hits[1, 0] < 52


@pytest.mark.slow
@pytest.mark.parametrize("difference", [0.0, 0.1])
def test_paired_tests_of_groups_reject_5_of_100_and_intervals_contain_95(difference: float):
    rng, rejected, contained = np.random.default_rng(0), np.zeros(2), np.zeros(2)
    for _ in range(300):
        only_a, groups = draw_groups(0.1, 0.3, 40, 10, rng)
        only_b, others = draw_groups(0.1 + difference, 0.3, 40, 10, rng)
        groups = np.concatenate([groups, others])  # group 3 has images of both kinds
        is_a = np.concatenate([only_a, np.zeros(len(others), bool)])
        is_b = np.concatenate([np.zeros(len(only_a), bool), only_b])
        for row, own in enumerate((groups, None)):
            found = compare_paired(~is_b, ~is_a, own)
            rejected[row] += found.p_value < 0.05
            contained[row] += found.interval_95[0] <= difference / 2 <= found.interval_95[1]
    assert contained[0] / 300 > 0.91
    assert contained[1] / 300 < 0.88
    if not difference:
        assert rejected[0] / 300 < 0.09
        assert rejected[1] / 300 > 0.12


def test_the_sign_flip_test_counts_all_assignments_of_signs():
    sums = np.array([3, -1, 0, 2, 2, 1])
    totals = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=len(sums))]
    assert sign_flip_p_value(sums) == pytest.approx(np.mean([total >= 7 for total in totals]))
    assert sign_flip_p_value(np.zeros(3, np.int64)) == 1


@pytest.mark.parametrize(("num_only_a", "num_only_b"), [(0, 0), (0, 1), (1, 9), (79, 31)])
def test_groups_of_one_image_give_mcnemars_test(num_only_a: int, num_only_b: int):
    is_a = np.repeat([True, False, True], [num_only_a, num_only_b, 20])
    is_b = np.repeat([False, True, True], [num_only_a, num_only_b, 20])
    alone, grouped = compare_paired(is_a, is_b), compare_paired(is_a, is_b, np.arange(len(is_a)))
    assert grouped.p_value == pytest.approx(alone.p_value)
    assert grouped.interval_95 == pytest.approx(alone.interval_95, abs=0.03)
    assert (alone.test, grouped.test) == ("McNemar's exact test", f"sign-flip test over {len(is_a)} groups")


def test_the_effective_interval_of_whole_numbers_is_wilsons():
    assert effective_interval(0.9, 50) == pytest.approx(wilson_interval(45, 50), abs=1e-6)
    assert effective_interval(1.0, 50) == pytest.approx(wilson_interval(50, 50), abs=1e-6)
    for num_effective in range(1, 400):  # also after rounding
        assert effective_interval(1.0, num_effective)[1] == 1.0
        assert effective_interval(0.0, num_effective)[0] == 0.0


def test_images_of_a_group_that_are_all_alike_count_once():
    is_correct = np.repeat(np.arange(50) % 5 > 0, 10)
    groups = np.repeat(np.arange(50), 10)
    assert design_effect(is_correct.astype(float), groups) == pytest.approx(10 * 50 / 49)
    assert alike_groups_interval(0.8, groups) == pytest.approx(wilson_interval(40, 50), abs=1e-6)
    low, high = share_interval(np.ones(500, bool), groups)  # the correlation is unknown
    assert low == pytest.approx(wilson_interval(50, 50)[0], abs=0.01)
    assert high == 1
    assert share_interval(is_correct, np.zeros(500))[0] < 0.05  # one group says nothing of others


def test_whole_groups_are_drawn_and_single_images_as_before():
    groups = np.array(["a", "b", "a", "c", "c", "c"])
    draws = ImageDraws(np.array([True, False] * 3), groups)
    drawn, num_unseen = draws.draw(np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=6)
    assert counts[0] == counts[2]
    assert counts[3] == counts[4] == counts[5]
    assert counts[0] + counts[1] + counts[3] == 3
    assert 0 <= num_unseen <= len(drawn)
    plain = ImageDraws(np.ones(6, bool)).draw(np.random.default_rng(0))[0]
    assert plain.tolist() == np.random.default_rng(0).integers(0, 6, 6).tolist()
