"""Provide the labeled samples of a split, in memory or in files, and the datasets that return batches of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from imago.augment.crop_flip import SampleKey, crop_and_flip, gather_crop_flip, pad, sample_crop_flip
from imago.augment.resized_crop import random_resized_crops
from imago.augment.sample_transforms import transform_images
from imago.augment.settings import Augment
from imago.data.sampling import BatchIndices
from imago.errors import DataError
from imago.images import MAX_PIXELS, read_image
from imago.text import printable
from imago.threads import one_intraop_thread


class Samples:
    """Labeled images; a subclass is a dataclass whose arrays have one entry per sample."""

    names: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray | None = None  # name of the group of each image, which no two splits share, str (N,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def content_digest(self) -> str:
        """A hash that stands for the pixels, where reading them takes long; else "" (empty)."""
        return ""

    def read(self, index: int, class_names: Sequence[str] = ()) -> np.ndarray:
        """Return one image, uint8 (H, W, 3); an error names the class if the names of all classes are given."""
        raise NotImplementedError

    def take(self, indices: np.ndarray) -> Self:
        """Return the samples at `indices`, int64 (M,)."""
        columns = {name: column[indices] for name, column in _columns(self).items()}
        return self.replaced((self.names[index] for index in indices), columns)

    def replaced(self, names: Iterator[str], columns: Mapping[str, np.ndarray]) -> Self:
        """Return samples with other names and arrays."""
        return replace(self, names=tuple(names), **columns)  # type: ignore[type-var]


@dataclass(frozen=True)
class LabeledArray(Samples):
    """Samples in memory.

    Attributes:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
        names: file name of each image, or its split and index in a published dataset, e.g. "train/00042".
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    def read(self, index: int, class_names: Sequence[str] = ()) -> np.ndarray:
        """Return one image, uint8 (H, W, 3)."""
        return self.images[index].transpose(1, 2, 0)


@dataclass(frozen=True)
class LabeledFiles(Samples):
    """Samples in image files, which are read on access.

    Attributes:
        root: directory that `names` are relative to.
        names: paths of the N files relative to `root`, with slashes.
        num_bytes: size of each file, int64 (N,).
        mtime_ns: modification time of each file, int64 (N,), in nanoseconds.
        labels: int64 (N,).
        max_pixels: larger images are not read.
        groups: name of the group of each image, str (N,); None without data.group_by and data.group_pattern.
    """

    root: Path
    names: tuple[str, ...]
    num_bytes: np.ndarray
    mtime_ns: np.ndarray
    labels: np.ndarray
    max_pixels: int = MAX_PIXELS
    groups: np.ndarray | None = None

    @property
    def paths(self) -> list[Path]:
        """The path of each file, `root / name`."""
        return [self.root / name for name in self.names]

    def read(self, index: int, class_names: Sequence[str] = ()) -> np.ndarray:
        """Decode one image: uint8 (H, W, 3); raise a DataError with the file and its class if it cannot be read."""
        path = self.root / self.names[index]
        try:
            return read_image(path, self.max_pixels)
        except DataError as error:
            reason = str(error).replace(str(path), printable(path)).replace(" max_pixels", " data.max_pixels")
            remedy = "check.py lists all such images, data.on_bad_image=skip leaves them out."
            raise DataError(f"an image of class {class_names[self.labels[index]]!r}: {reason} {remedy}") from error


def numbered_names(split: str, num_samples: int) -> tuple[str, ...]:
    """Return names of samples that are not files, e.g. "train/00042"."""
    return tuple(f"{split}/{index:05d}" for index in range(num_samples))


def concatenate(splits: Sequence[Samples]) -> Samples:
    """Concatenate splits of one dataset, in the given order."""
    columns = {name: np.concatenate([getattr(split, name) for split in splits]) for name in _columns(splits[0])}
    return splits[0].replaced(chain.from_iterable(split.names for split in splits), columns)


def _columns(samples: Any) -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(samples).items() if isinstance(value, np.ndarray)}


@dataclass(frozen=True)
class Splits:
    """The three splits of a dataset; label i means `class_names[i]`."""

    class_names: tuple[str, ...]
    train: Samples
    val: Samples
    test: Samples

    def items(self) -> list[tuple[str, Samples]]:
        """Return (name, samples) of train, val and test, in this order."""
        return [("train", self.train), ("val", self.val), ("test", self.test)]


