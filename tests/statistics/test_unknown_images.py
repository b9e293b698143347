"""The detector of unknown images: kept share by simulation, AUROC against scikit-learn, intervals by simulation."""

import json
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score, roc_curve

from imago.seeding import SETS_KEY, random_permutation
from imago.statistics.unknown_images import (
    UnknownDetector,
    auroc_with_interval,
    describe_unknown,
    fit_detector,
    measure_unknown,
    missing_detector_note,
)

NUM_CLASSES = 4


def draw(num_images: int, random: np.random.Generator, signal: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits with correlated noise, and labels."""
    labels = random.integers(0, NUM_CLASSES, num_images)
    noise = random.normal(size=(num_images, NUM_CLASSES)) @ np.array(
        [[1, 0.5, 0, 0], [0, 1, 0, 0.3], [0, 0, 2, 0], [0, 0, 0, 1]]
    )
    return (signal * np.eye(NUM_CLASSES)[labels] + noise).astype(np.float32), labels


def fitted(num_images: int, seed: int = 0) -> UnknownDetector:
    detector = fit_detector(*draw(num_images, np.random.default_rng(seed)))
    assert detector is not None
    return detector


def test_the_score_is_the_cosine_by_the_precision_matrix_of_the_other_half():
    logits, labels = draw(401, np.random.default_rng(0))
    detector, order = fit_detector(logits, labels), random_permutation(401, SETS_KEY)
    half, others = order[:200], order[200:]
    values = logits[others].astype(np.float64)
    means = np.stack([values[labels[others] == label].mean(axis=0) for label in range(NUM_CLASSES)])
    precision = LedoitWolf(assume_centered=True).fit(values - means[labels[others]]).precision_
    center = values.mean(axis=0)

    def product(a: np.ndarray, b: np.ndarray) -> float:
        return float((a - center) @ precision @ (b - center))

    expected = [
        max(product(row, mean) / np.sqrt(product(row, row) * product(mean, mean)) for mean in means)
        for row in logits.astype(np.float64)
    ]
    assert detector is not None
    np.testing.assert_allclose(detector.scores(logits) + detector.cutoff, expected, rtol=1e-6)
    assert detector.num_images == 200
    # The rank of the conformal quantile: at most floor(201 * 5 %) = 10 of 200 are at or below the cut-off.
    assert detector.cutoff + 1e-4 == pytest.approx(np.sort(np.array(expected)[half])[9], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("num_val", [38, 400])
def test_95_percent_or_more_of_new_known_images_are_kept(num_val: int):
    random, num_repeats = np.random.default_rng(num_val), 300
    kept = np.empty(num_repeats)
    for repeat in range(num_repeats):
        detector = fit_detector(*draw(num_val, random))
        assert detector is not None
        kept[repeat] = (detector.scores(draw(300, random)[0]) >= 0).mean()
    num_images = num_val // 2
    expected = 1 - np.floor(0.05 * (num_images + 1)) / (num_images + 1)
    assert expected >= 0.95
    assert kept.mean() == pytest.approx(expected, abs=4 * kept.std() / np.sqrt(num_repeats) + 1e-3)


def test_images_without_signal_are_marked():
    detector, random = fitted(1000), np.random.default_rng(1)
    unknown = detector.scores(draw(1000, random, signal=0)[0])
    known = detector.scores(draw(1000, random)[0])
    measured = measure_unknown(known, unknown, None)
    assert measured["auroc"] > 0.8
    assert measured["unknown_marked"] > 0.4 > 0.1 > measured["known_marked"]


@pytest.mark.parametrize("num_images", [0, 1, 37])
def test_too_few_images_or_too_many_classes_give_no_detector(num_images: int):
    assert fit_detector(*draw(num_images, np.random.default_rng(0))) is None
    assert fit_detector(*draw(38, np.random.default_rng(0))) is not None
    assert fit_detector(np.zeros((60, 201), np.float32), np.zeros(60, np.int64)) is None
    assert "needs 38 images of val and at most 200 classes" in missing_detector_note(None)
    assert missing_detector_note(fitted(38)) == ""


def test_classes_without_images_and_constant_outputs_have_finite_scores():
    logits, labels = draw(100, np.random.default_rng(0))
    for values, classes in ((logits, np.zeros(100, np.int64)), (np.ones((100, 4), np.float32), labels)):
        detector = fit_detector(values, classes)
        assert detector is not None
        assert np.isfinite(detector.scores(logits)).all()
        assert np.isfinite(detector.scores(values)).all()


def test_a_detector_is_read_from_plain_data():
    detector, logits = fitted(100), draw(50, np.random.default_rng(1))[0]
    read = UnknownDetector.from_dict(json.loads(json.dumps(detector.to_dict())), NUM_CLASSES)
    assert read is not None
    np.testing.assert_array_equal(read.scores(logits), detector.scores(logits))
    assert UnknownDetector.from_dict(None, NUM_CLASSES) is None


@pytest.mark.parametrize(
    "change",
    [
        {"cutoff": float("nan")}, {"cutoff": None}, {"num_images": 3}, {"mean": [0, 0, 0]}, {"mean": "x"},
        {"whitening": [[1, 2], [3]]}, {"whitening": [[1e999] * 4] * 4}, {"directions": None}, {"directions": {}},
    ],
)  # fmt: skip
def test_damaged_values_are_refused(change: dict[str, Any]):
    values = fitted(100).to_dict()
    with pytest.raises((ValueError, TypeError)):
        UnknownDetector.from_dict(values | change, NUM_CLASSES)
    with pytest.raises(KeyError):
        UnknownDetector.from_dict({key: values[key] for key in values if key not in change}, NUM_CLASSES)
    with pytest.raises(ValueError, match="does not fit 5 classes"):
        UnknownDetector.from_dict(values, 5)


@pytest.mark.parametrize("digits", [1, 6])
def test_auroc_and_fpr_are_those_of_scikit_learn(digits: int):
    random = np.random.default_rng(0)
    known, unknown = np.round(random.normal(1, 1, 301), digits), np.round(random.normal(0, 1.5, 200), digits)
    labels, scores = np.repeat([1, 0], [301, 200]), np.concatenate([known, unknown])
    measured = measure_unknown(known, unknown, None)
    assert measured["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert measured["fpr_at_95"] == pytest.approx(false[true >= 0.95][0])
    assert (measured["num_known"], measured["num_unknown"]) == (301, 200)
    assert measured["known_marked"] == pytest.approx(np.mean(known < 0))
    assert measured["unknown_marked"] == pytest.approx(np.mean(unknown < 0))
    for name in ("auroc", "fpr_at_95", "known_marked", "unknown_marked"):
        low, high = measured[f"{name}_interval"]
        assert 0 <= low < measured[name] < high <= 1 + 1e-9
    json.dumps(measured)


def test_the_interval_is_about_that_of_delong_with_many_images():
    random = np.random.default_rng(0)
    known, unknown = random.normal(1, 1, 2000), random.normal(0, 1, 3000)
    auroc, (low, high) = auroc_with_interval(known, unknown, None)
    above = (known[:, None] > unknown).mean(axis=1)
    below = (known[:, None] > unknown).mean(axis=0)
    error = np.sqrt(above.var(ddof=1) / 2000 + below.var(ddof=1) / 3000)
    assert (low, high) == pytest.approx((auroc - 1.96 * error, auroc + 1.96 * error), abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "sizes", "in_groups"), [(1, (200, 50), 0), (3, (100, 100), 0), (1, (200, 200), 10)])
def test_the_interval_of_auroc_contains_the_true_one_in_95_of_100_tests(shift: float, sizes: tuple, in_groups: int):
    random, num_tests, num_found = np.random.default_rng(shift), 500, 0
    true = norm.cdf(shift / np.sqrt(2 + (in_groups > 0)))
    for _ in range(num_tests):
        known, unknown, groups = random.normal(shift, 1, sizes[0]), random.normal(0, 1, sizes[1]), None
        if in_groups:
            groups = np.arange(sizes[0]) // in_groups
            known += random.normal(0, 1, sizes[0] // in_groups)[groups]
        low, high = auroc_with_interval(known, unknown, groups)[1]
        num_found += low <= true <= high
    assert 0.92 <= num_found / num_tests <= 0.99


def test_separate_scores_and_a_single_image_have_wide_intervals():
    auroc, (low, high) = auroc_with_interval(np.arange(10.0) + 100, np.arange(20.0), None)
    assert (auroc, high) == (1, pytest.approx(1))
    assert low == pytest.approx(10 / (10 + 1.96**2), abs=1e-3)  # Wilson's, for 10 of 10
    assert auroc_with_interval(np.arange(100.0), np.array([30.5]), None)[1][0] < 0.2
    groups = np.arange(10) // 5
    assert auroc_with_interval(np.arange(10.0) + 100, np.arange(20.0), groups)[1][0] < 0.4


def test_the_lines_of_the_summary_have_each_number_with_its_interval():
    measured = {"data": "a\nb"} | measure_unknown(np.array([1.0, 2, 3]), np.array([-1.0, 0.5]), None)
    lines = describe_unknown(measured)
    assert lines["unknown"] == r"2 images of a\nb"
    assert lines["AUROC"].startswith("100.00%, 95 % interval ")
    assert lines["unknown marked"].startswith("50.00%, 95 % interval ")
    assert describe_unknown({}) == {}
