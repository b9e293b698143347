"""Which samples make up which batch, in which order: a pure function of (seed, epoch), sharded by rank."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from imago.seeding import random_permutation

_REPEAT_SHIFT = 32  # a repetition within an epoch is keyed as an epoch that no run ever reaches


class BatchKey(NamedTuple):
    """Names one batch: `indices` is int64 (B,); `epoch`, one number or int64 (B,), keys each sample's draws."""

    epoch: int | np.ndarray
    indices: np.ndarray


class TrainSampler:
    """Yields shuffled batches of one epoch, the same for every number of workers and after every interruption.

    The last incomplete batch of an epoch is left out (another one each epoch), so every step has the same size; a set
    smaller than one batch is one batch.

    Args:
        num_samples: size of the training set.
        batch_size: samples in a batch over all ranks.
        seed: with the epoch, decides the order.
        rank: which share of each batch is ours.
        num_ranks: how many shares there are; must divide `batch_size`.
        labels: int64 (N,) to show every class equally often; None shows every sample once an epoch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        labels: np.ndarray | None = None,
    ) -> None:
        self.num_samples = num_samples
        self.labels = labels
        self.batch_size = min(batch_size, num_samples)
        self.seed = seed
        self.rank, self.num_ranks = rank, num_ranks
        self.epoch = 0
        self.start_batch = 0  # batches of this epoch that an interrupted run has already done

    @property
    def sampler(self) -> "TrainSampler":
        """Lightning announces epochs to the `sampler` of a batch sampler, which here is the same object."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch; a new epoch starts at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start_batch = epoch, 0

    def __len__(self) -> int:
        return self.num_samples // self.batch_size

    def __iter__(self) -> Iterator[BatchKey]:
        epoch = self.epoch
        keys: int | np.ndarray = epoch
        if self.labels is None:
            order = random_permutation(self.num_samples, self.seed, epoch)
        else:
            keys, order = balanced_order(self.labels, self.seed, epoch)
        for batch in range(self.start_batch, len(self)):
            start = batch * self.batch_size
            share = slice(start + self.rank, start + self.batch_size, self.num_ranks)
            yield BatchKey(keys if isinstance(keys, int) else keys[share], order[share])


class EvalSampler:
    """Yields every sample once, in order: ranks share them out and nothing is padded or repeated.

    Every rank has the same number of batches, since ranks wait for each other in each; the last of a rank may be empty.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, num_ranks: int = 1) -> None:
        self.indices = np.arange(rank, num_samples, num_ranks)
        largest_share = -(-num_samples // num_ranks)
        self.batch_size = batch_size
        self.num_batches = -(-largest_share // batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[BatchKey]:
        for batch in range(self.num_batches):
            yield BatchKey(0, self.indices[batch * self.batch_size : (batch + 1) * self.batch_size])


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Order an epoch in which every class comes equally often: rare images repeat, frequent ones are drawn from.

    Args:
        labels: int64 (N,).
        seed: with the epoch, decides the order.
        epoch: counted from 0.

    Returns:
        For each of N places in the epoch, int64: what keys the draws of its sample (the epoch, and another number for
        each repetition, so that no two look the same), and the sample's index.
    """
    classes = np.unique(labels)
    places = np.arange(len(labels)) % len(classes)  # which class comes where, before the shuffle
    keys, indices = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64)
    for number, label in enumerate(classes):
        members, slots = np.flatnonzero(labels == label), np.flatnonzero(places == number)
        rounds = range(-(-len(slots) // len(members)))
        drawn = np.concatenate([members[random_permutation(len(members), seed, epoch, turn, label)] for turn in rounds])
        indices[slots] = drawn[: len(slots)]
        keys[slots] = epoch + (np.arange(len(slots)) // len(members) << _REPEAT_SHIFT)
    order = random_permutation(len(labels), seed, epoch)
    return keys[order], indices[order]
