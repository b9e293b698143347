"""Prediction sets: coverage against simulations and the quantile of the definition, sizes, and too few images."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import betabinom, binom

from imago.seeding import SETS_KEY, random_permutation
from imago.statistics.calibration import fit_temperature
from imago.statistics.conformal import (
    LEVELS,
    PREDICTION_SETS_KEY,
    PredictionSets,
    class_cells,
    describe_sets,
    fit_sets,
    measure_sets,
    missing_sets_note,
    num_needed,
)
from imago.statistics.metrics import softmax

NAMES = tuple("abcdefgh")


def draw(num_images: int, random: np.random.Generator, scale: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits of an overconfident network of 8 classes, and labels."""
    logits = random.normal(size=(num_images, len(NAMES))) * scale
    labels = (softmax(logits).cumsum(axis=1) < random.random((num_images, 1))).sum(axis=1)
    return (1.7 * logits).astype(np.float32), np.minimum(labels, len(NAMES) - 1)


def covered(sets: PredictionSets, logits: np.ndarray, labels: np.ndarray, level: str) -> np.ndarray:
    return sets.members(logits)[level][np.arange(len(labels)), labels]


def test_the_threshold_is_the_quantile_of_the_half_that_the_temperature_did_not_see():
    logits, labels = draw(401, np.random.default_rng(0))
    sets, order = fit_sets(logits, labels), random_permutation(401, SETS_KEY)
    half, others = order[:200], order[200:]
    assert sets == fit_sets(logits, labels)
    assert sets.num_images == 200
    assert sets.temperature == fit_temperature(logits[others], labels[others])
    scores = 1 - softmax(logits[half] / sets.temperature)[np.arange(200), labels[half]]
    for level, share in (("90", 0.9), ("95", 0.95)):
        quantile = np.quantile(scores, math.ceil(201 * share) / 200, method="inverted_cdf")
        assert sets.thresholds[level] == pytest.approx(1 - quantile, rel=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("num_val", [40, 400])
def test_the_coverage_of_new_images_is_that_of_the_level_and_its_spread_is_beta_binomial(num_val: int):
    random, num_tested, num_repeats, num_images = np.random.default_rng(num_val), 400, 300, num_val // 2
    coverage = {level: np.empty(num_repeats) for level in LEVELS}
    for repeat in range(num_repeats):
        sets, test = fit_sets(*draw(num_val, random)), draw(num_tested, random)
        for level in LEVELS:
            coverage[level][repeat] = covered(sets, *test, level).mean()
    measured = measure_sets(sets, *test, NAMES)[PREDICTION_SETS_KEY]
    for level, values in coverage.items():
        rank = math.ceil((num_images + 1) * int(level) / 100)
        expected = betabinom(num_tested, rank, num_images + 1 - rank)
        error = expected.std() / num_tested / math.sqrt(num_repeats)
        assert values.mean() == pytest.approx(rank / (num_images + 1), abs=4 * error)
        assert values.mean() > int(level) / 100 - 4 * error
        assert values.std() == pytest.approx(expected.std() / num_tested, rel=0.15)
        low, high = measured[level]["expected_95"]
        assert np.sum((low <= values) & (values <= high)) >= binom.ppf(0.001, num_repeats, 0.95)


def test_a_set_is_never_empty_and_the_smaller_level_is_part_of_the_larger():
    logits, labels = draw(2000, np.random.default_rng(1), scale=40)  # right more often than the levels
    sets = fit_sets(logits, labels)
    members = sets.members(logits)
    assert sets.thresholds["90"] > 0.5
    assert (softmax(logits / sets.temperature).max(axis=1) < sets.thresholds["90"]).any()
    assert (members["90"] <= members["95"]).all()
    for level in LEVELS:
        assert members[level][np.arange(2000), logits.argmax(axis=1)].all()
    assert members["90"].sum(axis=1).mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("num_val", "levels", "note"),
    [
        (17, (), "need 18 images of val at 90 % and 38 images of val at 95 %; half of val has 8"),
        (1, (), "half of val has 0"),
        (18, ("90",), "prediction sets need 38 images of val at 95 %; half of val has 9"),
        (37, ("90",), "half of val has 18"),
        (38, ("90", "95"), ""),
    ],
)
def test_too_few_images_leave_a_level_out_and_the_note_says_how_many_are_needed(num_val: int, levels: tuple, note: str):
    sets = fit_sets(*draw(num_val, np.random.default_rng(2)))
    assert tuple(sets.thresholds) == levels
    assert missing_sets_note(sets).endswith(note)
    assert bool(missing_sets_note(sets)) == bool(note)
    for level, share in (("90", 0.9), ("95", 0.95)):
        needed = num_needed(level)
        assert (needed + 1) * share <= needed + 1e-9
        assert needed * share > needed - 1 + 1e-9


