"""Accuracy, top-k, precision, recall, F1 and the confusion matrix, compared with scikit-learn."""

import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sk

from imago.statistics.calibration import fit_temperature
from imago.statistics.intervals import wilson_interval
from imago.statistics.metrics import (
    LabeledOutputs,
    best_probability,
    is_in_top_k,
    macro_scores,
    most_confused,
    per_class,
    softmax,
    top_classes,
)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    logits = np.eye(num_classes, dtype=np.float32)[predicted]
    return LabeledOutputs(tuple(map(str, range(num_classes))), labels, logits, logits.max(axis=1)).confusion


def noisy_predictions(num_classes: int, num_images: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of uneven frequency, and logits that are often right."""
    random = np.random.default_rng(seed)
    labels = (num_classes * random.random(num_images) ** 2).astype(np.int64)
    logits = random.normal(size=(num_images, num_classes)).astype(np.float32)
    logits[np.arange(num_images), labels] += 1.5
    return labels, logits


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_confusion_precision_recall_and_f1_are_those_of_scikit_learn(num_classes: int):
    labels, logits = noisy_predictions(num_classes)
    predicted = logits.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, num_classes)
    classes = per_class(confusion)
    every = {"labels": range(num_classes), "zero_division": 0}
    assert (confusion == sk.confusion_matrix(labels, predicted, labels=range(num_classes))).all()
    assert classes.precision == pytest.approx(sk.precision_score(labels, predicted, average=None, **every))
    assert classes.recall == pytest.approx(sk.recall_score(labels, predicted, average=None, **every))
    assert classes.f1 == pytest.approx(sk.f1_score(labels, predicted, average=None, **every))
    assert (classes.num_images == np.bincount(labels, minlength=num_classes)).all()


def test_macro_f1_is_that_of_scikit_learn_a_class_that_is_predicted_without_images_counts_as_0():
    labels, logits = noisy_predictions(100, num_images=200)
    predicted = logits.argmax(axis=1)
    assert set(predicted) - set(labels)
    expected = sk.f1_score(labels, predicted, average="macro", zero_division=0)
    assert macro_scores(per_class(confusion_matrix(labels, predicted, 100)))["f1"] == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_top_k_counts_are_those_of_scikit_learn(k: int):
    labels, logits = noisy_predictions(10)
    expected = 500 if k == 10 else sk.top_k_accuracy_score(labels, logits, k=k, labels=range(10), normalize=False)
    assert is_in_top_k(logits, labels, k).sum() == expected


def test_of_equal_logits_the_first_class_wins_everywhere():
    logits, labels = np.zeros((4, 4), np.float32), np.arange(4)
    assert [is_in_top_k(logits, labels, k).sum() for k in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert is_in_top_k(logits, labels, 1).tolist() == (logits.argmax(axis=1) == labels).tolist()
    assert top_classes(logits, 3).tolist() == [[0, 1, 2]] * 4
    assert top_classes(np.array([[0.1, 3.0, 2.0]]), 9).tolist() == [[1, 2, 0]]


def test_a_class_without_images_or_predictions_scores_zero_without_a_warning():
    classes = per_class(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    assert classes.precision.tolist() == [1.0, 2 / 3, 0.0]
    assert classes.recall.tolist() == [0.75, 1.0, 0.0]
    assert classes.f1[2] == 0


def test_most_confused_has_the_true_class_first_and_no_empty_cells():
    assert most_confused(np.array([[9, 1, 0], [4, 5, 0], [0, 0, 7]]), 5) == [(1, 0, 4), (0, 1, 1)]
    assert most_confused(np.eye(3, dtype=np.int64), 5) == []


def test_softmax_sums_to_one_also_for_logits_that_overflow():
    probabilities = softmax(np.array([[1e4, 0, -1e4], [0, 0, 0], [-1e4, -1e4, -1e4]], np.float32))
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert probabilities[0].tolist() == [1, 0, 0]
    assert probabilities[1:] == pytest.approx(1 / 3)


@pytest.mark.parametrize("num_classes", [5, 6])
def test_every_score_is_that_of_scikit_learn_and_inside_its_interval_and_top_5_needs_6_classes(num_classes: int):
    labels, logits = noisy_predictions(num_classes)
    names = tuple(f"c{number}" for number in range(num_classes))
    probabilities = softmax(logits / 2)
    found = LabeledOutputs(names, labels, logits, probabilities.max(axis=1), calibration_temperature=2.0).metrics()
    predicted = logits.argmax(axis=1)
    average = {"average": "macro", "zero_division": 0}
    expected = {
        "acc": sk.accuracy_score(labels, predicted),
        "macro_precision": sk.precision_score(labels, predicted, **average),
        "macro_recall": sk.recall_score(labels, predicted, **average),
        "f1": sk.f1_score(labels, predicted, **average),
        "nll": sk.log_loss(labels, probabilities, labels=range(num_classes)),
    }
    if num_classes > 5:
        expected["top5_acc"] = sk.top_k_accuracy_score(labels, logits, k=5, labels=range(num_classes))
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert ("top5_acc" in found) == (num_classes > 5)
    assert (found["num_images"], found["num_correct"]) == (500, (labels == predicted).sum())
    assert found["interval_95"] == list(wilson_interval(found["num_correct"], 500))
    for name in {*expected, "ece"} - {"nll"}:
        low, high = found["interval_95" if name == "acc" else f"{name}_interval_95"]
        assert 0 <= low < found[name] < high <= 1, name


@pytest.mark.slow
def test_scores_of_many_classes_need_little_memory_besides_logits_and_confusion_matrix():
    labels, logits = noisy_predictions(2000, num_images=2000)
    result = LabeledOutputs(tuple(map(str, range(2000))), labels, logits, best_probability(logits, 2.0))
    tracemalloc.start()
    try:
        found = result.metrics()
        most_confused(result.confusion, 20)
        temperature = fit_temperature(logits, labels)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < result.confusion.nbytes + 1.5 * logits.nbytes  # 32 and 16 MB
    assert found["nll"] == pytest.approx(sk.log_loss(labels, softmax(logits), labels=range(2000)))
    assert found["top5_acc"] == sk.top_k_accuracy_score(labels, logits, k=5, labels=range(2000))
    assert best_probability(logits, temperature) == pytest.approx(softmax(logits / temperature).max(axis=1))


def test_the_worst_mistakes_have_the_highest_confidence_and_the_first_of_equal_ones_leads():
    labels, logits = np.array([0, 1, 1, 0, 1]), np.tile(np.array([1, 0], np.float32), (5, 1))
    result = LabeledOutputs(("a", "b"), labels, logits, np.array([0.99, 0.4, 0.8, 0.2, 0.8]))
    assert result.worst_mistakes(2).tolist() == [2, 4]
    assert result.worst_mistakes(9).tolist() == [2, 4, 1]
