"""Which images are train, val and test: as the source gives them, as a list says, and seeded shares of the rest."""

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

_TEST, _FOLD = 1, 3  # tell what `split_seed` is used for: test, val and folds are drawn independently


@dataclass(frozen=True)
class SplitPlan:
    """How to come by the splits that a source does not have; the test split is drawn first and never depends on val.

    Attributes:
        val_fraction: share of all training images that becomes val, in (0, 1).
        test_fraction: likewise for test; the two together stay below 1. None where the source has a test split.
        val_as_test: take the source's val for the test, as published sets without a test are compared by it.
        split_seed: decides which images are split off.
        fold: which part of a cross-validation is val, in 0 .. num_folds - 1; None draws `val_fraction` once.
        num_folds: parts of the cross-validation.
        split_file: CSV of `listing.csv_list` that says which image belongs where; "" where there is none.
            The source's own test images stay test images.

    Raises:
        ConfigError: if two settings cannot work together.
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
                f"data.fold={self.fold} must lie in 0 .. {self.num_folds - 1} (data.num_folds={self.num_folds}); "
                f"a whole cross-validation is -m 'data.fold=range({self.num_folds})'."
            )


def complete_splits(
    found: Mapping[str, Samples], plan: SplitPlan, class_names: Sequence[str], left_out: Iterable[str] = ()
) -> tuple[dict[str, Samples], list[str]]:
    """Split off what the source does not have.

    Args:
        found: images by split; always with "train".
        plan: the settings.
        class_names: the place of a name is its label.
        left_out: names of bad images, which a list may hold all the same.

    Returns:
        train, val and test, and the names of those that were drawn here.

    Raises:
        UserError: if a split file does not fit, or there are too few images.
    """
    parts = dict(found)
    if plan.split_file:
        parts = _as_listed(parts, plan.split_file, class_names, set(left_out))
    if plan.val_as_test:
        _take_val_as_test(parts)
    drawn = [split for split in ("test", "val") if split not in parts]
    if plan.fold is not None:
        drawn = [*drawn[: drawn.count("test")], "val"]
    pooled = ("train", "val") if plan.fold is not None else ("train",)
    total, left = sum(len(parts[split]) for split in pooled if split in parts), 1.0
    for split in drawn:
        if split == "val" and plan.fold is not None:
            _take_fold(parts, plan, class_names)
        else:
            fraction = _fraction(split, plan)
            _split_off(split, parts, fraction / left, _seed(split, plan))
            left -= fraction
    if drawn:
        _say(total, {split: len(parts[split]) for split in drawn}, plan)
    return {split: parts[split] for split in ("train", "val", "test")}, drawn


def check_splits(parts: Mapping[str, Samples], class_names: Sequence[str], plan: SplitPlan) -> None:
    """Refuse splits that would train or score nonsense.

    Raises:
        DataError: as `check_labels`, and for a class that has no training images.
    """
    for name, part in parts.items():
        check_labels(name, part.labels, class_names)
    lacking = set(range(len(class_names))) - set(parts["train"].labels.tolist())
    if lacking:
        source = f"data.split_file={plan.split_file}" if plan.split_file else "the data set"
        raise DataError(
            f"{source} leaves class {class_names[min(lacking)]!r} without training images; a class that is never "
            "trained on cannot be tested."
        )


def check_labels(split: str, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Refuse a split that would train or score nonsense.

    Raises:
        DataError: no images, fewer than two classes, or a label that names no class.
    """
    if len(class_names) < 2:
        raise DataError(f"the data set has the classes {list(class_names)}; a classifier needs at least 2.")
    if not len(labels):
        raise DataError(f"the {split} split has no images.")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise DataError(
            f"the {split} split has labels from {labels.min()} to {labels.max()}; "
            f"with {len(class_names)} classes they must lie in 0 .. {len(class_names) - 1}."
        )


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Set the same share of every class aside.

    Args:
        labels: int64 (N,).
        fraction: share to set aside, in (0, 1); rounded per class, at least 1 image and never all of them.
        seed: decides which; the same seed always gives the same split.

    Returns:
        Sorted indices of those kept and those set aside, int64.
    """
    aside = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        aside.append(members[random_permutation(len(members), seed, int(label))[:count]])
    chosen = np.sort(np.concatenate(aside))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def stratified_folds(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Deal the images of every class out to folds in turn; folds differ by at most one image in each class.

    Args:
        labels: int64 (N,).
        num_folds: how many there are.
        seed: decides who goes where.

    Returns:
        The fold of each image, int64 (N,).
    """
    folds = np.empty(len(labels), np.int64)
    dealt = 0  # going on where the last class stopped keeps the sizes of the folds alike, too
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = random_permutation(len(members), seed, _FOLD, int(label))
        folds[members[order]] = (dealt + np.arange(len(members))) % num_folds
        dealt += len(members)
    return folds