def test_a_network_without_sets_is_noted_and_has_no_results():
    assert "no prediction sets were fitted" in missing_sets_note(None)
    assert measure_sets(None, *draw(5, np.random.default_rng(0)), NAMES) == {}


def test_coverage_and_size_are_counted_overall_and_per_class():
    sets = PredictionSets(1.0, {"90": 0.3}, 100)
    probabilities = np.array([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25], [0.1, 0.8, 0.1], [0.5, 0.2, 0.3]])
    labels = np.array([0, 1, 0, 2])
    measured = measure_sets(sets, np.log(probabilities) + 1e-9, labels, ("x", "y", "z"))[PREDICTION_SETS_KEY]
    found = measured["90"]
    assert (found["coverage"], found["mean_size"], found["num_images"]) == (0.75, 1.75, 4)
    assert found["per_class"]["x"] | {"interval_95": 0, "mean_size_interval_95": 0} == {
        **{"num_images": 2, "coverage": 0.5, "interval_95": 0, "mean_size": 1.5, "mean_size_interval_95": 0}
    }
    assert found["per_class"]["y"]["mean_size_interval_95"] is None
    low, high = found["interval_95"]
    assert 0 < low < 0.75 < high < 1
    json.dumps(measured)
    assert class_cells(measured, "x") == ["50.00%", "1.50"]
    assert class_cells(measured, "none") == ["", ""]
    assert describe_sets(measured)["90 % sets"].startswith("coverage 75.00%, 95 % interval ")


def test_the_interval_of_a_coverage_accounts_for_groups():
    """20 patients with 50 images each, all of which are in their sets, or none."""
    generator, num_inside = np.random.default_rng(0), 0
    groups = np.repeat(np.arange(20), 50)
    for _ in range(100):
        is_covered = (generator.random(20) < 0.9)[groups]
        logits = np.where(is_covered, 5.0, -5.0)[:, None] * [1, 0]
        sets = PredictionSets(1.0, {"90": 0.5}, 1000)
        measured = measure_sets(sets, logits, np.zeros(1000, int), ("a", "b"), groups)[PREDICTION_SETS_KEY]
        assert measured["90"]["coverage"] == is_covered.mean()
        low, high = measured["90"]["interval_95"]
        num_inside += low <= 0.9 <= high
        assert ("expected" in describe_sets(measured)["90 % sets"], measured["90"]["mean_size_interval_95"]) == (
            False,
            None,
        )
    assert num_inside >= 90  # 24 of 100 with the interval of independent images


def test_sets_are_read_from_plain_data():
    sets = fit_sets(*draw(100, np.random.default_rng(3)))
    assert PredictionSets.from_dict(json.loads(json.dumps(asdict(sets)))) == sets


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0}, {"temperature": float("nan")}, {"temperature": None}, {"thresholds": {"90": 2}},
        {"thresholds": {"90": float("nan")}}, {"thresholds": None}, {"num_images": 3}, {"num_images": "x"},
    ],
)  # fmt: skip
def test_damaged_values_are_refused(change: dict):
    with pytest.raises((ValueError, TypeError)):
        PredictionSets.from_dict({"temperature": 1.0, "thresholds": {"90": 0.5}, "num_images": 50} | change)
