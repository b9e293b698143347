"""Split, distribute and order images so that every part has the classes in their shares."""

import numpy as np

from imago.seeding import FOLD_KEY, PART_KEY, TRAIN_FRACTION_KEY, random_permutation


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off the same share of every class, rounded per class: at least 1 image and never all of them.

    Return the sorted indices of the remaining images and of those split off, int64, given the labels, int64 (N,).
    """
    chosen_by_class = [
        class_indices[: min(max(1, round(fraction * len(class_indices))), len(class_indices) - 1)]
        for class_indices in _shuffled_by_class(labels, seed)
    ]
    chosen = np.sort(np.concatenate(chosen_by_class))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def stratified_part(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return the sorted indices, int64, of a share of each class, at least one image; a larger share contains it."""
    of_classes = _shuffled_by_class(labels, seed, TRAIN_FRACTION_KEY)
    return np.sort(np.concatenate([indices[: max(1, round(fraction * len(indices)))] for indices in of_classes]))


def stratified_folds(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Distribute the images of each class evenly over folds, which differ by at most one image per class.

    Return the fold of each image, int64 (N,), given the labels, int64 (N,).
    """
    folds = np.empty(len(labels), np.int64)
    # Each class continues with the fold after the last one, so that the folds are of equal size, too.
    folds[np.concatenate(_shuffled_by_class(labels, seed, FOLD_KEY))] = np.arange(len(labels)) % num_folds
    return folds


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the indices, int64 (N,), in a random order whose every beginning has the classes in their shares.

    In each class, the images are at evenly spaced positions between 0 and 1. `labels` are int64 (N,).
    """
    positions = np.empty(len(labels))
    for indices in _shuffled_by_class(labels, seed, PART_KEY):
        positions[indices] = (np.arange(len(indices)) + 0.5) / len(indices)
    return np.lexsort((random_permutation(len(labels), seed, PART_KEY), positions))


def _shuffled_by_class(labels: np.ndarray, *key: int) -> list[np.ndarray]:
    """Return the indices of each class in a random order, int64 (M,) each."""
    indices_by_class = [(int(label), np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return [indices[random_permutation(len(indices), *key, label)] for label, indices in indices_by_class]


def evenly_spread(num_all: int, limit: int) -> np.ndarray:
    """Return at most `limit` indices in 0 .. `num_all` - 1, evenly spread, int64."""
    num_taken = min(limit, num_all)
    return np.arange(num_taken) * num_all // max(1, num_taken)