def _as_listed(
    found: Mapping[str, Samples], split_file: str, class_names: Sequence[str], left_out: set[str]
) -> dict[str, Samples]:
    rows = [row for row in read_list(Path(split_file).expanduser()) if row.name not in left_out]
    own_test = set(found["test"].names) if "test" in found else set()
    misused = next((row for row in rows if row.split != "test" and row.name in own_test), None)
    if misused:
        raise DataError(
            f"{misused.location}: {misused.name} is a test image of the data set and cannot be {misused.split}; what "
            "is tested on is never trained on or chosen by."
        )
    parts = dict(assign_splits(found, rows, class_names))
    if "test" in found:  # a list of train and val alone does not take the source's own test split away
        parts.setdefault("test", found["test"])
    return parts


def _take_val_as_test(parts: dict[str, Samples]) -> None:
    if "val" not in parts or "test" in parts:
        fault = "there is a test split" if "test" in parts else "there is no val split"
        raise ConfigError(f"data.val_as_test=true: {fault} in this data set; leave the setting out.")
    parts["test"] = parts.pop("val")


def _take_fold(parts: dict[str, Samples], plan: SplitPlan, class_names: Sequence[str]) -> None:
    """Cross-validate over all images that may be trained on: train and the source's own val, if it has one."""
    pool = concatenate([parts["train"], parts["val"]]) if "val" in parts else parts["train"]
    is_val = stratified_folds(pool.labels, plan.num_folds, plan.split_seed) == plan.fold
    lost = set(np.unique(pool.labels)) - set(np.unique(pool.labels[~is_val]))
    if lost:
        raise DataError(
            f"data.fold={plan.fold}: class {class_names[min(lost)]!r} has a single training image, and this fold "
            "leaves none to train on; add images or drop the class."
        )
    parts["train"], parts["val"] = pool.take(np.flatnonzero(~is_val)), pool.take(np.flatnonzero(is_val))


def _split_off(split: str, parts: dict[str, Samples], fraction: float, seed: int) -> None:
    train = parts["train"]
    kept, aside = stratified_split(train.labels, fraction, seed)
    if not len(aside):
        raise DataError(f"{len(train)} training images are too few to split {split} off; add images of each class.")
    parts["train"], parts[split] = train.take(kept), train.take(aside)


def _fraction(split: str, plan: SplitPlan) -> float:
    fraction = plan.val_fraction if split == "val" else plan.test_fraction
    if not fraction:
        raise ConfigError(f"this data set has no {split} split; give a share to split off: data.{split}_fraction=0.1.")
    return fraction


def _seed(split: str, plan: SplitPlan) -> int:
    return plan.split_seed if split == "val" else derive_seed(plan.split_seed, _TEST)


def _say(total: int, counts: Mapping[str, int], plan: SplitPlan) -> None:
    fold = f" (fold {plan.fold} of {plan.num_folds})" if plan.fold is not None else ""
    shares = " and ".join(f"{count:,} for {split}{fold if split == 'val' else ''}" for split, count in counts.items())
    hint = "; data.val_as_test=true tests on val instead" if list(counts) == ["test"] else ""
    log.info("split off the %s training images, stratified: %s%s", f"{total:,}", shares, hint)
