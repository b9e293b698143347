"""Which samples make up which batch, in which order: a pure function of (seed, epoch), sharded by rank."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from imago.data.keyed import keyed_permutation


class BatchKey(NamedTuple):
    """Names one batch: `indices` is int64 (B,), and with `epoch` keys the random draws of each sample."""

    epoch: int
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
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, rank: int = 0, num_ranks: int = 1) -> None:
        self.num_samples = num_samples
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
        order = keyed_permutation(self.num_samples, self.seed, epoch)
        for batch in range(self.start_batch, len(self)):
            start = batch * self.batch_size
            yield BatchKey(epoch, order[start + self.rank : start + self.batch_size : self.num_ranks])


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


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Set the same share of every class aside.

    Args:
        labels: int64 (N,).
        fraction: share to set aside, in (0, 1); rounded per class, at least 1 picture and never all of them.
        seed: decides which; the same seed always gives the same split.

    Returns:
        Sorted indices of those kept and those set aside, int64.
    """
    aside = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        aside.append(members[keyed_permutation(len(members), seed, int(label))[:count]])
    chosen = np.sort(np.concatenate(aside))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen
