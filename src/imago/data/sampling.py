"""Provide batch samplers whose order is a pure function of (seed, epoch), sharded by rank without padding."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from imago.seeding import CHUNK_KEY, random_bits, random_permutation

_REPEAT_SHIFT = 32  # bits of an epoch key for the epoch; the bits above hold the number of the repetition


class BatchIndices(NamedTuple):
    """Identify one batch."""

    epoch_keys: int | np.ndarray  # part of the key of each sample's random draws: one number, or int64 (B,)
    indices: np.ndarray  # of the samples, int64 (B,)


@dataclass(eq=False)
class TrainSampler:
    """Yield shuffled batches of one epoch, independent of the number of workers and of interruptions.

    The last incomplete batch of an epoch is dropped, different samples in each epoch, so every step has the same batch
    size. A dataset smaller than one batch is one batch.

    Args:
        num_samples: N, of all ranks together.
        batch_size: samples per batch over all ranks.
        seed: determines the order together with the epoch.
        rank: of this process, in 0 .. num_ranks - 1.
        num_ranks: must divide `batch_size`.
        labels: int64 (N,) to show every class equally often; None shows every sample once per epoch.
        repeats_first_epoch: show the samples of epoch 0 in every epoch; the keys of their random draws still differ.
    """

    num_samples: int
    batch_size: int
    seed: int
    rank: int = 0
    num_ranks: int = 1
    labels: np.ndarray | None = None
    repeats_first_epoch: bool = False
    epoch: int = field(default=0, init=False)
    start_batch: int = field(default=0, init=False)  # batches of this epoch that were done before an interruption

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, self.num_samples)

    @property
    def sampler(self) -> "TrainSampler":
        """The sampler itself, because Lightning calls `set_epoch` on the `sampler` of a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (called by Lightning); a new epoch starts at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start_batch = epoch, 0

    def __len__(self) -> int:
        return self.num_samples // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """Return the samples in the order in which an epoch shows them, to the ranks in turn, int64 (N,)."""
        return random_permutation(self.num_samples, self.seed, epoch)

    def __iter__(self) -> Iterator[BatchIndices]:
        epoch_keys: int | np.ndarray = self.epoch
        order_epoch = 0 if self.repeats_first_epoch else self.epoch
        if self.labels is None:
            order = self.order(order_epoch)
        else:
            epoch_keys, order = balanced_order(self.labels, self.seed, order_epoch)
            epoch_keys += self.epoch - order_epoch
        for batch in range(self.start_batch, len(self)):
            start = batch * self.batch_size
            rank_slice = slice(start + self.rank, start + self.batch_size, self.num_ranks)
            yield BatchIndices(epoch_keys if isinstance(epoch_keys, int) else epoch_keys[rank_slice], order[rank_slice])


@dataclass(eq=False)
class WindowSampler(TrainSampler):
    """Shuffle the chunks of a dataset, and samples within a window of chunks; ranks share chunks at their borders."""

    chunks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # chunk of each sample, int64 (N,)
    chunk_classes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # see `chunk_places`, int64 (C,)
    window: int = 1  # in chunks

    def order(self, epoch: int) -> np.ndarray:
        _, chunks = np.unique(self.chunks, return_inverse=True)
        places = chunk_places(self.chunk_classes, self.seed, epoch)[chunks]  # of the chunk of each sample
        num_per_rank = self.num_samples // self.num_ranks
        parts = np.argsort(places, kind="stable")[: num_per_rank * self.num_ranks].reshape(self.num_ranks, -1)
        windows = (places[parts] - places[parts[:, :1]]) // self.window
        within = np.lexsort((random_bits(self.seed, epoch, parts), windows))
        return np.take_along_axis(parts, within, 1).T.ravel()


def chunk_places(classes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return random places of chunks, int64 (C,), in which those of one class are evenly spread over the epoch.

    `classes`, int64 (C,), is the most frequent class of each chunk: where a dataset was written sorted by class, the
    chunks that are close to each other then have the classes of the dataset.
    """
    places = random_permutation(len(classes), seed, epoch, CHUNK_KEY)
    _, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
    rank_in_class = np.empty(len(classes), np.int64)
    rank_in_class[np.lexsort((places, numbers))] = np.concatenate([np.arange(count) for count in counts])
    shift = random_bits(seed, epoch, CHUNK_KEY, 0, numbers) / 2.0**64  # the same for all chunks of a class
    return np.argsort(np.lexsort((places, (rank_in_class + shift) / counts[numbers])))


class EvalSampler:
    """Yield batches of every sample once, sharded by rank without padding or repetition.

    Every rank has the same number of batches, because ranks synchronize in each; the last one of a rank may be empty.

    Attributes:
        order: of the samples over all ranks, int64 (N,); by default that of the dataset.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, num_ranks: int = 1) -> None:
        self.order = np.arange(num_samples)
        self.rank, self.num_ranks = rank, num_ranks
        self.batch_size = batch_size
        self.num_batches = math.ceil(math.ceil(num_samples / num_ranks) / batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[BatchIndices]:
        indices = self.order[self.rank :: self.num_ranks]
        for batch in range(self.num_batches):
            yield BatchIndices(0, indices[batch * self.batch_size : (batch + 1) * self.batch_size])


def limited_batches(num_batches: int, limit: int | float) -> int:
    """Return how many batches remain under a limit of the Trainer: a number (int) or a share (float)."""
    return min(limit, num_batches) if isinstance(limit, int) else int(num_batches * limit)


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Order an epoch of N samples, of labels int64 (N,), in which every class occurs equally often.

    Samples of rare classes repeat; of frequent classes, a random part is shown.

    Returns:
        The epoch key of each sample, int64 (N,) (the epoch, or another number for each repetition, so that repeated
        samples are augmented differently), and the sample indices, int64 (N,).
    """
    classes = np.unique(labels)
    class_at_position = np.arange(len(labels)) % len(classes)  # before the shuffle
    epoch_keys, indices = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64)
    for number, label in enumerate(classes):
        class_indices, slots = np.flatnonzero(labels == label), np.flatnonzero(class_at_position == number)
        repetitions = range(-(-len(slots) // len(class_indices)))
        orders = [random_permutation(len(class_indices), seed, epoch, repetition, label) for repetition in repetitions]
        indices[slots] = class_indices[np.concatenate(orders)][: len(slots)]
        epoch_keys[slots] = epoch + (np.arange(len(slots)) // len(class_indices) << _REPEAT_SHIFT)
    order = random_permutation(len(labels), seed, epoch)
    return epoch_keys[order], indices[order]
