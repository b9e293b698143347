"""Complete the train, val and test splits of a dataset: as published, as listed in a CSV, or drawn by a seed."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imago.data.csv_list import assign_splits, read_list
from imago.data.dataset import Samples, concatenate
from imago.errors import ConfigError, DataError
from imago.seeding import derive_seed, random_permutation

log = logging.getLogger(__name__)

_TEST, _FOLD = 1, 3  # keys that make the draws of test, val and folds from one `split_seed` independent


@dataclass(frozen=True)
class SplitPlan:
    """Settings for the splits that are not published; test is drawn first and does not depend on val.

    Attributes:
        val_fraction: share of all training images that becomes val, in (0, 1).
        test_fraction: share that becomes test; the sum of both is below 1. None if the dataset has a test split.
        val_as_test: use the published val as test, which is how datasets without a published test are compared.
        split_seed: determines which images are split off.
        fold: index of the cross-validation part that is val, in 0 .. num_folds - 1; None draws `val_fraction` once.
        num_folds: number of parts of the cross-validation.
        split_file: CSV of `imago.data.csv_list` with the split of each image; "" for none. Published test images stay
            test images.

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

    def __post_init__(self) -> None:
        fractions = [self.val_fraction] + ([] if self.test_fraction is None else [self.test_fraction])
        if min(fractions) <= 0 or sum(fractions) >= 1:
            raise ConfigError(
                f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction} must be greater "
                "than 0 and together less than 1, e.g. 0.2 and 0.1."
            )
        if self.num_folds < 2:
            raise ConfigError(f"data.num_folds={self.num_folds} must be 2 or more.")
        if self.fold is not None and not 0 <= self.fold < self.num_folds:
            raise ConfigError(
                f"data.fold={self.fold} must be in 0 .. {self.num_folds - 1} (data.num_folds={self.num_folds}); "
                f"a whole cross-validation is -m 'data.fold=range({self.num_folds})'."
            )


def complete_splits(
    found: Mapping[str, Samples], plan: SplitPlan, class_names: Sequence[str], left_out: Iterable[str] = ()
) -> tuple[dict[str, Samples], list[str]]:
    """Draw the splits that the dataset does not have.

    Args:
        found: samples by split; always with "train".
        plan: the settings.
        class_names: name of each label.
        left_out: names of unreadable images, which `plan.split_file` may still list.

    Returns:
        Samples of train, val and test, and the names of the splits that were drawn.

    Raises:
        UserError: if a split file does not match the dataset, or there are too few images.
    """
    parts = dict(found)
    if plan.split_file:
        parts = _as_listed(parts, plan.split_file, class_names, set(left_out))
    if plan.val_as_test:
        _use_val_as_test(parts)
    drawn = [split for split in ("test", "val") if split not in parts]
    num_pooled = len(parts["train"])
    if plan.fold is not None:
        num_pooled += len(parts.get("val", ()))
        drawn = [split for split in drawn if split == "test"] + ["val"]
    remaining = 1.0
    for split in drawn:
        if split == "val" and plan.fold is not None:
            _take_fold(parts, plan, class_names)
        else:
            remaining -= _split_off(split, parts, plan, remaining)
    if drawn:
        _log_drawn(num_pooled, {split: len(parts[split]) for split in drawn}, plan)
    return {split: parts[split] for split in ("train", "val", "test")}, drawn


