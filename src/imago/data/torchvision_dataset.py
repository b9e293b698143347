"""Any of torchvision's data sets of images and labels, by name, held in memory."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from imago.data.datamodule import Found, ImageDataModule
from imago.data.dataset import LabeledArray, Samples
from imago.data.image_statistics import channel_statistics
from imago.download import is_reachable
from imago.errors import ConfigError, DataError
from imago.images import Preprocess, resize_and_crop
from imago.resources import available_memory_bytes
from imago.seeding import random_permutation

_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_ALL_THREE = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_WHOLE: dict[str, dict[str, Any]] = {"train": {}}  # published without a test split: data.test_fraction says how much

# What torchvision's class wants to hear for each split.
SETS: dict[str, Mapping[str, Mapping[str, Any]]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS"), _FLAG),
    **dict.fromkeys(("SVHN", "STL10", "GTSRB", "Food101"), _TRAIN_TEST),
    **dict.fromkeys(("Flowers102", "DTD", "FGVCAircraft", "PCAM", "RenderedSST2"), _ALL_THREE),
    **dict.fromkeys(("EuroSAT", "SEMEION", "Caltech256", "SUN397"), _WHOLE),
    "EMNIST": {split: {"split": "balanced", **flag} for split, flag in _FLAG.items()},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Country211": {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
}
MAX_SAMPLE = 5_000  # images that mean and std are computed from
_SAMPLE = 4  # tells what `split_seed` is used for


class TorchvisionDataModule(ImageDataModule):
    """A set of `torchvision.datasets`, downloaded by torchvision on first use.

    Args:
        name: of the class, e.g. CIFAR100.
        data_dir: where its files are or go.
        size: side of the squares that images are kept at, in pixels; None keeps them as they are, which must then all
            have one size.
        settings: the arguments of `ImageDataModule`.

    Raises:
        ConfigError: for a name that is not in `SETS`.
    """

    def __init__(self, name: str, data_dir: str, size: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if name not in SETS:
            close = sorted(SETS, key=lambda known: -difflib.SequenceMatcher(None, name.lower(), known.lower()).ratio())
            raise ConfigError(
                f"data.name={name} is not a set this project can read; nearest first: {', '.join(close)}."
            )
        if size is not None and size < 1:
            raise ConfigError(f"data.size={size} must be 1 or more, or null for images as they are.")
        self.set_name = name
        self.data_dir = Path(data_dir)
        self.size = size

    def find_images(self) -> Found:
        """Read every split that torchvision has."""
        sources: dict[str, Any] = {split: self._open(how) for split, how in SETS[self.set_name].items()}
        parts: dict[str, Samples] = {split: self._read(split, source) for split, source in sources.items()}
        num_classes = 1 + max(int(part.labels.max()) for part in parts.values())
        names = getattr(sources["train"], "classes", None) or [str(label) for label in range(num_classes)]
        return tuple(name if isinstance(name, str) else name[0] for name in names), parts  # some have synonyms

    def default_preprocess(self) -> Preprocess:
        """No resizing; mean and std of a sample of the training images."""
        train: Any = self.splits.train
        sample = train.images[random_permutation(len(train), self.plan.split_seed, _SAMPLE)[:MAX_SAMPLE]]
        mean, std = channel_statistics(sample.transpose(0, 2, 3, 1))
        size = train.images.shape[-1]
        shape = {"size": size, "resize": size, "crop": "center"}
        return Preprocess.from_dict(shape | {"mean": mean, "std": std})

    def _open(self, how: Mapping[str, Any]) -> Any:
        """Open one split, downloading it if it is not there.

        Raises:
            DataError: within seconds, if it is not there and there is no network.
        """
        import torchvision.datasets

        source: Any = getattr(torchvision.datasets, self.set_name)
        for folder in (self.data_dir, Path(os.environ.get("IMAGO_DATA_DIR") or self.data_dir)):
            with suppress(RuntimeError, FileNotFoundError):  # torchvision's words for "not there"
                return source(str(folder), download=False, **how)
        address = next(_addresses(vars(source).values()), None)
        if address and not is_reachable(address):
            raise DataError(
                f"{self.set_name} is not in {self.data_dir} and cannot be downloaded (no network); put torchvision's "
                "files there or set paths.data_dir. data=shapes needs no data and no network."
            )
        try:
            return source(str(self.data_dir), download=True, **how)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"the download of {self.set_name} into {self.data_dir} failed: {reason}; put torchvision's files there."
            ) from error

    def _read(self, split: str, source: Any) -> LabeledArray:
        count = len(source)
        first = self._square(np.asarray(source[0][0].convert("RGB")), 0)
        if count * first.nbytes > available_memory_bytes():
            raise DataError(
                f"{count:,} images of {self.set_name}, {_in_px(first)} each, do not fit in the memory there is; "
                "data.size=SIDE keeps smaller squares, e.g. data.size=64."
            )
        images, labels = np.empty((count, 3, *first.shape[:2]), np.uint8), np.empty(count, np.int64)
        for place in tqdm(range(count), desc=f"reading {split}", leave=False, disable=None):
            image, labels[place] = source[place]
            square = self._square(np.asarray(image.convert("RGB")), place)
            if square.shape != first.shape:
                raise DataError(
                    f"{self.set_name} has images of several sizes, e.g. {_in_px(first)} and {_in_px(square)}; "
                    "data.size=SIDE cuts squares of one size out of them, e.g. data.size=64."
                )
            images[place] = square.transpose(2, 0, 1)
        return LabeledArray(images, labels, tuple(f"{split}/{place:05d}" for place in range(count)))

    def _square(self, pixels: np.ndarray, place: int) -> np.ndarray:
        if self.size is not None:
            return resize_and_crop(pixels, Preprocess(self.size, self.size, "center", (0.0,) * 3, (1.0,) * 3))
        if pixels.shape[0] != pixels.shape[1]:
            raise DataError(
                f"image {place} of {self.set_name} is {_in_px(pixels)}, not a square; data.size=SIDE cuts squares."
            )
        return pixels


def _addresses(values: Iterable[Any]) -> Iterator[str]:
    """Find the web addresses among the attributes of torchvision's class, which has no one name for them."""
    for value in values:
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _addresses(value)
        elif isinstance(value, dict):
            yield from _addresses(value.values())


def _in_px(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
