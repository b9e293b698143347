"""Calibration, compared with values by hand, simulations and scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from imago.statistics.calibration import MAX_TEMPERATURE, UNCALIBRATED, fit_temperature, nll, reliability
from imago.statistics.metrics import softmax


def test_bins_and_ece_are_those_computed_by_hand():
    confidence = np.array([0.55, 0.6, 0.9, 1.0, 1.0])
    is_correct = np.array([True, False, True, True, False])
    found = reliability(confidence, is_correct, num_bins=10)
    assert found.low.tolist() == pytest.approx([0.5, 0.8, 0.9])
    assert found.high.tolist() == pytest.approx([0.6, 0.9, 1.0])
    assert found.num_images.tolist() == [2, 1, 2]
    assert found.probability.tolist() == pytest.approx([0.575, 0.9, 1.0])
    assert found.accuracy.tolist() == [0.5, 1.0, 0.5]
    assert found.ece == pytest.approx((2 * 0.075 + 1 * 0.1 + 2 * 0.5) / 5)


def test_bins_are_those_of_scikit_learn():
    draws = np.random.default_rng(0)
    confidence = draws.random(3000)
    is_correct = draws.random(3000) < confidence**2
    accuracy, probability = calibration_curve(is_correct, confidence, n_bins=15)
    found = reliability(confidence, is_correct)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.probability == pytest.approx(probability)


def test_probabilities_0_and_1_have_a_bin():
    found = reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert found.num_images.tolist() == [1, 1]
    assert found.ece == 0


def drawn(num_images: int = 3000, num_classes: int = 5, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits whose softmax is the true probability up to a scale, and labels drawn from it."""
    random = np.random.default_rng(1)
    logits = 2 * random.normal(size=(num_images, num_classes))
    labels = (softmax(logits).cumsum(axis=1) < random.random((num_images, 1))).sum(axis=1).clip(0, num_classes - 1)
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.02, 1.0, 100.0])
def test_the_fitted_temperature_is_the_scale_of_the_logits(scale: float):
    assert fit_temperature(*drawn(20_000, scale=scale)) == pytest.approx(scale, rel=0.03)


def test_the_temperature_is_the_optimum_of_the_softened_likelihood():
    logits, labels = drawn(scale=3.0)
    softening = 1 / (len(labels) + 2)
    best = fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        every_class = [nll(logits, np.full_like(labels, label), temperature) for label in range(5)]
        return (1 - softening) * nll(logits, labels, temperature) + softening * np.mean(every_class)

    assert loss(best) < min(loss(best * 0.999), loss(best * 1.001))


def test_likelihood_is_that_of_scikit_learn():
    logits, labels = drawn()
    assert nll(logits, labels, 1.7) == pytest.approx(log_loss(labels, softmax(logits / 1.7)))
    assert nll(np.array([[1e4, -1e4]]), np.array([1])) == pytest.approx(2e4)


def test_the_temperature_of_a_network_without_mistakes_stays_finite():
    logits, _ = drawn(100, 3)
    labels = logits.argmax(axis=1)
    temperature = fit_temperature(logits, labels)
    confidence = softmax(logits / temperature).max(axis=1).mean()
    assert 0.9 < confidence < 1 - 1e-4  # after 100 of 100, Laplace expects about 101 in 102


def test_a_network_worse_than_chance_gets_the_highest_temperature():
    logits, _ = drawn(100, 3)
    temperature = fit_temperature(logits, logits.argmin(axis=1))
    assert temperature == pytest.approx(MAX_TEMPERATURE)
    assert softmax(logits / temperature).max() < 0.34


def test_constant_logits_stay_uncalibrated():
    assert fit_temperature(np.full((4, 3), 7.0), np.array([0, 1, 2, 0])) == UNCALIBRATED
