"""Compute counts, leaks, label conflicts and statistics of an examined data set."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from imago.data.examine import Examination
from imago.data.image_record import KINDS
from imago.dataset_check.duplicates import DuplicatePairs, find_duplicates, group_pairs
from imago.images import FORMATS

_RARE = 100  # a format is rare if fewer than one image in so many has it


@dataclass(frozen=True)
class CheckedSet:
    """N images of all splits, one split after the other.

    Attributes:
        class_names: K names; the index of a name is its label.
        split_names: in the order train, val, test.
        names: file name or other origin of each image.
        splits: index of each image's split in `split_names`, int64 (N,).
        labels: int64 (N,).
        examined: record and error of each image.
    """

    class_names: tuple[str, ...]
    split_names: tuple[str, ...]
    names: tuple[str, ...]
    splits: np.ndarray
    labels: np.ndarray
    examined: Examination

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def good(self) -> np.ndarray:
        """Indices of the images that can be decoded, int64."""
        return np.flatnonzero(self.examined.is_good)

    @cached_property
    def bad(self) -> np.ndarray:
        """Indices of the images that cannot be decoded, int64."""
        return np.flatnonzero(~self.examined.is_good)

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of good images of each class in each split, int64 (K, S)."""
        table = np.zeros((len(self.class_names), len(self.split_names)), np.int64)
        np.add.at(table, (self.labels[self.good], self.splits[self.good]), 1)
        return table

    @cached_property
    def pairs(self) -> DuplicatePairs:
        """Duplicates among the good images, by their indices in this set."""
        found = find_duplicates(self.examined.records[self.good])
        return replace(found, first=self.good[found.first], second=self.good[found.second])

    @cached_property
    def groups(self) -> np.ndarray:
        """Group number of each image, int64 (N,); duplicates share a number."""
        return group_pairs(len(self), self.pairs)

    def leaked(self, split: str, into: str) -> np.ndarray:
        """Return the indices of the images of a split that have a duplicate in another one, int64 (M,)."""
        there = np.unique(self.groups[self.splits == self.split_names.index(into)])
        here = np.flatnonzero(self.splits == self.split_names.index(split))
        return here[np.isin(self.groups[here], there)]

    @cached_property
    def conflicts(self) -> list[np.ndarray]:
        """Duplicates of different classes: one array of indices per group."""
        indices = np.union1d(self.pairs.first, self.pairs.second)
        indices = indices[np.argsort(self.groups[indices], kind="stable")]
        starts = np.flatnonzero(np.diff(self.groups[indices])) + 1
        return [group for group in np.split(indices, starts) if len(np.unique(self.labels[group])) > 1]

    @cached_property
    def repeats(self) -> np.ndarray:
        """Indices of the images with an earlier duplicate in the same split and class, int64 (M,)."""
        first, second = self.pairs.first, self.pairs.second
        is_inside = (self.splits[first] == self.splits[second]) & (self.labels[first] == self.labels[second])
        return np.unique(second[is_inside])

    def without_leaks(self) -> np.ndarray:
        """Return the good images without duplicates across splits, int64 (M,): test keeps its own, then val."""
        last_split = np.zeros(len(self), np.int64)
        np.maximum.at(last_split, self.groups, self.splits)
        return self.good[self.splits[self.good] == last_split[self.groups[self.good]]]

    @cached_property
    def can_leave_leaks_out(self) -> bool:
        """Whether every class still has a training image after `without_leaks`."""
        is_train = self.splits == self.split_names.index("train")
        kept = self.without_leaks()
        before, after = self.labels[self.good[is_train[self.good]]], self.labels[kept[is_train[kept]]]
        return set(before.tolist()) == set(after.tolist())

    def channel_statistics(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and std per channel, each (3,), over the whole good images of a split with equal weight."""
        records = self.examined.records[self.good[self.splits[self.good] == self.split_names.index(split)]]
        mean = records["mean"].astype(np.float64).mean(axis=0)
        return mean, np.sqrt(np.maximum(records["mean_square"].astype(np.float64).mean(axis=0) - mean**2, 0))

    def formats(self) -> dict[str, int]:
        """Count the formats of the good images, most frequent first."""
        found = Counter(self.examined.records["format"][self.good].tolist())
        return {FORMATS[index] if index >= 0 else "in memory": count for index, count in found.most_common()}

    def rare_formats(self) -> dict[str, str]:
        """Return the first image of each rare format; such an image often does not belong to its class."""
        of_good = self.examined.records["format"][self.good]
        rare = [index for index in np.unique(of_good) if 0 < (of_good == index).sum() * _RARE < len(of_good)]
        return {FORMATS[index]: self.names[self.good[of_good == index][0]] for index in rare}

    def kinds(self) -> dict[str, int]:
        """Count the good images of each of `KINDS` that occurs."""
        bits = self.examined.records["kinds"][self.good]
        found = {name: int((bits >> bit & 1).sum()) for bit, name in enumerate(KINDS)}
        return {name: count for name, count in found.items() if count}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return width and height, in px, of the smallest, the median and the largest good image by area."""
        records = self.examined.records[self.good]
        order = np.argsort(records["width"].astype(np.int64) * records["height"], kind="stable")
        chosen = {"min": order[0], "median": order[len(order) // 2], "max": order[-1]}
        return {name: (int(records["width"][i]), int(records["height"][i])) for name, i in chosen.items()}
