"""What a classifier got right, from its logits: counts first, shares from the counts. numpy only."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from imago.analysis.interval import wilson_interval

# N pictures, K classes


@dataclass(frozen=True)
class PerClass:
    """One row per class; all arrays have shape (K,).

    Attributes:
        precision: share of the pictures called so that are so; 0 for a class that was never predicted.
        recall: share of the pictures of the class that were called so; 0 for a class without pictures.
        f1: harmonic mean of the two; 0 where both are.
        count: pictures of the class, int64.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class Result:
    """What a network said about pictures whose class is known.

    Attributes:
        class_names: K names, those of the network.
        labels: true classes, int64 (N,), by the network's own numbers.
        logits: float32 (N, K).
        confidence: probability of the predicted class, (N,).
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    logits: np.ndarray
    confidence: np.ndarray

    @cached_property
    def predicted(self) -> np.ndarray:
        """Classes with the largest logit, int64 (N,)."""
        return top_classes(self.logits, 1)[:, 0]

    @cached_property
    def confusion(self) -> np.ndarray:
        """Counts (K, K), true classes in rows."""
        return confusion_matrix(self.labels, self.predicted, len(self.class_names))

    @cached_property
    def per_class(self) -> PerClass:
        """Precision, recall, F1 and the number of pictures of each class."""
        return per_class(self.confusion)

    def metrics(self) -> dict[str, Any]:
        """Give the numbers that stand for all classes together, as plain data."""
        count, num_right = len(self.labels), int(np.trace(self.confusion))
        top5 = {"top5_acc": num_right_in_top(self.logits, self.labels, 5) / count} if len(self.class_names) > 5 else {}
        return {
            "acc": num_right / count,
            "interval_95": list(wilson_interval(num_right, count)),
            **top5,
            "macro_f1": macro_f1(self.per_class),
            "num_images": count,
            "num_right": num_right,
        }


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pictures of every true class (row) by the class they were taken for (column).

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
    """Count the pictures whose class is among the `k` largest logits.

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


def macro_f1(classes: PerClass) -> float:
    """Give the mean F1 of the classes that have pictures: each weighs the same, however many it has."""
    return float(classes.f1[classes.count > 0].mean())


def most_confused(confusion: np.ndarray, limit: int) -> list[tuple[int, int, int]]:
    """Give the most frequent mistakes as (true class, taken for, pictures), at most `limit` of them."""
    mistakes = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(order, mistakes.shape)
    found = [(int(row), int(column), int(mistakes[row, column])) for row, column in zip(rows, columns, strict=True)]
    return [mistake for mistake in found if mistake[2]]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (N, K) into probabilities, float64 (N, K): rows sum to 1, and huge logits do not overflow."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def top_classes(logits: np.ndarray, k: int) -> np.ndarray:
    """Give the `k` classes with the largest logits, best first, int64 (N, min(k, K)); the first of equal ones leads."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :k]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
