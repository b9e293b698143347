"""Compute counts, leaks, label conflicts and statistics of an examined dataset."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from imago.data.examine import Examination
from imago.data.image_record import KINDS
from imago.dataset_check.duplicates import DuplicatePairs, find_duplicates, group_pairs
from imago.images import FORMATS, SPLITS


@dataclass(frozen=True)
class CheckedDataset:
    """N images of all splits, one split after the other."""

    class_names: tuple[str, ...]  # K names; the index of a name is its label
    names: tuple[str, ...]  # file name or other origin of each image
    splits: np.ndarray  # index of each image's split in `SPLITS`, int64 (N,)
    labels: np.ndarray  # int64 (N,)
    examined: Examination  # record and error of each image
    named_groups: np.ndarray | None = None  # name of the group that the settings give each image, str (N,)
    grouping: str = ""  # setting that defines these groups, as typed

    def __len__(self) -> int:
        return len(self.names)

    def origin(self, index: int) -> tuple[str, str, str]:
        """Return name, split and class of an image."""
        return self.names[index], SPLITS[self.splits[index]], self.class_names[self.labels[index]]

    @cached_property
    def good_indices(self) -> np.ndarray:
        """The indices of the images that can be decoded, int64."""
        return np.flatnonzero(self.examined.is_good)

    @cached_property
    def bad_indices(self) -> np.ndarray:
        """The indices of the images that cannot be decoded, int64."""
        return np.flatnonzero(~self.examined.is_good)

    @cached_property
    def counts(self) -> np.ndarray:
        """The number of good images of each class in each split, int64 (K, 3)."""
        table = np.zeros((len(self.class_names), len(SPLITS)), np.int64)
        np.add.at(table, (self.labels[self.good_indices], self.splits[self.good_indices]), 1)
        return table

    @cached_property
    def pairs(self) -> DuplicatePairs:
        """The duplicates among the good images, by their indices in this set."""
        pairs = find_duplicates(self.examined.records[self.good_indices])
        return replace(pairs, first=self.good_indices[pairs.first], second=self.good_indices[pairs.second])

    @cached_property
    def groups(self) -> np.ndarray:
        """The group number of each image, int64 (N,); duplicates share a number."""
        return group_pairs(len(self), self.pairs)

    def leaked(self, split: str, into: str) -> np.ndarray:
        """Return the indices of the images of a split that have a duplicate in another one, int64 (M,)."""
        other_groups = np.unique(self.groups[self.splits == SPLITS.index(into)])
        indices = np.flatnonzero(self.splits == SPLITS.index(split))
        return indices[np.isin(self.groups[indices], other_groups)]

    @cached_property
    def conflicts(self) -> np.ndarray:
        """The indices of the pairs whose images are of different classes, int64 (M,)."""
        return np.flatnonzero(self.labels[self.pairs.first] != self.labels[self.pairs.second])

    @cached_property
    def duplicates_within_split(self) -> np.ndarray:
        """The indices of the images with an earlier duplicate in the same split and class, int64 (M,)."""
        first, second = self.pairs.first, self.pairs.second
        is_inside = (self.splits[first] == self.splits[second]) & (self.labels[first] == self.labels[second])
        return np.unique(second[is_inside])

    @cached_property
    def without_leaks(self) -> np.ndarray:
        """The indices of the good images, int64 (M,); of duplicates and groups only those in the last split."""
        last_split = self.splits
        for groups in (self.groups, self.named_groups):
            if groups is not None:
                numbers = np.unique(groups, return_inverse=True)[1]
                latest = np.zeros(len(self), np.int64)
                np.maximum.at(latest, numbers, self.splits)
                last_split = np.maximum(last_split, latest[numbers])
        return self.good_indices[(self.splits == last_split)[self.good_indices]]

    @property
    def has_leaks(self) -> bool:
        """Whether two splits share an image or a group."""
        return len(self.without_leaks) < len(self.good_indices)

    @property
    def can_remove_leaks(self) -> bool:
        """Whether every class keeps a training image if the leaks are left out."""
        before, after = (self.labels[kept[self.splits[kept] == 0]] for kept in (self.good_indices, self.without_leaks))
        return set(before.tolist()) == set(after.tolist())

    @cached_property
    def train_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean and std per channel, each (3,), of the whole good training images, each with equal weight."""
        records = self.examined.records[self.good_indices[self.splits[self.good_indices] == 0]]
        mean = records["mean"].astype(np.float64).mean(axis=0)
        return mean, np.sqrt(np.maximum(records["mean_square"].astype(np.float64).mean(axis=0) - mean**2, 0))

    def formats(self) -> dict[str, int]:
        """Count the formats of the good images, most frequent first."""
        counts = Counter(self.examined.records["format"][self.good_indices].tolist())
        return {FORMATS[index] if index >= 0 else "in memory": count for index, count in counts.most_common()}

    def kinds(self) -> dict[str, int]:
        """Count the good images of each of `KINDS` that occurs."""
        bits = self.examined.records["kinds"][self.good_indices]
        counts = {name: int((bits >> bit & 1).sum()) for bit, name in enumerate(KINDS)}
        return {name: count for name, count in counts.items() if count}

    def sizes(self) -> dict[str, list[int]]:
        """Return width and height, in px, of the smallest, the median and the largest good image by area."""
        sides = np.stack([self.examined.records[name][self.good_indices] for name in ("width", "height")], axis=1)
        ordered = sides[np.argsort(sides.astype(np.int64).prod(axis=1), kind="stable")].tolist()
        return {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]}
