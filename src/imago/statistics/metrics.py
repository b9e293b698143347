"""What a classifier got right, from its logits: counts first, shares from the counts. numpy only."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from imago.statistics.bootstrap import ece_interval, macro_intervals
from imago.statistics.calibration import UNCALIBRATED, nll, reliability
from imago.statistics.interval import wilson_interval

# N images, K classes


@dataclass(frozen=True)
class PerClass:
    """One row per class; all arrays have shape (K,).

    Attributes:
        precision: share of the images called so that are so; 0 for a class that was never predicted.
        recall: share of the images of the class that were called so; 0 for a class without images.
        f1: harmonic mean of the two; 0 where both are.
        count: images of the class, int64.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    count: np.ndarray


class Answers:
    """What follows from the true classes of N images and those they were taken for, both int64 (N,)."""

    class_names: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray

    @cached_property
    def is_right(self) -> np.ndarray:
        """Whether each image was taken for what it is, bool (N,)."""
        return self.labels == self.predicted

    @cached_property
    def confusion(self) -> np.ndarray:
        """Counts (K, K), true classes in rows."""
        return confusion_matrix(self.labels, self.predicted, len(self.class_names))

    @cached_property
    def per_class(self) -> PerClass:
        """Precision, recall, F1 and the number of images of each class."""
        return per_class(self.confusion)


@dataclass(frozen=True)
class Result(Answers):
    """What a network said about images whose class is known.

    Attributes:
        class_names: K names, those of the network.
        labels: true classes, int64 (N,), by the network's own numbers.
        logits: float32 (N, K).
        confidence: probability of the predicted class, (N,).
        calibration_temperature: what logits were divided by for it.
        predicted: classes with the largest logit, int64 (N,).
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    logits: np.ndarray
    confidence: np.ndarray
    calibration_temperature: float = UNCALIBRATED
    predicted: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "predicted", top_classes(self.logits, 1)[:, 0])

    def metrics(self) -> dict[str, Any]:
        """Give the numbers that stand for all classes together, with their 95 % intervals, as plain data.

        `interval_95` is that of `acc`; of any other number it is `NAME_interval_95`.
        """
        count, num_right = len(self.labels), int(np.trace(self.confusion))
        found: dict[str, Any] = {"acc": num_right / count, "interval_95": list(wilson_interval(num_right, count))}
        if len(self.class_names) > 5:
            num_in_top = num_right_in_top(self.logits, self.labels, 5)
            found["top5_acc"] = num_in_top / count
            found["top5_acc_interval_95"] = list(wilson_interval(num_in_top, count))
        intervals = macro_intervals(self.confusion)
        for name, value in macro_scores(self.per_class).items():
            found |= {name: value, f"{name}_interval_95": list(intervals[name])}
        found["ece"] = reliability(self.confidence, self.is_right).ece
        found["ece_interval_95"] = list(ece_interval(self.confidence, self.is_right))
        found["nll"] = nll(self.logits, self.labels, self.calibration_temperature)
        return found | {"num_images": count, "num_right": num_right}


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the images of every true class (row) by the class they were taken for (column).

    Args:
        labels: true classes, int (N,), in [0, num_classes).
        predicted: likewise.
        num_classes: K.

    Returns:
        int64 (K, K).
    """
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def num_right_in_top(logits: np.ndarray, labels: np.ndarray, k: int) -> int:
    """Count the images whose class is among the `k` largest logits.

    Of equal logits the first class counts as larger, as in `argmax`: constant logits are not right everywhere.

    Args:
        logits: (N, K), finite.
        labels: int (N,).
        k: 1 counts what `argmax` gets right.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    is_earlier = np.arange(logits.shape[1]) < labels[:, None]
    num_before = ((logits > own) | ((logits == own) & is_earlier)).sum(axis=1)
    return int((num_before < k).sum())


def per_class(confusion: np.ndarray) -> PerClass:
    """Give precision, recall and F1 of every class.

    Args:
        confusion: (K, K) of `confusion_matrix`.
    """
    right, called, count = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    return PerClass(
        precision=_share(right, called),
        recall=_share(right, count),
        f1=_share(2 * right, called + count),
        count=count,
    )


def macro_scores(classes: PerClass) -> dict[str, float]:
    """Give mean precision, recall and F1 of the classes that have images: each weighs the same, whatever its size."""
    columns = {"precision": classes.precision, "recall": classes.recall, "f1": classes.f1}
    return {f"macro_{name}": float(column[classes.count > 0].mean()) for name, column in columns.items()}


def macro_f1(classes: PerClass) -> float:
    """Give the mean F1 of the classes that have images."""
    return macro_scores(classes)["macro_f1"]


def most_confused(confusion: np.ndarray, limit: int) -> list[tuple[int, int, int]]:
    """Give the most frequent mistakes as (true class, taken for, images), at most `limit` of them."""
    mistakes = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(order, mistakes.shape)
    found = [(int(row), int(column), int(mistakes[row, column])) for row, column in zip(rows, columns, strict=True)]
    return [mistake for mistake in found if mistake[2]]


def worst_mistakes(is_right: np.ndarray, confidence: np.ndarray, limit: int) -> np.ndarray:
    """Give the rows of the mistakes that the network was surest of, surest first, int64 (at most `limit`,).

    Args:
        is_right: bool (N,).
        confidence: probability of the predicted class, (N,).
        limit: of rows.
    """
    wrong = np.flatnonzero(~is_right)
    return wrong[np.argsort(-confidence[wrong], kind="stable")[:limit]]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (N, K) into probabilities, float64 (N, K): rows sum to 1, and huge logits do not overflow."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def top_classes(logits: np.ndarray, k: int) -> np.ndarray:
    """Give the `k` classes with the largest logits, best first, int64 (N, min(k, K)); the first of equal ones leads."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :k]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