def check_splits(parts: Mapping[str, Samples], class_names: Sequence[str], plan: SplitPlan) -> None:
    """Check that the splits can be trained on and tested.

    Raises:
        DataError: if there are less than two classes, a split has no images or an invalid label, or a class has no
            training images.
    """
    if len(class_names) < 2:
        raise DataError(f"the data set has the classes {list(class_names)}; a classifier needs at least 2.")
    for split, part in parts.items():
        if not len(part):
            raise DataError(f"the {split} split has no images.")
        low, high = part.labels.min(), part.labels.max()
        if low < 0 or high >= len(class_names):
            raise DataError(
                f"the {split} split has labels from {low} to {high}; "
                f"with {len(class_names)} classes they must be in 0 .. {len(class_names) - 1}."
            )
    missing = set(range(len(class_names))) - set(parts["train"].labels.tolist())
    if missing:
        source = f"data.split_file={plan.split_file}" if plan.split_file else "the data set"
        raise DataError(
            f"{source} leaves class {class_names[min(missing)]!r} without training images; a class that is never "
            "trained on cannot be tested."
        )


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off the same share of every class.

    Args:
        labels: int64 (N,).
        fraction: share to split off, in (0, 1); rounded per class, at least 1 image and never all of them.
        seed: determines which images.

    Returns:
        Sorted indices of the remaining images and of those split off, int64.
    """
    parts = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        parts.append(members[random_permutation(len(members), seed, int(label))[:count]])
    chosen = np.sort(np.concatenate(parts))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def stratified_folds(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Distribute the images of every class over folds in turn; folds differ by at most one image per class.

    Args:
        labels: int64 (N,).
        num_folds: number of folds.
        seed: determines the fold of each image.

    Returns:
        Fold of each image, int64 (N,).
    """
    folds = np.empty(len(labels), np.int64)
    num_done = 0  # continuing with the fold after the last one makes the folds of equal size, too
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = random_permutation(len(members), seed, _FOLD, int(label))
        folds[members[order]] = (num_done + np.arange(len(members))) % num_folds
        num_done += len(members)
    return folds


def _as_listed(
    found: Mapping[str, Samples], split_file: str, class_names: Sequence[str], left_out: set[str]
) -> dict[str, Samples]:
    rows = [row for row in read_list(Path(split_file).expanduser()) if row.name not in left_out]
    published_test = set(found["test"].names) if "test" in found else set()
    misused = next((row for row in rows if row.split != "test" and row.name in published_test), None)
    if misused:
        raise DataError(
            f"{misused.location}: {misused.name} is a test image of the data set and cannot be {misused.split}; the "
            "test split is never used for training or validation."
        )
    parts = dict(assign_splits(found, rows, class_names))
    if "test" in found:  # a list with only train and val keeps the published test split
        parts.setdefault("test", found["test"])
    return parts


def _use_val_as_test(parts: dict[str, Samples]) -> None:
    if "val" not in parts or "test" in parts:
        fault = "there is a test split" if "test" in parts else "there is no val split"
        raise ConfigError(f"data.val_as_test=true: {fault} in this data set; leave the setting out.")
    parts["test"] = parts.pop("val")


def _take_fold(parts: dict[str, Samples], plan: SplitPlan, class_names: Sequence[str]) -> None:
    """Make fold `plan.fold` of train and published val the val split, and the other folds train."""
    pool = concatenate([parts["train"], parts["val"]]) if "val" in parts else parts["train"]
    is_val = stratified_folds(pool.labels, plan.num_folds, plan.split_seed) == plan.fold
    lost = set(np.unique(pool.labels)) - set(np.unique(pool.labels[~is_val]))
    if lost:
        raise DataError(
            f"data.fold={plan.fold}: class {class_names[min(lost)]!r} has a single training image, and this fold "
            "leaves none to train on; add images or drop the class."
        )
    parts["train"], parts["val"] = pool.take(np.flatnonzero(~is_val)), pool.take(np.flatnonzero(is_val))


def _split_off(split: str, parts: dict[str, Samples], plan: SplitPlan, remaining: float) -> float:
    """Draw val or test from train, of which the share `remaining` is left; return the share that was drawn."""
    fraction = plan.val_fraction if split == "val" else plan.test_fraction
    if not fraction:
        raise ConfigError(f"this data set has no {split} split; set the share to split off: data.{split}_fraction=0.1.")
    seed = plan.split_seed if split == "val" else derive_seed(plan.split_seed, _TEST)
    train = parts["train"]
    kept, chosen = stratified_split(train.labels, fraction / remaining, seed)
    if not len(chosen):
        raise DataError(f"{len(train)} training images are too few to split {split} off; add images of each class.")
    parts["train"], parts[split] = train.take(kept), train.take(chosen)
    return fraction


def _log_drawn(total: int, counts: Mapping[str, int], plan: SplitPlan) -> None:
    fold = f" (fold {plan.fold} of {plan.num_folds})" if plan.fold is not None else ""
    shares = " and ".join(f"{count:,} for {split}{fold if split == 'val' else ''}" for split, count in counts.items())
    hint = "; data.val_as_test=true tests on val instead" if list(counts) == ["test"] else ""
    log.info("split off the %s training images, stratified: %s%s", f"{total:,}", shares, hint)
