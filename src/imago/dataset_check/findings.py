"""What a person should know about a data set, in order of gravity, each with what to do about it."""

from dataclasses import dataclass

import numpy as np

from imago.dataset_check.checked_set import CheckedSet

IMBALANCE = 3.0  # images of the largest class for each of the smallest; below, plain shuffling does well enough
FEW_TEST_IMAGES = 100  # of a split: the 95 % interval of an accuracy is then up to 19 points wide (Wilson 1927)


@dataclass(frozen=True)
class Finding:
    """One thing, in plain words.

    Attributes:
        kind: one word for it, as in check.json.
        text: what there is.
        way_out: what to do.
        is_serious: whether a person has to decide before the numbers of a run can be trusted.
    """

    kind: str
    text: str
    way_out: str
    is_serious: bool


def find(checked: CheckedSet, num_ignored: int, num_left_out: int) -> list[Finding]:
    """List what was found, the gravest first.

    Args:
        checked: the data set.
        num_ignored: files beside the images that were not taken.
        num_left_out: bad images that are not in `checked`, because they are skipped on purpose.
    """
    found = [_bad(checked), _left_out(num_left_out), *_leaks(checked), _conflicts(checked), _missing(checked)]
    found += [_repeats(checked), _imbalance(checked), _few(checked), _kinds(checked), _ignored(num_ignored)]
    return [finding for finding in found if finding]


def _bad(checked: CheckedSet) -> Finding | None:
    if not len(checked.bad):
        return None
    text = f"{len(checked.bad):,} of {len(checked):,} images cannot be read"
    way_out = "see bad_files.csv; delete them or copy them again, or leave them out with data.on_bad_image=skip"
    return Finding("bad images", text, way_out, is_serious=True)


def _left_out(num_left_out: int) -> Finding | None:
    if not num_left_out:
        return None
    text = f"{num_left_out:,} images cannot be read and are left out, as data.on_bad_image=skip says"
    return Finding("left out", text, "see bad_files.csv", is_serious=False)


def _leaks(checked: CheckedSet) -> list[Finding | None]:
    return [_leak(checked, *pair) for pair in (("test", "train"), ("test", "val"), ("val", "train"))]


def _leak(checked: CheckedSet, split: str, into: str) -> Finding | None:
    leaked = checked.leaked(split, into)
    if not len(leaked):
        return None
    total = int((checked.splits[checked.good] == checked.split_names.index(split)).sum())
    text = f"{len(leaked):,} of {total:,} {split} images are also in {into}, the same or nearly"
    way_out = "look at them in duplicates.csv; data.split_file with split_without_leaks.csv leaves the twins out"
    if not checked.can_leave_leaks_out:
        way_out = "look at them in duplicates.csv; without all of them a class would have no training image left"
    return Finding(f"{split} in {into}", text, way_out, is_serious=True)


def _conflicts(checked: CheckedSet) -> Finding | None:
    if not checked.conflicts:
        return None
    text = f"{len(checked.conflicts):,} x twins, the same or nearly, in different classes, {_example(checked)}"
    return Finding("label conflicts", text, "look at them in duplicates.csv; keep the one in the right class", True)


def _example(checked: CheckedSet) -> str:
    classes = np.unique(checked.labels[checked.conflicts[0]])
    return f"e.g. in {' and '.join(repr(checked.class_names[label]) for label in classes[:3])}"


def _missing(checked: CheckedSet) -> Finding | None:
    places = np.argwhere(checked.counts == 0)
    if not len(places):
        return None
    label, split = places[0]
    example = f"e.g. {checked.class_names[label]!r} none in {checked.split_names[split]}"
    text = f"{len(np.unique(places[:, 0])):,} classes have a split without an image, {example}"
    return Finding("empty classes", text, "its accuracy there cannot be told; add images, or split otherwise", False)


def _repeats(checked: CheckedSet) -> Finding | None:
    if not len(checked.repeats):
        return None
    text = f"{len(checked.repeats):,} images repeat another one of their class and split, the same or nearly"
    return Finding("repeats", text, "harmless; in test they count more than once. See duplicates.csv", False)


def _imbalance(checked: CheckedSet) -> Finding | None:
    counts = checked.counts[:, checked.split_names.index("train")]
    if counts.min() == 0 or counts.max() / counts.min() < IMBALANCE:
        return None
    most, least = (checked.class_names[place] for place in (counts.argmax(), counts.argmin()))
    ratio = counts.max() / counts.min()
    text = f"{most!r} has {ratio:.1f} times as many training images as {least!r}"
    return Finding("imbalance", text, "try data.sampler=balanced or loss.weight=balanced, and look at macro F1", False)


def _few(checked: CheckedSet) -> Finding | None:
    total = int(checked.counts[:, checked.split_names.index("test")].sum())
    if total >= FEW_TEST_IMAGES:
        return None
    text = f"the test split has only {total} images: the accuracy will be uncertain"
    return Finding("small test", text, "mind the interval that a run prints; data.fold trains on several splits", False)


def _kinds(checked: CheckedSet) -> Finding | None:
    kinds = checked.kinds()
    told = {
        "animated": "of an animation the first frame is used",
        "16-bit": "16-bit values are scaled to 8 bits",
        "transparent": "what is transparent is laid on white",
    }
    parts = [f"{kinds[name]:,} {name}" for name in told if name in kinds]
    ways = [text for name, text in told.items() if name in kinds]
    return (
        Finding("kinds", f"there are images of these kinds: {', '.join(parts)}", "; ".join(ways), False)
        if parts
        else None
    )


def _ignored(num_ignored: int) -> Finding | None:
    if not num_ignored:
        return None
    text = f"{num_ignored:,} files or folders beside the images were not taken"
    return Finding("ignored", text, "see ignored.csv for why", False)
