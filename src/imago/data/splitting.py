"""Complete the train, val and test splits of a dataset: as published, as listed in a CSV, or split off at random."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imago.data.csv_list import assign_splits, read_list
from imago.data.dataset import Samples, concatenate
from imago.errors import ConfigError, DataError
from imago.images import SPLITS
from imago.seeding import FOLD_KEY, PART_KEY, TEST_KEY, TRAIN_FRACTION_KEY, derive_seed, random_permutation
from imago.text import join_names

log = logging.getLogger(__name__)

_SHARE_TOLERANCE = 0.2  # of a share that was split off, relative to the one asked for; our own choice


@dataclass(frozen=True)
class SplitPlan:
    """Settings for the splits that are not published; test is drawn first and does not depend on val.

    Attributes:
        val_fraction: share of all training images that becomes val, in (0, 1).
        test_fraction: share that becomes test; the sum of both is below 1. None if the dataset has a test split.
        val_as_test: use the published val as test, which is how datasets without a published test are compared.
        split_seed: determines which images are split off.
        fold: index of the cross-validation fold that is val, in 0 .. num_folds - 1; None draws `val_fraction` once.
        num_folds: number of folds of the cross-validation, at least 2.
        split_file: CSV of `imago.data.csv_list` with the split of each image; "" for none. Published test images stay
            test images.
        train_fraction: share of the train split to train on, in (0, 1]; see `training_part`.

    Raises:
        ConfigError: if settings contradict each other.
    """

    val_fraction: float = 0.1
    test_fraction: float | None = None
    val_as_test: bool = False
    split_seed: int = 0
    fold: int | None = None
    num_folds: int = 5
    split_file: str = ""
    train_fraction: float = 1.0

    def __post_init__(self) -> None:
        fractions = [self.val_fraction] + ([] if self.test_fraction is None else [self.test_fraction])
        if min(fractions) <= 0 or sum(fractions) >= 1:
            raise ConfigError(
                f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction} must be greater "
                "than 0 and together less than 1, e.g. 0.2 and 0.1."
            )
        if not 0 < self.train_fraction <= 1:
            raise ConfigError(f"data.train_fraction={self.train_fraction} must be above 0 and at most 1, e.g. 0.1.")
        if self.num_folds < 2:
            raise ConfigError(f"data.num_folds={self.num_folds} must be 2 or more.")
        if self.fold is not None and not 0 <= self.fold < self.num_folds:
            raise ConfigError(
                f"data.fold={self.fold} must be in 0 .. {self.num_folds - 1} (data.num_folds={self.num_folds}); "
                f"a whole cross-validation is -m 'data.fold=range({self.num_folds})'."
            )


def complete_splits(
    published: Mapping[str, Samples],
    plan: SplitPlan,
    class_names: Sequence[str],
    left_out: Iterable[str] = (),
    only: str | None = None,
) -> tuple[dict[str, Samples], list[str]]:
    """Check the published splits of a dataset, and split missing ones off the training images.

    `left_out` has the names of unreadable images, which `plan.split_file` may still list. If `only` is "all" or one of
    the splits that there are, none is drawn: those that are missing are empty.

    Returns:
        Samples of train, val and test, and the names of the splits that were drawn.

    Raises:
        UserError: if a split file does not match the dataset, or there are too few images or classes for the splits.
    """
    splits = _assign_splits(published, plan, class_names, left_out)
    _check(splits, class_names)
    if only in ("all", *splits):
        no_images = next(iter(splits.values())).take(np.empty(0, np.int64))
        return {split: splits.get(split, no_images) for split in SPLITS}, []
    _check_training(splits, class_names, f"data.split_file={plan.split_file}" if plan.split_file else "the dataset")
    random_splits = [split for split in ("test", "val") if split not in splits]
    num_drawn_from = len(splits["train"])
    if plan.fold is not None and "val" in splits:
        random_splits.append("val")
        num_drawn_from += len(splits["val"])
    remaining = 1.0  # share of the training images
    for split in random_splits:
        if split == "val" and plan.fold is not None:
            _take_fold(splits, plan, class_names)
        else:
            remaining -= _split_off(split, splits, plan, remaining)
    if random_splits:
        counts = " and ".join(
            f"{len(splits[split]):,} for {split}{_share_text(split, len(splits[split]) / num_drawn_from, plan)}"
            for split in random_splits
        )
        fold = "" if plan.fold is None else f" (fold {plan.fold} of {plan.num_folds})"
        hint = "; data.val_as_test=true tests on val instead" if random_splits == ["test"] else ""
        log.info("split off the %s training images, stratified: %s%s%s", f"{num_drawn_from:,}", counts, fold, hint)
    _warn_about_missing_classes(splits, class_names)
    return {split: splits[split] for split in SPLITS}, random_splits


def _warn_about_missing_classes(splits: Mapping[str, Samples], class_names: Sequence[str]) -> None:
    for split in ("val", "test"):
        if missing := np.setdiff1d(np.arange(len(class_names)), splits[split].labels).tolist():
            names = join_names([class_names[label] for label in missing], 3)
            log.warning("%s has no images of %s, so it does not measure their recall", split, names)


def _share_text(split: str, share: float, plan: SplitPlan) -> str:
    """Return the share that was split off and the reason, if it is not about the one that was asked for."""
    key = f"{split}_fraction"
    asked: float = getattr(plan, key)
    if (split == "val" and plan.fold is not None) or abs(share / asked - 1) <= _SHARE_TOLERANCE:
        return ""
    return f" ({share:.0%}, not data.{key}={asked}: rounded for each class, to at least one image)"


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


def training_part(train: Samples, plan: SplitPlan) -> Samples:
    """Return the share `plan.train_fraction` of the images of each class, at least one; a larger share contains it."""
    if plan.train_fraction == 1:
        return train
    of_classes = _shuffled_by_class(train.labels, plan.split_seed, TRAIN_FRACTION_KEY)
    parts = [indices[: max(1, round(plan.train_fraction * len(indices)))] for indices in of_classes]
    return train.take(np.sort(np.concatenate(parts)))


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


def _assign_splits(
    published: Mapping[str, Samples], plan: SplitPlan, class_names: Sequence[str], left_out: Iterable[str]
) -> dict[str, Samples]:
    """Return the splits as published, or as `plan.split_file` and `plan.val_as_test` assign them."""
    splits = dict(published)
    if plan.split_file:
        splits = _assign_listed_splits(published, plan.split_file, class_names, set(left_out))
    if plan.val_as_test:
        if "val" not in splits or "test" in splits:
            problem = "there is a test split" if "test" in splits else "there is no val split"
            raise ConfigError(f"data.val_as_test=true: {problem} in this dataset; leave the setting out.")
        splits["test"] = splits.pop("val")
    return splits


def _assign_listed_splits(
    published: Mapping[str, Samples], split_file: str, class_names: Sequence[str], left_out: set[str]
) -> dict[str, Samples]:
    """Assign images to splits as `split_file` lists them; refuse published test images listed as train or val."""
    rows = [row for row in read_list(Path(split_file).expanduser()) if row.name not in left_out]
    test_names = set(published["test"].names) if "test" in published else set()
    misused = next((row for row in rows if row.split != "test" and row.name in test_names), None)
    if misused:
        raise DataError(
            f"{misused.location}: {misused.name} is a test image of the dataset and cannot be {misused.split}; the "
            "test split is never used for training or validation."
        )
    splits = dict(assign_splits(published, rows, class_names))
    if "test" in published:  # a list with only train and val keeps the published test split
        splits.setdefault("test", published["test"])
    return splits


def _take_fold(splits: dict[str, Samples], plan: SplitPlan, class_names: Sequence[str]) -> None:
    """Make fold `plan.fold` of train and published val the val split, and the other folds train."""
    pool = concatenate([splits[split] for split in ("train", "val") if split in splits])
    is_val = stratified_folds(pool.labels, plan.num_folds, plan.split_seed) == plan.fold
    if not is_val.any():
        fault = f"{len(pool)} training images are too few for {plan.num_folds} folds"
        raise DataError(f"data.fold={plan.fold}: {fault}; use a lower data.num_folds.")
    missing_labels = set(pool.labels) - set(pool.labels[~is_val])
    if missing_labels:
        raise DataError(
            f"data.fold={plan.fold}: class {class_names[min(missing_labels)]!r} has a single training image, and this "
            "fold leaves none to train on; add images or drop the class."
        )
    splits["train"], splits["val"] = pool.take(np.flatnonzero(~is_val)), pool.take(np.flatnonzero(is_val))


def _split_off(split: str, splits: dict[str, Samples], plan: SplitPlan, remaining: float) -> float:
    """Split val or test off train, of which the share `remaining` is left; return the share split off."""
    fraction = plan.val_fraction if split == "val" else plan.test_fraction
    if not fraction:
        raise ConfigError(f"this dataset has no {split} split; set the share to split off: data.{split}_fraction=0.1.")
    seed = plan.split_seed if split == "val" else derive_seed(plan.split_seed, TEST_KEY)
    train = splits["train"]
    kept, split_off = stratified_split(train.labels, fraction / remaining, seed)
    if not len(split_off):
        raise DataError(
            f"{len(train)} training images are too few to split {split} off; add images of each class, or evaluate all "
            "of them with split=all."
        )
    splits["train"], splits[split] = train.take(kept), train.take(split_off)
    return fraction


def _check(splits: Mapping[str, Samples], class_names: Sequence[str]) -> None:
    """Check number of classes, images and labels, before missing splits are split off train."""
    if len(class_names) < 2:
        raise DataError(f"the dataset has the classes {list(class_names)}; a classifier needs at least 2.")
    for split, samples in splits.items():
        if not len(samples):
            remedy = "add some" if split == "train" else "add some, or remove it so that it is drawn from train"
            raise DataError(f"the {split} split has no images; {remedy}.")
        low, high = samples.labels.min(), samples.labels.max()
        if low < 0 or high >= len(class_names):
            wanted = f"with {len(class_names)} classes they must be in 0 .. {len(class_names) - 1}"
            fault = f"the {split} split has labels from {low} to {high}"
            raise DataError(f"{fault}; {wanted}; correct the labels or the class names.")


def _check_training(splits: Mapping[str, Samples], class_names: Sequence[str], source: str) -> None:
    """Check that there are training images, of each class."""
    if "train" not in splits:
        names = " and ".join(splits)
        raise DataError(f"{source} has no images of train, only of {names}; assign some, or evaluate split={names}.")
    if missing := set(range(len(class_names))) - set(splits["train"].labels.tolist()):
        raise DataError(
            f"{source} has no training images of class {class_names[min(missing)]!r} that can be read; add some or "
            "remove the class."
        )
