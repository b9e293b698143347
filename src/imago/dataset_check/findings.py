"""List problems of a dataset that a user should know before training, each with a remedy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imago.data.groups import shared_groups
from imago.dataset_check.checked_dataset import CheckedDataset
from imago.images import SPLITS
from imago.statistics.metrics import MIN_IMBALANCE_RATIO
from imago.text import counted, join_names

FEW_TEST_IMAGES = 100  # the 95 % interval of an accuracy is then up to 19 points wide (Wilson 1927)
# Share of the images with a near duplicate of their class above which they may come in groups: 2 % in CIFAR-10, which
# has none; our own choice.
_MIN_RELATED = 0.1
_KIND_NOTES = {
    "animated": "only the first frame is used",
    "16-bit": "16-bit values are scaled to 8 bits",
    "transparent": "transparent pixels are composited on white",
}


@dataclass(frozen=True)
class Finding:
    """One property of a dataset that a user should know before training."""

    kind: str  # short name, as in check.json
    text: str  # the problem with its counts, e.g. "3 of 100 images cannot be read"
    remedy: str  # the file to look at and the setting that helps
    is_serious: bool = False  # whether it must be decided before the results of a run can be trusted


def list_findings(checked: CheckedDataset, num_ignored: int, num_left_out: int) -> list[Finding]:
    """List the findings, those about bad images and leaks first.

    `num_ignored` files and folders belong to no split or class; data.on_bad_image=skip left `num_left_out` images out.
    """
    return [
        *_bad_images(checked, num_left_out),
        *_leaks(checked),
        *_groups(checked),
        *_repeats(checked),
        *_class_counts(checked.counts, checked.class_names),
        *_unusual_files(checked, num_ignored),
    ]


def _bad_images(checked: CheckedDataset, num_left_out: int) -> Iterator[Finding]:
    if len(checked.bad_indices):
        names = join_names(checked.names[index] for index in checked.bad_indices)
        text = f"{len(checked.bad_indices):,} of {len(checked):,} images cannot be read: {names}"
        remedy = "see bad_images.csv; delete them or copy them again, or leave them out with data.on_bad_image=skip"
        yield Finding("bad images", text, remedy, is_serious=True)
    if num_left_out:
        images = counted(num_left_out, "image that cannot be read is", "images that cannot be read are")
        text = f"{images} left out because of data.on_bad_image=skip"
        yield Finding("left out", text, "see bad_images.csv")


def _leaks(checked: CheckedDataset) -> Iterator[Finding]:
    for split, into in (("test", "train"), ("test", "val"), ("val", "train")):
        if num_leaked := len(checked.leaked(split, into)):
            num_images = checked.counts[:, SPLITS.index(split)].sum()
            images = counted(num_images, f"{split} image") + (" has" if num_leaked == 1 else " have")
            text = f"{num_leaked:,} of {images} an exact or near duplicate in {into}"
            remedy = _leak_remedy(checked, "leaves the duplicates out")
            yield Finding(f"{split} in {into}", text, f"see duplicates.csv; {remedy}", is_serious=True)


def _leak_remedy(checked: CheckedDataset, effect: str) -> str:
    if not checked.can_remove_leaks:
        return "leaving them all out would leave a class without training images"
    return f"data.split_file with split_without_leaks.csv {effect}"


def _groups(checked: CheckedDataset) -> Iterator[Finding]:
    """Yield the groups that are in two splits; without groups, a hint if many images seem to be related."""
    if (names := checked.named_groups) is not None:
        by_split = {split: names[checked.splits == index] for index, split in enumerate(SPLITS)}
        for (split, into), text in shared_groups(by_split, checked.grouping).items():
            remedy = _leak_remedy(checked, "leaves them out of all but one split")
            yield Finding(f"groups of {split} in {into}", text, remedy, is_serious=True)
        return
    pairs = checked.pairs
    is_related = ~pairs.is_same & (checked.labels[pairs.first] == checked.labels[pairs.second])
    num_related = len(np.union1d(pairs.first[is_related], pairs.second[is_related]))
    if num_related > _MIN_RELATED * len(checked) and Path(checked.names[0]).suffix:  # not of images in memory
        text = f"{num_related:,} of {len(checked):,} images are nearly the same as another one of their class"
        setting = "data.group_pattern=REGEX or, in a list, data.group_by=COLUMN"
        yield Finding(
            "related", text, f"if they come in groups (one person, camera, burst), {setting} keeps these whole"
        )


def _repeats(checked: CheckedDataset) -> Iterator[Finding]:
    if len(checked.conflicts):
        pair = checked.conflicts[0]
        class_a, class_b = (checked.origin(ends[pair])[2] for ends in (checked.pairs.first, checked.pairs.second))
        example = f"e.g. in {class_a!r} and {class_b!r}"
        text = f"{len(checked.conflicts):,} x exact or near duplicates in different classes, {example}"
        yield Finding("label conflicts", text, "see duplicates.csv; keep the one in the right class", is_serious=True)
    if num_duplicates := len(checked.duplicates_within_split):
        images = counted(num_duplicates, "image is an exact or near duplicate", "images are exact or near duplicates")
        text = f"{images} of another one of the same class and split"
        yield Finding("repeats", text, "see duplicates.csv; in the test split they count more than once")


def _class_counts(counts: np.ndarray, class_names: Sequence[str]) -> Iterator[Finding]:
    """Examine `counts`, the number of images of each class in each split, int64 (K, 3)."""
    empty = np.argwhere(counts == 0)
    if len(empty):
        label, split = empty[0].tolist()
        example = f"e.g. {class_names[label]!r} none in {SPLITS[split]}"
        classes = counted(len(np.unique(empty[:, 0])), "class has", "classes have")
        text = f"{classes} a split without an image, {example}"
        yield Finding("empty classes", text, "add images or change the split; they have no recall in that split")
    train, num_test = counts[:, 0], counts[:, 2].sum()
    if train.min() and train.max() / train.min() >= MIN_IMBALANCE_RATIO:
        largest, smallest = class_names[int(train.argmax())], class_names[int(train.argmin())]
        text = f"{largest!r} has {train.max() / train.min():.1f} times as many training images as {smallest!r}"
        yield Finding("imbalance", text, "try data.sampler=balanced or loss.weight=balanced, and look at macro F1")
    if num_test < FEW_TEST_IMAGES:
        text = f"the test split has only {counted(num_test, 'image')}: the accuracy will be uncertain"
        yield Finding("small test", text, "look at the interval that a run prints; data.fold trains on several splits")


def _unusual_files(checked: CheckedDataset, num_ignored: int) -> Iterator[Finding]:
    counts = checked.kinds()
    for name, note in _KIND_NOTES.items():
        if name in counts:
            yield Finding("kinds", f"{counted(counts[name], 'image is', 'images are')} {name}", note)
    if num_ignored:
        entries = counted(num_ignored, "file or folder is", "files or folders are")
        yield Finding("ignored", f"{entries} ignored", "see ignored.csv for why")
