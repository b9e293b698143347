"""The data sets that loaders read: a whole batch per call, uint8 out, augmented only where asked."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from imago.data.augmentation import Augment, crop_and_flip, draw, gather_crop_flip, pad, random_resized_crops
from imago.data.sampling import BatchKey
from imago.errors import DataError
from imago.images import Preprocess, read_image, resize_and_crop


@dataclass(frozen=True)
class LabelledArray:
    """Pictures held in memory: `images` uint8 (N, 3, H, W), `labels` int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def identity(self) -> bytes:
        """Give what tells this set from another one, for a fingerprint."""
        return self.labels.tobytes()


@dataclass(frozen=True)
class LabelledFiles:
    """Pictures that stay on disk until they are asked for.

    Attributes:
        root: the folder that `names` start from.
        names: of the N files.
        num_bytes: size of each file, int64 (N,).
        labels: int64 (N,).
    """

    root: Path
    names: tuple[str, ...]
    num_bytes: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def paths(self) -> list[Path]:
        """Where the files are."""
        return [self.root / name for name in self.names]

    def take(self, indices: np.ndarray) -> "LabelledFiles":
        """Give some of the pictures: those at `indices`, int64 (M,)."""
        names = tuple(self.names[index] for index in indices)
        return LabelledFiles(self.root, names, self.num_bytes[indices], self.labels[indices])

    def read(self, index: int, class_names: Sequence[str]) -> np.ndarray:
        """Decode one picture: uint8 (H, W, 3).

        Raises:
            DataError: naming the file and its class.
        """
        path = self.root / self.names[index]
        try:
            return read_image(path)
        except DataError as error:
            reason = str(error).replace(str(path), printable(path))
            raise DataError(f"a picture of class {class_names[self.labels[index]]!r}: {reason}") from error

    def identity(self) -> bytes:
        """Give what tells this set from another one, for a fingerprint: labels, names and sizes."""
        names = "\0".join(self.names).encode(errors="surrogateescape")
        return self.labels.tobytes() + names + self.num_bytes.tobytes()


Pictures = LabelledArray | LabelledFiles


@dataclass(frozen=True)
class Splits:
    """A data set as its source hands it over; the order of `class_names` gives the labels their meaning."""

    class_names: tuple[str, ...]
    train: Pictures
    val: Pictures
    test: Pictures

    def named(self) -> list[tuple[str, Pictures]]:
        """Give the three with their names."""
        return [("train", self.train), ("val", self.val), ("test", self.test)]


class ArrayDataset(Dataset):
    """Serves batches of an array; give `augment` for training, leave it out for evaluation.

    Args:
        pictures: what to serve.
        augment: crop and flip settings, or None for the pictures as they are.
        seed: keys the draws together with the epoch and the sample index.
    """

    def __init__(self, pictures: LabelledArray, augment: Augment | None = None, seed: int = 0) -> None:
        self.labels = pictures.labels
        self.augment = augment
        self.seed = seed
        is_padded = augment is not None and augment.random_resized_crop_scale is None
        self.images = pad(pictures.images, augment.crop_padding_px) if augment and is_padded else pictures.images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        """Give one batch: images uint8 (B, 3, H, W) and labels int64 (B,)."""
        if self.augment is None:
            images = self.images[key.indices]
        elif self.augment.random_resized_crop_scale is None:
            draws = draw(self.augment, self.seed, key.epoch, key.indices)
            images = gather_crop_flip(self.images, key.indices, draws, self.augment.crop_padding_px)
        else:
            pictures = (self.images[index].transpose(1, 2, 0) for index in key.indices)
            size = self.images.shape[-1]
            squares = random_resized_crops(pictures, size, self.augment, (self.seed, *key))
            images = crop_and_flip(_stack(squares, len(key.indices), size), self.augment, (self.seed, *key))
        return torch.from_numpy(images), torch.from_numpy(self.labels[key.indices])


class FileDataset(Dataset):
    """Serves batches of pictures that are decoded when asked for.

    Args:
        files: what to serve.
        class_names: for the text of errors.
        preprocess: size, and how pictures are brought to it where no random crop does.
        augment: for training; None shows the pictures as they are evaluated.
        seed: keys the draws together with the epoch and the sample index.
    """

    def __init__(
        self,
        files: LabelledFiles,
        class_names: Sequence[str],
        preprocess: Preprocess,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.files = files
        self.class_names = class_names
        self.preprocess = preprocess
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.files)

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
        size = self.preprocess.size
        pictures = (self.files.read(index, self.class_names) for index in key.indices)
        squares: Iterator[np.ndarray]
        if self.augment is None or self.augment.random_resized_crop_scale is None:
            squares = (resize_and_crop(picture, self.preprocess) for picture in pictures)
        else:
            squares = random_resized_crops(pictures, size, self.augment, (self.seed, *key))
        images = _stack(squares, len(key.indices), size)
        if self.augment is not None:
            images = crop_and_flip(images, self.augment, (self.seed, *key))
        return torch.from_numpy(images), torch.from_numpy(self.files.labels[key.indices])


def printable(path: Path | str) -> str:
    """Give a name that fits on one line of any screen or log: escaped where it has bytes or signs that do not."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _stack(squares: Iterable[np.ndarray], count: int, size: int) -> np.ndarray:
    """Put pictures (size, size, 3) together: uint8 (count, 3, size, size)."""
    images = np.empty((count, 3, size, size), np.uint8)
    for place, square in enumerate(squares):
        images[place] = square.transpose(2, 0, 1)
    return images
