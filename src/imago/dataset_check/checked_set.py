"""A data set with all that was found out about its images, and the numbers that follow."""

from collections import Counter
from dataclasses import dataclass
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
        class_names: K names; the place of a name is its label.
        split_names: of the splits, in the order train, val, test.
        names: where each image comes from.
        splits: place of its split in `split_names`, int64 (N,).
        labels: int64 (N,).
        examined: what was found in each image.
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
        """Places of the images that can be decoded, int64."""
        return np.flatnonzero(self.examined.is_good)

    @cached_property
    def bad(self) -> np.ndarray:
        """Places of the others."""
        return np.flatnonzero(~self.examined.is_good)

    @cached_property
    def counts(self) -> np.ndarray:
        """How many good images each class has in each split, int64 (K, S)."""
        table = np.zeros((len(self.class_names), len(self.split_names)), np.int64)
        np.add.at(table, (self.labels[self.good], self.splits[self.good]), 1)
        return table

    @cached_property
    def pairs(self) -> DuplicatePairs:
        """Duplicates among the good images; places are those of this set."""
        found = find_duplicates(self.examined.records[self.good])
        places = self.good[found.first], self.good[found.second]
        return DuplicatePairs(*places, found.is_same, found.similarity, found.min_correlation)

    @cached_property
    def groups(self) -> np.ndarray:
        """Number the images; duplicates share a number, int64 (N,)."""
        return group_pairs(len(self), self.pairs)

    def leaked(self, split: str, into: str) -> np.ndarray:
        """Give the places of the images of a split that have a twin in another one, int64 (M,)."""
        there = np.unique(self.groups[self.splits == self.split_names.index(into)])
        here = np.flatnonzero(self.splits == self.split_names.index(split))
        return here[np.isin(self.groups[here], there)]

    @cached_property
    def conflicts(self) -> list[np.ndarray]:
        """Give the duplicates that have different classes: places, one array for each group."""
        places = np.union1d(self.pairs.first, self.pairs.second)
        places = places[np.argsort(self.groups[places], kind="stable")]
        starts = np.flatnonzero(np.diff(self.groups[places])) + 1
        return [group for group in np.split(places, starts) if len(np.unique(self.labels[group])) > 1]

    @cached_property
    def repeats(self) -> np.ndarray:
        """Give the places of the images with a twin before them in the same split and class, int64 (M,)."""
        inside = (self.splits[self.pairs.first] == self.splits[self.pairs.second]) & (
            self.labels[self.pairs.first] == self.labels[self.pairs.second]
        )
        return np.unique(self.pairs.second[inside])

    def without_leaks(self) -> np.ndarray:
        """Choose the good images that leave no duplicates in two splits: test keeps its own, then val; int64 (M,)."""
        last_split = np.zeros(len(self), np.int64)
        np.maximum.at(last_split, self.groups, self.splits)
        return self.good[self.splits[self.good] == last_split[self.groups[self.good]]]

    @cached_property
    def can_leave_leaks_out(self) -> bool:
        """Whether every class still has a training image after `without_leaks`."""
        train = self.split_names.index("train")
        kept = self.without_leaks()
        is_train = self.splits == train
        before, after = self.labels[self.good[is_train[self.good]]], self.labels[kept[is_train[kept]]]
        return set(before.tolist()) == set(after.tolist())

    def channel_statistics(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Give mean and std per channel over the whole good images of a split, each counting the same: (3,), (3,)."""
        records = self.examined.records[self.good[self.splits[self.good] == self.split_names.index(split)]]
        mean = records["mean"].astype(np.float64).mean(axis=0)
        return mean, np.sqrt(np.maximum(records["mean_square"].astype(np.float64).mean(axis=0) - mean**2, 0))

    def formats(self) -> dict[str, int]:
        """Count the formats of the good images, most frequent first."""
        found = Counter(self.examined.records["format"][self.good].tolist())
        return {FORMATS[index] if index >= 0 else "in memory": count for index, count in found.most_common()}

    def odd_ones(self) -> dict[str, str]:
        """Name the first image of each format that hardly any has: often not an image of its class."""
        of_good = self.examined.records["format"][self.good]
        rare = [index for index in np.unique(of_good) if 0 < (of_good == index).sum() * _RARE < len(of_good)]
        return {FORMATS[index]: self.names[self.good[of_good == index][0]] for index in rare}

    def kinds(self) -> dict[str, int]:
        """Count the good images that are of a kind one should know of."""
        bits = self.examined.records["kinds"][self.good]
        found = {name: int((bits >> bit & 1).sum()) for bit, name in enumerate(KINDS)}
        return {name: count for name, count in found.items() if count}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Give the smallest, the middle and the largest good image by its area: width and height, px."""
        records = self.examined.records[self.good]
        order = np.argsort(records["width"].astype(np.int64) * records["height"], kind="stable")
        chosen = {"min": order[0], "median": order[len(order) // 2], "max": order[-1]}
        return {name: (int(records["width"][i]), int(records["height"][i])) for name, i in chosen.items()}
