"""Provide any `torch.utils.data.Dataset` of (image, label)."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset
from tqdm import tqdm

from imago.augment.settings import Augment
from imago.data.csv_list import check_class_names
from imago.data.datamodule import ClassNamesAndSplits, ImageDataModule
from imago.data.dataset import FileDataset, LabeledDataset
from imago.data.image_statistics import preprocess_for_images, shrink
from imago.data.sampling import BatchIndices
from imago.data.torch_sample import read_sample
from imago.errors import DataError
from imago.images import Preprocess, resize_and_crop
from imago.instantiate import build
from imago.seeding import random_permutation

_STATISTICS_KEY = 5  # key of this use of `split_seed`
# Images from which mean and std are computed: a standard error of the mean below 0.01; our own choice.
MAX_STATISTICS_IMAGES = 512
_NUM_HASHED = 1000  # images in the fingerprint, spread evenly; our own choice


class TorchDatasetDataModule(ImageDataModule):
    """Load any torch Dataset of (image, label); its images may have any size and are read one at a time.

    A Dataset may draw random numbers: before each read torch, numpy and random are seeded by (seed, epoch, index).
    Evaluation uses the same draws every time; random augmentation of the training images belongs in `augment.extra`.

    Args:
        train: node with `_target_` and the arguments of the Dataset, or a Dataset.
        val: likewise; None splits it off train.
        test: likewise.
        settings: arguments of `ImageDataModule`.
    """

    def __init__(self, train: Any, val: Any = None, test: Any = None, **settings: Any) -> None:
        super().__init__(**settings)
        self._sources = {"train": train, "val": val, "test": test}

    def load_dataset(self) -> ClassNamesAndSplits:
        """Build the Datasets; class names are their `classes`, labels their `targets` or `labels`, else those read."""
        sources = {split: _open(source, split) for split, source in self._sources.items() if source is not None}
        labels = {split: _labels(source, split) for split, source in sources.items()}
        class_names = _class_names(sources, 1 + max(int(numbers.max(initial=0)) for numbers in labels.values()))
        names = {split: tuple(f"{split}/{index:05d}" for index in range(len(labels[split]))) for split in sources}
        self._published = {split: LabeledDataset(sources, names[split], labels[split]) for split in sources}
        return class_names, dict(self._published)

    def default_preprocess(self) -> Preprocess:
        """Choose the size by the size of the images; compute mean and std from a sample of the training images."""
        train: Any = self.splits.train
        order = random_permutation(len(train), self.split_plan.split_seed, _STATISTICS_KEY)[:MAX_STATISTICS_IMAGES]
        return preprocess_for_images([shrink(train.read(index)) for index in _progress(order.tolist(), "mean and std")])

    def fingerprint(self) -> str:
        """Return a short hash of class names, split sizes, labels, and 1,000 images."""
        return hashlib.sha256((super().fingerprint() + self._hash_of_images).encode()).hexdigest()[:16]

    def fill_cache(self, num_processes: int, num_epochs: float) -> str:
        """Return that nothing is kept."""
        return "none: the dataset is read in every epoch"

    def dataset(self, split: str, augment: Augment | None = None) -> FileDataset:
        """Return the preprocessed images of a split, augmented as far as `augment` asks for it in the data loader."""
        samples: Any = getattr(self.splits, split)
        crops_at_random = augment is not None and augment.random_resized_crop_scale is not None
        prepare = np.asarray if crops_at_random else partial(resize_and_crop, preprocess=self.preprocess)
        seed = 0 if augment is None else self.seed  # the images of an evaluation do not depend on the run
        return _SeededDataset(samples.labels, samples.read, self.preprocess.size, augment, seed, prepare)

    @cached_property
    def _hash_of_images(self) -> str:
        digest = hashlib.sha256()
        for split, samples in self._published.items():
            num_images = min(len(samples), _NUM_HASHED // len(self._published))
            indices = np.linspace(0, len(samples) - 1, num_images).astype(np.int64)
            for index in _progress(indices.tolist(), f"fingerprint of {split}"):
                pixels = samples.read(index)
                digest.update(f"{pixels.shape}".encode() + pixels.tobytes())
        return digest.hexdigest()


@dataclass(eq=False)
class _SeededDataset(FileDataset):
    """A `FileDataset` whose `read` is `LabeledDataset.read`, which gets seed and epoch; `prepare` follows it."""

    prepare: Callable[[np.ndarray], np.ndarray] = np.asarray

    def read_images(self, key: BatchIndices) -> Iterator[np.ndarray]:
        read: Callable[..., np.ndarray] = self.read
        epochs = np.broadcast_to(key.epoch_keys, len(key.indices))
        for index, epoch in zip(key.indices, epochs, strict=True):
            yield self.prepare(read(index, key=(self.seed, epoch)))


def _open(source: Any, split: str) -> Any:
    """Build a Dataset.

    Raises:
        DataError: if it has no length or no index, or its files are missing.
    """
    try:
        source = build(source) if isinstance(source, Mapping) else source
    except OSError as error:
        raise DataError(f"data.{split}: {error}; correct the arguments data.{split}.NAME=VALUE.") from error
    if isinstance(source, IterableDataset) or not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        wanted = "wanted a torch.utils.data.Dataset with __len__ and __getitem__, so that images can be split"
        raise DataError(f"data.{split} is a {type(source).__name__}; {wanted}.")
    return source


def _labels(source: Any, split: str) -> np.ndarray:
    """Return the labels that a Dataset has as `targets` or `labels`, else read all samples: int64 (N,)."""
    for values in (getattr(source, name, None) for name in ("targets", "labels")):
        with suppress(ValueError, TypeError):  # raised for lists of different lengths: no labels
            labels = np.asarray(values)
            if labels.shape == (len(source),) and labels.dtype.kind in "iu":
                return labels.astype(np.int64)
    indices = _progress(range(len(source)), f"labels of {split}")
    return np.array([read_sample(source, index, split)[1] for index in indices], np.int64)


def _class_names(sources: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """Return the `classes` of the Datasets, else numbers.

    Raises:
        DataError: if those of two Datasets differ, or two classes have the same name.
    """
    given = {split: source.classes for split, source in sources.items() if getattr(source, "classes", None)}
    names = {split: [str(n[0] if isinstance(n, (tuple, list)) else n) for n in given[split]] for split in given}
    first = next(iter(names), "train")
    for split, found in names.items():
        if found != names[first]:
            fault = f"has the classes {found}, and data.{first} has {names[first]}"
            raise DataError(f"data.{split} {fault}; they must be equal, since a label is an index in them.")
        if len(set(found)) < len(found):
            raise DataError(f"data.{split}: two of the classes {found} have the same name; rename one.")
    class_names = tuple(names.get(first, map(str, range(num_classes))))
    check_class_names(class_names, "data.train: the classes")
    return class_names


def _progress(indices: Any, description: str) -> Any:
    is_hidden = True if os.environ.get("LOCAL_RANK", "0") != "0" else None  # None: unless stderr is a terminal
    return tqdm(indices, desc=description, unit="image", leave=False, disable=is_hidden)
