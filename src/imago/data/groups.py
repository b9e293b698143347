"""Keep images of one group, such as a patient, a camera or a burst, in one split: find, distribute and check groups."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from imago.errors import DataError
from imago.seeding import GROUP_KEY, random_permutation
from imago.text import counted, join_names, printable

# Legend: N images, G groups, P parts, K classes

_MAX_SHARE = 0.8  # of all images in one group: the others are too few to train or to test on; our own choice


def groups_by_pattern(names: Sequence[str], pattern: str) -> np.ndarray:
    """Return the group of each file, str (N,): the first capture group of a regular expression, or its whole match.

    The pattern is searched in the file name; one with a slash in the path below the root of the dataset.

    Raises:
        DataError: if a name has no group.
    """
    expression = re.compile(pattern)
    searched = names if "/" in pattern else [name.rpartition("/")[2] for name in names]
    matches = [expression.search(name) for name in searched]
    groups = [(match[min(1, expression.groups)] or "") if match else "" for match in matches]
    if "" in groups:
        files, example = counted(len(names), "file name"), printable(names[groups.index("")])
        fault = f"data.group_pattern={pattern} finds no group in {groups.count(''):,} of {files}, e.g. {example}"
        raise DataError(f"{fault}; change it so that every image has one.")
    return np.array(groups, dtype=str)


def distribute_groups(labels: np.ndarray, groups: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Distribute whole groups over parts, so that the images and each class are divided about by `shares`.

    One group after the other, the largest first, is added where it reduces the squared distance to the wanted numbers
    of images most, relative to these numbers; groups of one size are shuffled. Every part gets a group if there are
    enough.

    Args:
        labels: int64 (N,).
        groups: name of the group of each image, str (N,).
        shares: the wanted share of each of the P parts; the sum is 1.
        seed: determines the order of groups of one size.

    Returns:
        The part of each image, int64 (N,).

    Source: our own, close to scikit-learn's StratifiedGroupKFold, whose parts have equal shares.
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    order = np.argsort(numbers, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    shuffled = random_permutation(len(members), seed, GROUP_KEY).tolist()
    num_classes = int(labels.max()) + 1
    # The last column counts the images of all classes.
    wanted = np.outer(shares, np.append(np.bincount(labels, minlength=num_classes), len(labels)))  # (P, K + 1)
    wanted, counts = np.maximum(wanted, 1e-9), np.zeros_like(wanted)
    parts = np.empty(len(labels), np.int64)
    for num_done, indices in enumerate(sorted((members[number] for number in shuffled), key=len, reverse=True)):
        classes, added = np.unique(labels[indices], return_counts=True)
        classes, added = np.append(classes, num_classes), np.append(added, len(indices))
        missing = wanted[:, classes] - counts[:, classes]
        costs = (added * (added - 2 * missing) / wanted[:, classes]).sum(axis=1)
        is_empty = counts[:, -1] == 0
        if is_empty.sum() >= len(members) - num_done:
            costs[~is_empty] = np.inf
        part = int(np.round(costs, 6).argmin())  # rounded, so that the order of a sum does not decide
        counts[part, classes] += added
        parts[indices] = part
    return parts


def check_groups(groups: np.ndarray, setting: str, grouping: str, num_parts: int) -> None:
    """Check that groups, str (N,), can be distributed; `setting` asks for `num_parts`, `grouping` for the groups.

    Raises:
        DataError: if there are fewer groups than parts, or nearly all images are in one.
    """
    names, counts = np.unique(groups, return_counts=True)
    if len(names) < num_parts:
        fault = f"{grouping} has {counted(len(names), 'group')} of training images, which is too few"
        raise DataError(f"{setting}: {fault} for {num_parts} parts; use fewer parts or smaller groups.")
    if counts.max() > _MAX_SHARE * len(groups):
        fault = f"group {printable(names[counts.argmax()])!r} of {grouping} has {counts.max():,} of {len(groups):,}"
        raise DataError(f"{setting}: {fault} training images, so the others are too few; use smaller groups.")


def shared_groups(groups: Mapping[str, np.ndarray], grouping: str) -> dict[tuple[str, str], str]:
    """Return a text for each two of train, val and test that share groups, given those of each split, str (M,)."""
    texts = {}
    for split, into in (("test", "train"), ("test", "val"), ("val", "train")) if groups else ():
        if names := np.intersect1d(groups[split], groups[into]).tolist():
            verb, listed = "is" if len(names) == 1 else "are", join_names(map(printable, names), 3)
            texts[split, into] = (
                f"{counted(len(names), 'group')} of {grouping}, {listed}, {verb} in both {into} and {split}"
            )
    return texts
