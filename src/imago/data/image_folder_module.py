"""A folder of one's own pictures as a data set: its splits, and how its pictures are evaluated."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from imago.data.datamodule import ImageDataModule, available_cores
from imago.data.dataset import LabelledFiles, Splits, printable
from imago.data.image_folder import Skipped, find_splits, list_pictures, list_training_classes
from imago.data.keyed import keyed_permutation, keyed_seed
from imago.data.sampling import stratified_split
from imago.errors import ConfigError, DataError
from imago.images import SMALL_PX, Preprocess, resize_and_crop

log = logging.getLogger(__name__)

# Tells what `split_seed` is used for, so that another val_fraction leaves the test split as it was.
_TEST, _SAMPLE = 1, 2

LARGE = Preprocess(size=224, resize=256, crop="center", mean=(0.0,) * 3, std=(1.0,) * 3)  # as ImageNet nets are tested
MAX_SAMPLE = 512  # pictures that mean and std are computed from: a standard error of mean below 0.01
SAMPLE_BYTES = 100_000_000  # fewer where the files are large: a second or two of decoding
MIN_SAMPLE = 16


class ImageFolderDataModule(ImageDataModule):
    """Pictures in folders named after their classes, decoded when they are needed.

    `root` holds train/, val/ and test/ with a folder for each class, or only some of the three with train/ among them,
    or the class folders themselves. What is missing is split off the training pictures, stratified.

    Args:
        root: the folder.
        val_fraction: share of all training pictures that becomes val where there is no val/, in (0, 1).
        test_fraction: likewise for test; the two together stay below 1.
        val_as_test: take the folder's val/ for the test, as published sets without a test/ are compared by it.
        split_seed: decides which pictures are split off.
        loading: the arguments of `ImageDataModule`.

    Raises:
        ConfigError: if a fraction cannot work.
    """

    def __init__(
        self,
        root: str,
        val_fraction: float,
        test_fraction: float,
        val_as_test: bool,
        split_seed: int,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if not root:
            raise ConfigError("data.root has no value; give the folder of your pictures, e.g. data.root=~/flowers.")
        if min(val_fraction, test_fraction) <= 0 or val_fraction + test_fraction >= 1:
            raise ConfigError(
                f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} must be greater than 0 and "
                "together less than 1, e.g. 0.2 and 0.1."
            )
        self.root = Path(root).expanduser()
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.val_as_test = val_as_test
        self.split_seed = split_seed

    def load_splits(self) -> Splits:
        """List the pictures; none is opened yet.

        Raises:
            DataError: for a folder that is no data set, naming what is expected.
        """
        skipped = Skipped()
        folders = find_splits(self.root, skipped)
        class_names = list_training_classes(self.root, folders["train"])
        found = {split: list_pictures(folder, class_names, skipped) for split, folder in folders.items()}
        counts = np.bincount(found["train"].labels, minlength=len(class_names))
        if not counts.all():
            empty = printable(folders["train"] / class_names[counts.argmin()])
            raise DataError(f"{empty} has no pictures; put some there or remove the folder.")
        if skipped.count:
            log.info(
                "skipped %d files or folders without a picture, e.g. %s", skipped.count, printable(skipped.example)
            )
        return Splits(class_names, **self._complete(found))

    def own_preprocess(self) -> Preprocess:
        """Size by the size of the pictures; mean and std of a sample of the training pictures."""
        files = self._sample()
        with ThreadPoolExecutor(min(4, available_cores())) as threads:
            pictures = list(threads.map(lambda index: _shrink(files.read(index, self.class_names)), range(len(files))))
        log.info("mean and std from %s training pictures", f"{len(files):,}")
        return describe_pictures(pictures)

    def _complete(self, found: dict[str, LabelledFiles]) -> dict[str, LabelledFiles]:
        """Split off what the folder does not have."""
        if self.val_as_test:
            if "val" not in found or "test" in found:
                fault = "has a test/" if "test" in found else "has no val/"
                raise ConfigError(f"data.val_as_test=true: {printable(self.root)} {fault}; leave this setting out.")
            found["test"] = found.pop("val")
        missing = [split for split in ("test", "val") if split not in found]
        shares = {"test": self.test_fraction, "val": self.val_fraction}
        seeds = {"test": keyed_seed(self.split_seed, _TEST), "val": self.split_seed}
        total, left = len(found["train"]), 1.0
        for split in missing:
            self._split_off(split, found, shares[split] / left, seeds[split])
            left -= shares[split]
        if missing:
            parts = " and ".join(f"{len(found[split]):,} for {split}" for split in missing)
            hint = "; data.val_as_test=true tests on val/ instead" if missing == ["test"] else ""
            log.info("split off the %s training pictures, stratified: %s%s", f"{total:,}", parts, hint)
        return found

    def _split_off(self, split: str, found: dict[str, LabelledFiles], fraction: float, seed: int) -> None:
        train = found["train"]
        kept, aside = stratified_split(train.labels, fraction, seed)
        if not len(aside):
            raise DataError(
                f"data.root={printable(self.root)}: {len(train)} training pictures are too few to split {split} off; "
                f"give more, or a folder {split}/."
            )
        found["train"], found[split] = train.take(kept), train.take(aside)

    def _sample(self) -> LabelledFiles:
        """Choose the training pictures to look at: the same ones every time."""
        files: Any = self.splits.train
        order = keyed_permutation(len(files), self.split_seed, _SAMPLE)[:MAX_SAMPLE]
        num_fitting = int((np.cumsum(files.num_bytes[order]) <= SAMPLE_BYTES).sum())
        return files.take(order[: max(MIN_SAMPLE, num_fitting)])


def describe_pictures(pictures: list[np.ndarray]) -> Preprocess:
    """Say how pictures like these are evaluated.

    Args:
        pictures: uint8 (H, W, 3), those over `SMALL_PX` already as `LARGE` evaluates them.

    Returns:
        `LARGE`, or for small pictures the largest of their shorter sides as size, without any scaling if all are
        squares of that size; with mean and std of the evaluated pictures.
    """
    if max(max(pixels.shape[:2]) for pixels in pictures) <= SMALL_PX:
        size = max(min(pixels.shape[:2]) for pixels in pictures)
        shape = LARGE.to_dict() | {"size": size, "resize": size}
    else:
        shape = LARGE.to_dict()
    own = Preprocess.from_dict(shape)
    counts = np.zeros((3, 256), np.int64)
    for pixels in pictures:
        square = pixels if max(pixels.shape[:2]) > SMALL_PX else resize_and_crop(pixels, own)
        counts += [np.bincount(square[..., channel].ravel(), minlength=256) for channel in range(3)]
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    std = np.sqrt(counts @ levels**2 / counts.sum(axis=1) - mean**2)
    # A channel without any contrast (black masks) would otherwise be divided by zero.
    return Preprocess.from_dict(shape | {"mean": mean.tolist(), "std": std.clip(min=1 / 255).tolist()})


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """Keep small pictures, and of the others only what is evaluated: a sample of photographs fits in memory then."""
    return pixels if max(pixels.shape[:2]) <= SMALL_PX else resize_and_crop(pixels, LARGE)
