"""Compute accuracy, top-k, precision, recall, F1 and the confusion matrix from logits, with numpy only.

The results are those of scikit-learn (see the tests), whose import would take a second.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from imago.statistics.calibration import UNCALIBRATED, nll, reliability, row_chunks
from imago.statistics.groups import ImageDraws, share_interval
from imago.statistics.intervals import ece_interval, macro_intervals

# Legend: N images, K classes

# Ratio of the largest to the smallest class at which a remedy is suggested; our own choice.
MIN_IMBALANCE_RATIO = 3.0


@dataclass(frozen=True)
class PerClass:
    """Scores of each class; all arrays have shape (K,)."""

    precision: np.ndarray  # share of the images predicted as the class that belong to it; 0 for a class never predicted
    recall: np.ndarray  # share of the images of the class that are predicted as it; 0 for a class without images
    f1: np.ndarray  # harmonic mean of precision and recall; 0 where both are 0
    num_images: np.ndarray  # images of the class, int64
    num_predicted: np.ndarray  # images predicted as the class, int64


class Predictions:
    """Base of a data class with true and predicted classes of N images."""

    class_names: tuple[str, ...]  # K names
    labels: np.ndarray  # true classes, int64 (N,), as indices into `class_names`
    predicted: np.ndarray  # predicted classes, int64 (N,)
    probability: np.ndarray  # probability of the predicted class, float (N,), in [0, 1]

    @cached_property
    def is_correct(self) -> np.ndarray:
        """Whether the predicted class of each image is the true one, bool (N,)."""
        return self.labels == self.predicted

    @cached_property
    def confusion(self) -> np.ndarray:
        """The counts, int64 (K, K), true classes in rows."""
        num_classes = len(self.class_names)
        cells = np.bincount(self.labels * num_classes + self.predicted, minlength=num_classes**2)
        return cells.reshape(num_classes, num_classes)

    @cached_property
    def per_class(self) -> PerClass:
        """The precision, recall, F1 and number of images of each class."""
        return per_class(self.confusion)

    def worst_mistakes(self, limit: int) -> np.ndarray:
        """Return the indices of the mistakes with the highest probability, highest first, int64 (at most `limit`,)."""
        mistakes = np.flatnonzero(~self.is_correct)
        return mistakes[np.argsort(-self.probability[mistakes], kind="stable")[:limit]]


@dataclass(frozen=True)
class LabeledOutputs(Predictions):
    """Outputs of a network for images whose class is known; `predicted` has the classes with the largest logit."""

    class_names: tuple[str, ...]
    labels: np.ndarray
    logits: np.ndarray  # outputs of the network, float32 (N, K)
    probability: np.ndarray
    calibration_temperature: float = UNCALIBRATED  # the number that logits were divided by for `probability`
    groups: np.ndarray | None = None  # name of the group of each image, str (N,), in which images are not independent
    predicted: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "predicted", self.logits.argmax(axis=1))

    def metrics(self) -> dict[str, Any]:
        """Return the scores over all classes with their 95 % intervals, as plain data.

        `interval_95` is that of `acc`; of any other score it is `NAME_interval_95`. They account for groups.
        """
        num_images, num_correct = len(self.labels), int(self.is_correct.sum())
        draw_classes = None if self.groups is None else self._draw_classes
        intervals = {"acc": share_interval(self.is_correct, self.groups)}
        intervals |= macro_intervals(self.confusion, draw=draw_classes)
        scores = {"acc": num_correct / num_images, **macro_scores(self.per_class)}
        if len(self.class_names) > 5:
            in_top = is_in_top_k(self.logits, self.labels, 5)
            scores["top5_acc"], intervals["top5_acc"] = float(in_top.mean()), share_interval(in_top, self.groups)
        scores["ece"] = reliability(self.probability, self.is_correct).ece
        intervals["ece"] = ece_interval(self.probability, self.is_correct, draw=self.draws.draw)
        metrics: dict[str, Any] = {}
        for name, score in scores.items():
            metrics |= {name: score, "interval_95" if name == "acc" else f"{name}_interval_95": list(intervals[name])}
        metrics["nll"] = nll(self.logits, self.labels, self.calibration_temperature)
        metrics |= {"num_images": num_images, "num_correct": num_correct}
        return metrics | ({} if self.groups is None else {"num_groups": len(np.unique(self.groups))})

    @cached_property
    def draws(self) -> ImageDraws:
        """The draws of a bootstrap over these images."""
        return ImageDraws(self.is_correct, self.groups)

    def _draw_classes(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        drawn, labels = self.draws.draw_labels(self.labels, self.predicted, generator)
        return labels, self.predicted[drawn]


def is_in_top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Return whether each label, int (N,), is among the `top_classes` of finite logits (N, K): bool (N,)."""
    chunks = [(top_classes(logits[rows], k) == labels[rows, None]).any(axis=1) for rows in row_chunks(logits)]
    return np.concatenate(chunks)


def per_class(confusion: np.ndarray) -> PerClass:
    """Compute precision, recall and F1 of each class from counts (K, K), true classes in rows."""
    num_correct, num_predicted, num_true = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    totals = (num_predicted, num_true, (num_predicted + num_true) / 2)
    precision, recall, f1 = (num_correct / np.where(total, total, 1) for total in totals)
    return PerClass(precision, recall, f1, num_true, num_predicted)


def macro_scores(classes: PerClass) -> dict[str, float]:
    """Return the unweighted mean of precision, recall and F1 over the classes with images or predictions.

    A class that is predicted, but has no images, counts as 0, as in scikit-learn and torchmetrics. F1 is named `f1`, as
    the metric of the same definition in training.
    """
    present = (classes.num_images > 0) | (classes.num_predicted > 0)
    columns = {"macro_precision": classes.precision, "macro_recall": classes.recall, "f1": classes.f1}
    return {name: float(column[present].mean()) for name, column in columns.items()}


def most_confused(confusion: np.ndarray, limit: int) -> list[tuple[int, int, int]]:
    """Return the most frequent mistakes as (true class, predicted class, images), at most `limit` of them."""
    true, predicted = np.nonzero(confusion)
    true, predicted = true[true != predicted], predicted[true != predicted]
    counts = confusion[true, predicted]
    order = np.argsort(-counts, kind="stable")[:limit]
    return list(zip(true[order].tolist(), predicted[order].tolist(), counts[order].tolist(), strict=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (N, K), float64 (N, K): rows sum to 1, and large logits do not overflow."""
    from scipy.special import softmax as scipy_softmax  # imported here because scipy takes 0.3 s

    return scipy_softmax(logits.astype(np.float64), axis=1)


def best_probability(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the largest probability of each row of softmax(logits (N, K) / temperature), float64 (N,)."""
    return np.concatenate([softmax(logits[rows] / temperature).max(axis=1) for rows in row_chunks(logits)])


def top_classes(logits: np.ndarray, k: int) -> np.ndarray:
    """Return the `k` classes with the largest logits, largest first, int64 (N, min(k, K)); of equal ones the first."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :k]
