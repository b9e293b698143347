"""Provide the image classification datasets of torchvision by name, in memory."""

import difflib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from imago.data.datamodule import ClassNamesAndSplits, ImageDataModule
from imago.data.dataset import LabeledArray, Samples, numbered_names
from imago.data.examine import progress
from imago.data.image_statistics import channel_statistics
from imago.download import data_directories, download_dataset
from imago.errors import ConfigError, DataError
from imago.images import Preprocess, resize_and_crop
from imago.resources import available_memory_bytes
from imago.seeding import TORCHVISION_STATISTICS_KEY, random_permutation

_BY_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_ALL_THREE = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_TRAIN_ONLY: dict[str, dict[str, Any]] = {"train": {}}  # data.test_fraction then splits test off

# Arguments of the class in torchvision.datasets for each split. torchvision has no common convention for them.
SPLIT_ARGUMENTS: dict[str, Mapping[str, Mapping[str, Any]]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS"), _BY_TRAIN_FLAG),
    **dict.fromkeys(("SVHN", "STL10", "GTSRB", "Food101"), _TRAIN_TEST),
    **dict.fromkeys(("Flowers102", "DTD", "FGVCAircraft", "PCAM", "RenderedSST2"), _ALL_THREE),
    **dict.fromkeys(("EuroSAT", "SEMEION", "Caltech256", "SUN397"), _TRAIN_ONLY),
    "EMNIST": {split: {"split": "balanced", **flag} for split, flag in _BY_TRAIN_FLAG.items()},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Country211": {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
}
# Images from which mean and std are computed. Pixels in [0, 1] have a std of at most 0.5, so the standard error of the
# mean is at most 0.5 / sqrt(5,000) = 0.007; our own choice.
MAX_STATISTICS_IMAGES = 5_000
_REMEDY = "data.size=SIDE crops and resizes them, e.g. data.size=64"


class TorchvisionDataModule(ImageDataModule):
    """Load a dataset of `torchvision.datasets`, downloaded by torchvision on first use.

    Args:
        name: class name, e.g. CIFAR100.
        data_dir: directory of its files; missing ones are downloaded.
        size: height and width that images are cropped and resized to, in pixels; None keeps the original size, which
            must be the same for all images.
        settings: arguments of `ImageDataModule`.

    Raises:
        ConfigError: if `name` is not in `SPLIT_ARGUMENTS`.
    """

    def __init__(self, name: str, data_dir: str, size: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if name not in SPLIT_ARGUMENTS:
            match = difflib.SequenceMatcher
            close = sorted(SPLIT_ARGUMENTS, key=lambda known: -match(None, name.lower(), known.lower()).ratio())
            raise ConfigError(f"data.name={name} is not a supported dataset; nearest first: {', '.join(close)}.")
        if size is not None and size < 1:
            raise ConfigError(f"data.size={size} must be 1 or more, or null for images as they are.")
        self.dataset_name = name
        self.data_dir = Path(data_dir)
        self.size = size

    def load_dataset(self) -> ClassNamesAndSplits:
        """Read every published split."""
        arguments = SPLIT_ARGUMENTS[self.dataset_name]
        sources: dict[str, Any] = {split: self._open(arguments[split]) for split in arguments}
        splits: dict[str, Samples] = {split: self._read(split, source) for split, source in sources.items()}
        num_classes = 1 + max(int(samples.labels.max()) for samples in splits.values())
        names = getattr(sources["train"], "classes", None) or map(str, range(num_classes))
        return tuple(name if isinstance(name, str) else name[0] for name in names), splits  # or tuples of synonyms

    def default_preprocess(self) -> Preprocess:
        """Keep the size; compute mean and std from a sample of the training images."""
        train: Any = self.splits.train
        order = random_permutation(len(train), self.split_plan.split_seed, TORCHVISION_STATISTICS_KEY)
        sample = train.images[order[:MAX_STATISTICS_IMAGES]]
        size = train.images.shape[-1]
        return Preprocess(size, size, "center", **channel_statistics(sample.transpose(0, 2, 3, 1)))

    def _open(self, arguments: Mapping[str, Any]) -> Any:
        """Open one split, or download it; without a network that raises a DataError within seconds."""
        import torchvision.datasets

        source: Any = getattr(torchvision.datasets, self.dataset_name)
        for directory in data_directories(self.data_dir):
            with suppress(RuntimeError, FileNotFoundError):  # raised by torchvision if files are missing
                return source(str(directory), download=False, **arguments)
        # The classes of torchvision store their URLs in different attributes, so all attributes are searched.
        urls = re.findall(r"'(https?://[^']+)'", str(list(vars(source).values())))
        remedy = "put torchvision's files there or set paths.data_dir"
        return download_dataset(source, next(iter(urls), None), self.data_dir, remedy, **arguments)

    def _read(self, split: str, source: Any) -> LabeledArray:
        num_images, side = len(source), self.size or source[0][0].height
        if num_images * 3 * side**2 > available_memory_bytes():
            fault = f"{num_images:,} images of {self.dataset_name}, {side}x{side} each, do not fit in memory"
            raise DataError(f"{fault}; {_REMEDY}.")
        images, labels = np.empty((num_images, 3, side, side), np.uint8), np.empty(num_images, np.int64)
        for index in progress(range(num_images), f"reading {split}"):
            image, labels[index] = source[index]
            pixels = np.asarray(image.convert("RGB"))
            if self.size is not None:
                pixels = resize_and_crop(pixels, Preprocess(side, side, "center", (0.0,) * 3, (1.0,) * 3))
            if pixels.shape != (side, side, 3):
                example = f"e.g. image {index}: {image.width}x{image.height}"
                raise DataError(f"images of {self.dataset_name} are not squares of one size, {example}; {_REMEDY}.")
            images[index] = pixels.transpose(2, 0, 1)
        return LabeledArray(images, labels, numbered_names(split, num_images))
