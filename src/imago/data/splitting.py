"""Complete the train, val and test splits of a dataset: as published, as listed in a CSV, or split off at random."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from imago.data.csv_list import assign_splits, read_list, rows_by_dataset_name
from imago.data.dataset import Samples, concatenate
from imago.data.groups import check_groups, distribute_groups, shared_groups
from imago.data.stratified import stratified_folds, stratified_part, stratified_split
from imago.errors import ConfigError, DataError
from imago.images import SPLITS
from imago.seeding import TEST_KEY, derive_seed
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
        group_by: column of the CSV list with the group of each image; no two splits share one. "" for none.
        group_pattern: the same by a regular expression that is searched in the file names.

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
    group_by: str = ""
    group_pattern: str = ""

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
        if self.group_by and self.group_pattern:
            raise ConfigError(f"data.group_by={self.group_by} and data.group_pattern= both define groups; use one.")
        try:
            re.compile(self.group_pattern or "")
        except re.error as error:
            reason = f"data.group_pattern={self.group_pattern} is not a regular expression: {error}"
            raise ConfigError(f"{reason}; e.g. data.group_pattern='(.+)_' takes what is before the last _.") from error

    @property
    def grouping(self) -> str:
        """The setting that defines groups, as typed; "" without one."""
        column = f"data.group_by={self.group_by}" if self.group_by else ""
        return f"data.group_pattern={self.group_pattern}" if self.group_pattern else column


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
            _take_fold(splits, plan, class_names, published)
        else:
            remaining -= _split_off(split, splits, plan, remaining, class_names)
    if random_splits:
        _log_drawn({split: len(splits[split]) for split in random_splits}, num_drawn_from, plan)
    _warn_about_splits(splits, class_names, plan.grouping)
    return {split: splits[split] for split in SPLITS}, random_splits


def _log_drawn(sizes: Mapping[str, int], num_drawn_from: int, plan: SplitPlan) -> None:
    counts = " and ".join(
        f"{size:,} for {split}{_share_text(split, size / num_drawn_from, plan)}" for split, size in sizes.items()
    )
    fold = "" if plan.fold is None else f" (fold {plan.fold} of {plan.num_folds})"
    hint = "; data.val_as_test=true tests on val instead" if [*sizes] == ["test"] else ""
    groups = f", whole groups of {plan.grouping}" if plan.grouping else ""
    drawn_from = f"{num_drawn_from:,}"
    log.info("split off the %s training images, stratified%s: %s%s%s", drawn_from, groups, counts, fold, hint)


def _warn_about_splits(splits: Mapping[str, Samples], class_names: Sequence[str], grouping: str) -> None:
    groups = {split: samples.groups for split, samples in splits.items() if samples.groups is not None}
    for (split, _), text in shared_groups(groups, grouping).items():
        log.warning("%s, so the result of %s is too good; check.py lists them", text, split)
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
    reason = "groups are whole" if plan.grouping else "rounded for each class, to at least one image"
    return f" ({share:.0%}, not data.{key}={asked}: {reason})"


def training_part(train: Samples, plan: SplitPlan) -> Samples:
    """Return the share `plan.train_fraction` of the images of each class, at least one; a larger share contains it."""
    if plan.train_fraction == 1:
        return train
    return train.take(stratified_part(train.labels, plan.train_fraction, plan.split_seed))


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
    rows = read_list(Path(split_file).expanduser())
    if root := getattr(published[next(iter(published))], "root", None):
        rows = rows_by_dataset_name(rows, root, chain(left_out, *(samples.names for samples in published.values())))
    if not (rows := [row for row in rows if row.name not in left_out]):
        raise DataError(f"data.split_file={split_file}: none of its images can be read; see the warnings above.")
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


def _take_fold(
    splits: dict[str, Samples], plan: SplitPlan, class_names: Sequence[str], published: Mapping[str, Samples]
) -> None:
    """Make fold `plan.fold` of train and published val the val split, and the other folds train."""
    pool = concatenate([splits[split] for split in ("train", "val") if split in splits])
    if plan.split_file:  # in the order of the dataset, in which the split.csv of the run will be read
        names = chain.from_iterable(samples.names for samples in published.values())
        places = {name: place for place, name in enumerate(names)}
        pool = pool.take(np.argsort([places[name] for name in pool.names]))
    if pool.groups is None:
        folds = stratified_folds(pool.labels, plan.num_folds, plan.split_seed)
    else:
        check_groups(pool.groups, f"data.num_folds={plan.num_folds}", plan.grouping, plan.num_folds)
        folds = distribute_groups(pool.labels, pool.groups, [1 / plan.num_folds] * plan.num_folds, plan.split_seed)
    is_val = folds == plan.fold
    if not is_val.any():
        fault = f"{len(pool)} training images are too few for {plan.num_folds} folds"
        raise DataError(f"data.fold={plan.fold}: {fault}; use a lower data.num_folds.")
    _check_classes_left(pool, ~is_val, class_names, f"data.fold={plan.fold}")
    splits["train"], splits["val"] = pool.take(np.flatnonzero(~is_val)), pool.take(np.flatnonzero(is_val))


def _check_classes_left(samples: Samples, is_left: np.ndarray, class_names: Sequence[str], setting: str) -> None:
    """Check that each class keeps an image to train on, given which are left, bool (N,)."""
    if missing_labels := set(samples.labels.tolist()) - set(samples.labels[is_left].tolist()):
        reason = "has a single training image" if samples.groups is None else "is only in groups that are split off"
        raise DataError(
            f"{setting}: class {class_names[min(missing_labels)]!r} {reason}, and none is left to train on; add images "
            "or drop the class."
        )


def _split_off(
    split: str, splits: dict[str, Samples], plan: SplitPlan, remaining: float, class_names: Sequence[str]
) -> float:
    """Split val or test off train, of which the share `remaining` is left; return the share split off."""
    fraction = plan.val_fraction if split == "val" else plan.test_fraction
    if not fraction:
        raise ConfigError(f"this dataset has no {split} split; set the share to split off: data.{split}_fraction=0.1.")
    seed = plan.split_seed if split == "val" else derive_seed(plan.split_seed, TEST_KEY)
    train = splits["train"]
    share = fraction / remaining
    if train.groups is None:
        kept, split_off = stratified_split(train.labels, share, seed)
    else:
        check_groups(train.groups, f"data.{split}_fraction={fraction}", plan.grouping, 2)
        parts = distribute_groups(train.labels, train.groups, [1 - share, share], seed)
        _check_classes_left(train, parts == 0, class_names, f"data.{split}_fraction={fraction}")
        kept, split_off = np.flatnonzero(parts == 0), np.flatnonzero(parts == 1)
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
