"""Provide any `torch.utils.data.Dataset` of (image, label)."""

import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imago.augment.own_transforms import describe
from imago.augment.settings import Augment
from imago.data.csv_list import check_class_names
from imago.data.datamodule import ClassNamesAndSplits, ImageDataModule
from imago.data.dataset import FileDataset, Samples, concatenate, has_random_resized_crop, numbered_names
from imago.data.examine import progress
from imago.data.image_statistics import MAX_STATISTICS_IMAGES, preprocess_for_images, shrink
from imago.data.sampling import BatchIndices
from imago.errors import DataError
from imago.images import Preprocess, resize_and_crop, to_pixels
from imago.instantiate import build
from imago.seeding import DATASET_STATISTICS_KEY, random_permutation, seeded

_NUM_HASHED = 1000  # images in the fingerprint, spread evenly; our own choice


@dataclass(frozen=True)
class LabeledDataset(Samples):
    """Samples of torch Datasets, which are read on access."""

    sources: Mapping[str, Any]  # the Dataset of each published split
    names: tuple[str, ...]  # published split and index of each sample in its Dataset, e.g. "train/00042"
    labels: np.ndarray  # int64 (N,)

    def read(self, index: int, class_names: Sequence[str] = (), key: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Read one image, uint8 (H, W, 3), as `read_sample` does; raise a DataError if it has another label."""
        split, _, number = self.names[index].partition("/")
        pixels, label = read_sample(self.sources[split], int(number), split, key)
        if label != self.labels[index]:
            fault = f"the label of sample {number} is {label}, but {self.labels[index]} in its targets or labels"
            raise DataError(f"data.{split}: {fault}; a target_transform must change both.")
        return pixels


class TorchDatasetDataModule(ImageDataModule):
    """Load any torch Dataset of (image, label); its images may have any size and are read one at a time.

    A Dataset may draw random numbers: before each read torch, numpy and random are seeded by (seed, epoch, index).
    Evaluation uses the same draws every time; random augmentation of the training images belongs in `augment.extra`.

    Args:
        train: node with `_target_` and the arguments of the Dataset, or a Dataset.
        val: the same for validation; None splits it off train.
        test: the same for the test.
        settings: arguments of `ImageDataModule`.
    """

    def __init__(self, train: Any, val: Any = None, test: Any = None, **settings: Any) -> None:
        super().__init__(**settings)
        self._sources = {"train": train, "val": val, "test": test}

    def load_dataset(self) -> ClassNamesAndSplits:
        """Build the Datasets; class names are their `classes`, labels their `targets` or `labels`, else those read."""
        sources = {split: _open(source, split) for split, source in self._sources.items() if source is not None}
        labels = {split: _labels(source, split) for split, source in sources.items()}
        published: dict[str, Samples] = {}
        for split, numbers in labels.items():
            published[split] = LabeledDataset(sources, numbered_names(split, len(numbers)), numbers)
        self._all = concatenate(list(published.values()))
        return _class_names(sources, 1 + max(int(numbers.max(initial=0)) for numbers in labels.values())), published

    def default_preprocess(self) -> Preprocess:
        """Choose the size by the size of the images; compute mean and std from a sample of the training images."""
        train: Any = self.splits.train
        order = random_permutation(len(train), self.split_plan.split_seed, DATASET_STATISTICS_KEY)
        sample = order[:MAX_STATISTICS_IMAGES].tolist()
        return preprocess_for_images([shrink(train.read(index)) for index in progress(sample, "mean and std")])

    @cached_property
    def _hash_of_images(self) -> str:
        digest = hashlib.sha256()
        indices = np.linspace(0, len(self._all) - 1, min(len(self._all), _NUM_HASHED)).astype(np.int64)
        for index in progress(indices.tolist(), "fingerprint"):
            pixels = self._all.read(index)
            digest.update(f"{pixels.shape}".encode() + pixels.tobytes())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Return a short hash of class names, split sizes, labels, and 1,000 images."""
        return hashlib.sha256((super().fingerprint() + self._hash_of_images).encode()).hexdigest()[:16]

    def fill_cache(self, num_processes: int, num_epochs: float) -> str:
        """Return that nothing is cached."""
        return "none: the dataset is read in every epoch"

    def dataset(self, split: str, augment: Augment | None = None) -> FileDataset:
        """Return the preprocessed images of a split, with those parts of `augment` that the data loader applies."""
        samples: Any = getattr(self.splits, split)
        resize = partial(resize_and_crop, preprocess=self.preprocess)
        prepare = np.asarray if has_random_resized_crop(augment) else resize
        seed = 0 if augment is None else self.seed  # the images of an evaluation do not depend on the run
        return _SeededDataset(samples.labels, samples.read, self.preprocess.size, augment, seed, prepare)


@dataclass(eq=False)
class _SeededDataset(FileDataset):
    """A `FileDataset` whose `read` is `LabeledDataset.read`, which gets seed and epoch; then `prepare` is applied."""

    prepare: Callable[[np.ndarray], np.ndarray] = np.asarray

    def read_images(self, key: BatchIndices) -> Iterator[np.ndarray]:
        read: Callable[..., np.ndarray] = self.read
        epochs = np.broadcast_to(key.epoch_keys, len(key.indices))
        for index, epoch in zip(key.indices, epochs, strict=True):
            yield self.prepare(read(index, key=(self.seed, epoch)))


def read_sample(source: Any, index: int, split: str, key: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, int]:
    """Read an image, uint8 (H, W, 3), and its label from the Dataset data.`split`.

    The generators of torch, numpy and random are seeded by `key`, which is seed and epoch, and `index`.

    Raises:
        DataError: if the file of the sample cannot be read, or the sample is not an image with a label.
    """
    where = f"data.{split}, {type(source).__name__}: sample {index}"
    pixels, number = np.empty(0), -1
    try:
        with seeded(*key, index):
            sample = source[index]
        image, label = sample if isinstance(sample, (tuple, list)) and len(sample) == 2 else (None, None)
        if isinstance(image, Image.Image):
            pixels = to_pixels(image, where)  # Pillow may decode only here
    except OSError as error:  # Pillow's UnidentifiedImageError is one
        raise DataError(f"{where} cannot be read: {error}; repair the file or leave it out.") from error
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) in (1, 3):
        pixels = np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy(force=True))
    with suppress(TypeError, ValueError):  # if the label is not a whole number
        number = operator.index(label)  # type: ignore[arg-type]
    if not pixels.size or number < 0:
        wanted = "a PIL image or uint8 tensor (3, H, W) or (1, H, W), without ToTensor and Normalize"
        raise DataError(f"{where} is {describe(sample)}, wanted (image, label): {wanted}; and a whole number from 0.")
    return pixels, number


def _open(source: Any, split: str) -> Any:
    """Build a Dataset; raise a DataError if its files are missing, or it has no length or index."""
    try:
        source = build(source) if isinstance(source, Mapping) else source
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(source["_target_"]).startswith("torchvision.datasets."):
            raise  # torchvision raises it for missing files
        raise DataError(f"data.{split}: {error}; correct the arguments data.{split}.NAME=VALUE.") from error
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
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
    indices = progress(range(len(source)), f"labels of {split}")
    return np.array([read_sample(source, index, split)[1] for index in indices], np.int64)


def _class_names(sources: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """Return the `classes` of the Datasets, else numbers; raise a DataError if those of two Datasets differ."""
    found = [getattr(source, "classes", None) for source in sources.values()]
    given: list[Any] = [list(classes) for classes in found if classes is not None and len(classes)]
    first, *others = given or [range(num_classes)]
    for other in others:
        if other != first:
            raise DataError(
                f"data.train, data.val and data.test have the classes {first} and {other}; make them equal."
            )
    class_names = tuple(str(name[0] if isinstance(name, (tuple, list)) else name) for name in first)
    check_class_names(class_names, "data.train: the classes")
    return class_names
