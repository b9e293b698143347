"""The data sets that loaders read: a whole batch per call, uint8 out, augmented only where asked."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from imago.data.augmentation import Augment, draw, gather_crop_flip, pad
from imago.data.sampling import BatchKey


@dataclass(frozen=True)
class LabelledArray:
    """Pictures held in memory: `images` uint8 (N, 3, H, W), `labels` int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """A data set as its source hands it over; the order of `class_names` gives the labels their meaning."""

    class_names: tuple[str, ...]
    train: LabelledArray
    val: LabelledArray
    test: LabelledArray

    def named(self) -> list[tuple[str, LabelledArray]]:
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
        self.images = pad(pictures.images, augment.crop_padding_px) if augment else pictures.images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        """Give one batch: images uint8 (B, 3, H, W) and labels int64 (B,)."""
        if self.augment is None:
            images = self.images[key.indices]
        else:
            draws = draw(self.augment, self.seed, key.epoch, key.indices)
            images = gather_crop_flip(self.images, key.indices, draws, self.augment.crop_padding_px)
        return torch.from_numpy(images), torch.from_numpy(self.labels[key.indices])
