"""The data sets that loaders read: a whole batch per call, uint8 out, augmented only where asked."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from imago.augment.crop_flip import crop_and_flip, draw, gather_crop_flip, pad
from imago.augment.resized_crop import random_resized_crops
from imago.augment.sample_transforms import transform_images
from imago.augment.settings import Augment
from imago.data.sampling import BatchKey
from imago.errors import DataError
from imago.images import read_image
from imago.text import printable
from imago.threads import one_intraop_thread

if TYPE_CHECKING:
    from imago.data.image_cache import ImageStore


@dataclass(frozen=True)
class LabeledArray:
    """Samples held in memory.

    Attributes:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
        names: where each image comes from: its file, or its place in the published set, as in "train/00042".
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "LabeledArray":
        """Give some of the images: those at `indices`, int64 (M,)."""
        return LabeledArray(self.images[indices], self.labels[indices], _taken(self.names, indices))

    def identity(self) -> bytes:
        """Give what tells this set from another one, for a fingerprint: labels and names."""
        return self.labels.tobytes() + "\0".join(self.names).encode(errors="surrogateescape")


@dataclass(frozen=True)
class LabeledFiles:
    """Samples that stay on disk until they are asked for.

    Attributes:
        root: the folder of the data set, which `names` start from.
        names: of the N files, with slashes.
        num_bytes: size of each file, int64 (N,).
        mtime_ns: when each file was last changed, int64 (N,), in nanoseconds.
        labels: int64 (N,).
    """

    root: Path
    names: tuple[str, ...]
    num_bytes: np.ndarray
    mtime_ns: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def paths(self) -> list[Path]:
        """Where the files are."""
        return [self.root / name for name in self.names]

    def take(self, indices: np.ndarray) -> "LabeledFiles":
        """Give some of the images: those at `indices`, int64 (M,)."""
        return LabeledFiles(
            self.root,
            _taken(self.names, indices),
            self.num_bytes[indices],
            self.mtime_ns[indices],
            self.labels[indices],
        )

    def read(self, index: int, class_names: Sequence[str]) -> np.ndarray:
        """Decode one image: uint8 (H, W, 3).

        Raises:
            DataError: naming the file and its class.
        """
        path = self.root / self.names[index]
        try:
            return read_image(path)
        except DataError as error:
            reason = str(error).replace(str(path), printable(path))
            way_out = "check.py lists all such images, data.on_bad_image=skip leaves them out."
            raise DataError(f"an image of class {class_names[self.labels[index]]!r}: {reason} {way_out}") from error

    def identity(self) -> bytes:
        """Give what tells this set from another one, for a fingerprint: labels, names and sizes."""
        names = "\0".join(self.names).encode(errors="surrogateescape")
        return self.labels.tobytes() + names + self.num_bytes.tobytes()


