"""Intervals by drawing again: they hold the truth about as often as they say, in simulated tests of a known network."""

import numpy as np
import pytest

from imago.statistics.bootstrap import ece_interval, macro_intervals
from imago.statistics.calibration import reliability
from imago.statistics.metrics import confusion_matrix, macro_scores, per_class, softmax


class Simulated:
    """A network whose answers for ever new images can be drawn; it says softmax(logits / temperature)."""

    def __init__(self, num_classes: int, temperature: float) -> None:
        self.random = np.random.default_rng(0)
        self.frequencies = np.linspace(1, 3, num_classes)
        self.temperature = temperature

    def draw(self, num_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give labels, predicted classes and their probabilities, each (N,)."""
        num_classes = len(self.frequencies)
        logits = 1.5 * self.random.normal(size=(num_images, num_classes)) + np.log(self.frequencies)
        below = softmax(logits).cumsum(axis=1) < self.random.random((num_images, 1))
        said = softmax(logits / self.temperature)
        return below.sum(axis=1).clip(0, num_classes - 1), said.argmax(axis=1), said.max(axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("num_images", [150, 1000])
def test_macro_scores_of_all_images_lie_in_the_interval_about_95_times_in_100(num_images: int):
    network, num_trials = Simulated(5, 1.0), 200
    labels, predicted, _ = network.draw(400_000)
    truth = macro_scores(per_class(confusion_matrix(labels, predicted, 5)))
    hits = dict.fromkeys(truth, 0)
    for trial in range(num_trials):
        labels, predicted, _ = network.draw(num_images)
        found = macro_intervals(confusion_matrix(labels, predicted, 5), seed=trial, num_draws=200)
        for name, (low, high) in found.items():
            hits[name] += low <= truth[name] <= high
    shares = {name: count / num_trials for name, count in hits.items()}
    assert min(shares.values()) >= 0.88, shares  # percentiles of few images are a little narrow
    assert max(shares.values()) <= 0.99, shares


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_calibration_error_of_all_images_lies_in_the_interval_at_least_about_95_times(temperature: float):
    network, num_trials = Simulated(5, temperature), 150
    labels, predicted, confidence = network.draw(400_000)
    truth = reliability(confidence, labels == predicted).ece
    hits = 0
    for trial in range(num_trials):
        labels, predicted, confidence = network.draw(400)
        low, high = ece_interval(confidence, labels == predicted, seed=trial, num_draws=200)
        hits += low <= truth <= high
    assert hits / num_trials >= 0.92


def test_macro_intervals_are_those_of_drawing_the_images_themselves():
    labels, predicted, _ = Simulated(4, 1.0).draw(300)
    random, scores = np.random.default_rng(5), []
    for _ in range(1500):
        rows = random.integers(0, 300, 300)
        scores.append(macro_scores(per_class(confusion_matrix(labels[rows], predicted[rows], 4))))
    for name, (low, high) in macro_intervals(confusion_matrix(labels, predicted, 4)).items():
        expected = np.quantile([score[name] for score in scores], [0.025, 0.975])
        assert (low, high) == pytest.approx(expected, abs=0.012), name


def test_the_same_seed_gives_the_same_interval():
    _, _, confidence = Simulated(3, 1.0).draw(50)
    is_right = np.arange(50) % 2 == 0
    assert ece_interval(confidence, is_right) == ece_interval(confidence, is_right)
    assert ece_interval(confidence, is_right) != ece_interval(confidence, is_right, seed=1)


def test_a_network_without_mistakes_has_nothing_to_vary():
    found = macro_intervals(np.diag([3, 4, 5]))
    assert found == dict.fromkeys(("macro_precision", "macro_recall", "macro_f1"), (1.0, 1.0))
    assert ece_interval(np.ones(5), np.ones(5, bool)) == (0.0, 0.0)


def test_the_interval_holds_the_measured_error():
    labels, predicted, confidence = Simulated(3, 0.6).draw(500)
    low, high = ece_interval(confidence, labels == predicted)
    assert 0 <= low < reliability(confidence, labels == predicted).ece < high <= 1


def test_a_class_that_is_never_predicted_counts_as_none_found():
    found = macro_intervals(np.array([[10, 0], [10, 0]]))
    low, high = found["macro_recall"]
    assert low == high == 0.5
    assert 0 < found["macro_f1"][0] < 0.4 < found["macro_f1"][1] < 0.5