class BatchDataset(Dataset):
    """Return whole batches, from `load` of a subclass."""

    labels: np.ndarray
    load: Callable[[BatchIndices], Any]

    def __len__(self) -> int:
        return len(self.labels)

    @one_intraop_thread()
    def __getitems__(self, key: BatchIndices) -> Any:
        """Return one batch, or in a worker process a `DataError`, whose message torch would hide in a traceback."""
        try:
            return self.load(key)
        except DataError as error:
            if get_worker_info() is None:
                raise
            return error


class ArrayDataset(BatchDataset):
    """Return batches of images in memory; `imago.data.device_images` makes the same ones on a device.

    Args:
        samples: images and labels; with `augment` but no random resized crop, a padded copy is made.
        augment: augmentation for training; None returns the images unchanged.
        seed: first part of the key of each random draw; epoch and sample index are the others.
    """

    def __init__(self, samples: LabeledArray, augment: Augment | None = None, seed: int = 0) -> None:
        self.labels = samples.labels
        self.augment = augment
        self.seed = seed
        self.images = samples.images
        if augment is not None and not has_random_resized_crop(augment):
            self.images = pad(samples.images, augment.crop_padding_px, augment.crop_padding_mode)

    def load(self, key: BatchIndices) -> tuple[Tensor, Tensor]:
        """Return one batch: images uint8 (B, 3, H, W) and labels int64 (B,)."""
        indices, augment, sample_key = key.indices, self.augment, (self.seed, *key)
        if augment is None:
            images = self.images[indices]
        elif not has_random_resized_crop(augment):
            params = sample_crop_flip(augment, self.seed, key.epoch_keys, indices)
            images = gather_crop_flip(self.images, indices, params, augment.crop_padding_px)
            images = transform_images(images, augment, sample_key)
        else:
            samples = (self.images[index].transpose(1, 2, 0) for index in indices)
            images = _augment_and_stack(samples, self.images.shape[-1], augment, sample_key)
        return torch.from_numpy(images), torch.from_numpy(self.labels[indices])


@dataclass(eq=False)
class FileDataset(BatchDataset):
    """Return batches of images that are read one at a time: decoded, or from a cache.

    Args:
        labels: int64 (N,).
        read: returns the image at an index, uint8: (size, size, 3), or any size if `augment` has a random resized crop.
        size: height and width of the images in a batch, in pixels.
        augment: augmentation for training; None returns the images unchanged.
        seed: first part of the key of each random draw; epoch and sample index are the others.
    """

    labels: np.ndarray
    read: Callable[[int], np.ndarray]
    size: int
    augment: Augment | None = None
    seed: int = 0

    def read_images(self, key: BatchIndices) -> Iterator[np.ndarray]:
        """Yield the images of a batch as `read` returns them."""
        return map(self.read, key.indices)

    def load(self, key: BatchIndices) -> tuple[Tensor, Tensor]:
        """Return one batch: images uint8 (B, 3, size, size) and labels int64 (B,)."""
        images = _augment_and_stack(self.read_images(key), self.size, self.augment, (self.seed, *key))
        return torch.from_numpy(images), torch.from_numpy(self.labels[key.indices])


def has_random_resized_crop(augment: Augment | None) -> bool:
    """Return whether training images are read in their original size, to be cropped at random."""
    return augment is not None and augment.random_resized_crop_scale is not None


def _augment_and_stack(samples: Iterator[np.ndarray], size: int, augment: Augment | None, key: SampleKey) -> np.ndarray:
    """Augment single images and stack them: uint8 (B, 3, size, size) in channels_last memory order.

    `samples` are uint8 (size, size, 3), or (H, W, 3) for a random resized crop; `key` is seed, epoch and indices.
    """
    if augment is not None and has_random_resized_crop(augment):
        samples = random_resized_crops(samples, size, augment, key)
    images = np.empty((len(key[2]), size, size, 3), np.uint8)
    for index, image in enumerate(samples):
        images[index] = image
    batch = images.transpose(0, 3, 1, 2)
    return batch if augment is None else transform_images(crop_and_flip(batch, augment, key), augment, key)
