"""Reliability and expected calibration error, by hand, in a simulation, and against scikit-learn's curve."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from imago.analysis.calibration import reliability


def test_bins_and_their_error_are_those_counted_by_hand():
    confidence = np.array([0.55, 0.6, 0.9, 1.0, 1.0])
    is_right = np.array([True, False, True, True, False])
    found = reliability(confidence, is_right, num_bins=10)
    assert found.low.tolist() == pytest.approx([0.5, 0.8, 0.9])
    assert found.high.tolist() == pytest.approx([0.6, 0.9, 1.0])
    assert found.count.tolist() == [2, 1, 2]
    assert found.confidence.tolist() == pytest.approx([0.575, 0.9, 1.0])
    assert found.accuracy.tolist() == [0.5, 1.0, 0.5]
    assert found.ece == pytest.approx((2 * 0.075 + 1 * 0.1 + 2 * 0.5) / 5)


def test_bins_are_those_of_scikit_learn():
    draws = np.random.default_rng(0)
    confidence = draws.random(3000)
    is_right = draws.random(3000) < confidence**2
    right, said = calibration_curve(is_right, confidence, n_bins=15)
    found = reliability(confidence, is_right)
    assert found.accuracy == pytest.approx(right)
    assert found.confidence == pytest.approx(said)


def test_whoever_says_what_is_true_has_nearly_no_error():
    draws = np.random.default_rng(0)
    confidence = draws.uniform(0.2, 1, 100_000)
    assert reliability(confidence, draws.random(100_000) < confidence).ece < 0.01
    assert reliability(confidence, draws.random(100_000) < confidence - 0.15).ece == pytest.approx(0.15, abs=0.01)


def test_probabilities_at_the_ends_have_a_bin():
    found = reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert found.count.tolist() == [1, 1]
    assert found.ece == 0