Samples = LabeledArray | LabeledFiles


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Put parts of one data set together, in the order given."""
    first = parts[0]
    names = tuple(chain.from_iterable(part.names for part in parts))
    columns = [field.name for field in fields(first) if field.name not in ("root", "names")]
    joined: dict[str, Any] = {column: np.concatenate([getattr(part, column) for part in parts]) for column in columns}
    return replace(first, names=names, **joined)


@dataclass(frozen=True)
class Splits:
    """A data set as its source hands it over; the order of `class_names` gives the labels their meaning."""

    class_names: tuple[str, ...]
    train: Samples
    val: Samples
    test: Samples

    def named(self) -> list[tuple[str, Samples]]:
        """Give the three with their names."""
        return [("train", self.train), ("val", self.val), ("test", self.test)]


class ArrayDataset(Dataset):
    """Serves batches of an array; give `augment` for training, leave it out for evaluation.

    Args:
        images: what to serve.
        augment: crop and flip settings, or None for the images as they are.
        seed: keys the draws together with the epoch and the sample index.
    """

    def __init__(self, samples: LabeledArray, augment: Augment | None = None, seed: int = 0) -> None:
        self.labels = samples.labels
        self.augment = augment
        self.seed = seed
        is_padded = augment is not None and augment.random_resized_crop_scale is None
        self.images = pad(samples.images, augment.crop_padding_px) if augment and is_padded else samples.images

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_slow(self) -> bool:
        """Whether a batch takes so long that processes of their own pay off."""
        return self.augment is not None and self.augment.is_per_image

    @one_intraop_thread()
    def __getitems__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        """Give one batch: images uint8 (B, 3, H, W) and labels int64 (B,)."""
        if self.augment is None:
            images = self.images[key.indices]
        elif self.augment.random_resized_crop_scale is None:
            draws = draw(self.augment, self.seed, key.epoch, key.indices)
            images = gather_crop_flip(self.images, key.indices, draws, self.augment.crop_padding_px)
        else:
            samples = (self.images[index].transpose(1, 2, 0) for index in key.indices)
            size = self.images.shape[-1]
            squares = random_resized_crops(samples, size, self.augment, (self.seed, *key))
            images = crop_and_flip(_stack(squares, len(key.indices), size), self.augment, (self.seed, *key))
        if self.augment is not None:
            images = transform_images(images, self.augment, (self.seed, *key))
        return torch.from_numpy(images), torch.from_numpy(self.labels[key.indices])


class FileDataset(Dataset):
    """Serves batches of images that are decoded when asked for, or were decoded before.

    Args:
        files: what to serve.
        class_names: for the text of errors.
        size: side of the squares in a batch, in pixels.
        prepare: makes of a decoded image uint8 (H, W, 3) what is kept, and what training cuts its crops from: a
            square of `size`, unless `augment` has a random resized crop.
        augment: for training; None shows the images as `prepare` leaves them.
        seed: keys the draws together with the epoch and the sample index.
        store: the prepared images, if they were decoded before.
    """

    def __init__(
        self,
        files: LabeledFiles,
        class_names: Sequence[str],
        size: int,
        prepare: Callable[[np.ndarray], np.ndarray],
        augment: Augment | None = None,
        seed: int = 0,
        store: "ImageStore | None" = None,
    ) -> None:
        self.files = files
        self.class_names = class_names
        self.size = size
        self.prepare = prepare
        self.augment = augment
        self.seed = seed
        self.store = store

    def __len__(self) -> int:
        return len(self.files)

    @property
    def is_slow(self) -> bool:
        """Whether a batch takes so long that processes of their own pay off: always, beside a GPU."""
        return True

    @one_intraop_thread()
    def __getitems__(self, key: BatchKey) -> tuple[Tensor, Tensor] | DataError:
        """Give one batch: images uint8 (B, 3, size, size) and labels int64 (B,).

        Raises:
            DataError: naming the file that cannot be read and its class. A worker process gives it back instead,
                for the loader to raise: torch would bury its text in the worker's traceback.
        """
        try:
            return self._batch(key)
        except DataError as error:
            if get_worker_info() is None:
                raise
            return error

    def _batch(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        augment, sample_key = self.augment, (self.seed, *key)
        samples: Iterator[np.ndarray] = (self._image(index) for index in key.indices)
        if augment is not None and augment.random_resized_crop_scale is not None:
            samples = random_resized_crops(samples, self.size, augment, sample_key)
        images = _stack(samples, len(key.indices), self.size)
        if augment is not None:
            images = transform_images(crop_and_flip(images, augment, sample_key), augment, sample_key)
        return torch.from_numpy(images), torch.from_numpy(self.files.labels[key.indices])

    def _image(self, index: int) -> np.ndarray:
        return self.store.read(index) if self.store else self.prepare(self.files.read(index, self.class_names))


def _taken(names: Sequence[str], indices: np.ndarray) -> tuple[str, ...]:
    return tuple(names[index] for index in indices)


def _stack(squares: Iterable[np.ndarray], count: int, size: int) -> np.ndarray:
    """Put images (size, size, 3) together: uint8 (count, 3, size, size), in channels_last order as they come."""
    images = np.empty((count, size, size, 3), np.uint8)
    for place, square in enumerate(squares):
        images[place] = square
    return images.transpose(0, 3, 1, 2)
