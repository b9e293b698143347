"""Provide the datasets of image files: a folder per class, or a CSV list; decoded on access or cached."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from imago.augment.resized_crop import limit_shorter_side
from imago.augment.settings import Augment
from imago.data.csv_list import files_from_list, read_list
from imago.data.datamodule import ClassNamesAndSplits, ImageDataModule
from imago.data.dataset import FileDataset, LabeledFiles, Samples, has_random_resized_crop
from imago.data.examine import examine, map_in_threads
from imago.data.folder_listing import list_image_folder
from imago.data.groups import groups_by_pattern
from imago.data.image_cache import CACHE_MODES, ImageCache, build_cache, choose_cache, estimate_bytes, open_cache
from imago.data.image_statistics import MAX_STATISTICS_IMAGES, preprocess_for_images, shrink
from imago.errors import ConfigError
from imago.files import write_csv
from imago.images import MAX_PIXELS, Preprocess, resize_and_crop
from imago.seeding import FILE_STATISTICS_KEY, random_permutation
from imago.text import counted

log = logging.getLogger(__name__)

MAX_STATISTICS_BYTES = 100_000_000  # fewer images if the files are large: a second or two of decoding; our own choice
MIN_STATISTICS_IMAGES = 16  # even if they exceed MAX_STATISTICS_BYTES; our own choice
ON_BAD_IMAGE = ("error", "skip")


class FileDataModule(ImageDataModule):
    """Load a dataset of image files; a subclass implements `list_files`.

    Args:
        root: directory of the images; `~` is expanded.
        cache_dir: the directory of decoded images and of the results of decoding tests.
        cache: where decoded images are kept from the first epoch on: "none", "ram", "disk", or "auto", which chooses
            one of them by the available space. The pixels are the same.
        decoded_px: shorter side that training images are scaled down to before a random resized crop; None crops the
            original image.
        on_bad_image: "error" stops at an image that cannot be read; "skip" decodes every image before the run and
            leaves unreadable ones out.
        max_pixels: larger images are not read.
        settings: arguments of `ImageDataModule`.

    Raises:
        ConfigError: if an argument is invalid.
    """

    group_settings: tuple[str, ...] = ("group_pattern",)

    def __init__(
        self,
        root: str,
        cache_dir: str,
        cache: str = "none",
        decoded_px: int | None = None,
        on_bad_image: str = "error",
        max_pixels: int = MAX_PIXELS,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if not root:
            raise ConfigError("data.root has no value; set it to the folder of your images, e.g. data.root=~/flowers.")
        for key, value, known in (("on_bad_image", on_bad_image, ON_BAD_IMAGE), ("cache", cache, CACHE_MODES)):
            if value not in known:
                raise ConfigError(f"data.{key}={value} is not one of {', '.join(known)}.")
        if decoded_px is not None and decoded_px < 1:
            raise ConfigError(f"data.decoded_px={decoded_px} must be 1 or more, or null for images as they are.")
        self.root = Path(root).expanduser()
        self.cache_dir = Path(cache_dir)
        self.cache = cache
        self.decoded_px = decoded_px
        self.on_bad_image = on_bad_image
        self.max_pixels = max_pixels
        self._caches: dict[tuple[str, str], ImageCache] = {}  # by split and preparation

    def list_files(self) -> tuple[tuple[str, ...], dict[str, LabeledFiles]]:
        """Return the class names and the files of each split, without opening any image.

        Raises:
            DataError: if there is no such dataset; names what is expected.
        """
        raise NotImplementedError

    def load_dataset(self) -> ClassNamesAndSplits:
        """List the files; with `on_bad_image="skip"`, leave unreadable ones out."""
        class_names, listed = self.list_files()
        splits = {split: replace(files, max_pixels=self.max_pixels) for split, files in listed.items()}
        if pattern := self.split_plan.group_pattern:
            splits = {s: replace(files, groups=groups_by_pattern(files.names, pattern)) for s, files in splits.items()}
        if self.on_bad_image == "skip":
            num_images = sum(map(len, splits.values()))
            for split, files in splits.items():
                examined = examine(files, self.cache_dir)
                reasons = zip(files.names, examined.errors, strict=True)
                self.bad_images += [(name, error) for name, error in reasons if error]
                splits[split] = files.take(np.flatnonzero(examined.is_good))
            if num_bad := len(self.bad_images):
                share = 100 * num_bad / num_images
                log.warning("left out %s that cannot be read (%.2g %%)", counted(num_bad, "image"), share)
        return class_names, dict(splits)

    def default_preprocess(self) -> Preprocess:
        """Choose the size by the size of the images; compute mean and std from a sample of the training images."""
        train: Any = self.splits.train
        order = random_permutation(len(train), self.split_plan.split_seed, FILE_STATISTICS_KEY)[:MAX_STATISTICS_IMAGES]
        num_fitting = int((np.cumsum(train.num_bytes[order]) <= MAX_STATISTICS_BYTES).sum())
        sample = order[: max(MIN_STATISTICS_IMAGES, num_fitting)].tolist()
        images = map_in_threads(lambda index: shrink(train.read(index, self.class_names)), sample, "mean and std")
        preprocess = preprocess_for_images(list(images))
        log.info("mean and std from %s", counted(len(sample), "training image"))
        return preprocess

    def write_split(self, directory: Path) -> None:
        """Write `split.csv` and, if images were left out, `bad_images.csv`."""
        super().write_split(directory)
        if self.bad_images:
            write_csv(directory / "bad_images.csv", [("path", "reason"), *self.bad_images])

    def fill_cache(self, num_processes: int, num_epochs: float) -> str:
        """Decode the training and validation images once, before the first epoch, as `cache` says.

        `num_processes` train on this machine. "auto" keeps nothing for a single epoch. Return the kind of cache and the
        reason, for the log.

        Raises:
            UserError: if there is too little space, or an image cannot be read.
        """
        self._warn_about_decoded_px()
        if self.cache == "none":
            return "none (data.cache=none)"
        if self.cache == "auto" and num_epochs <= 1:
            return "none (one epoch reads each image once)"
        augments = {"train": self.augment, "val": None}
        files: dict[str, Any] = {split: getattr(self.splits, split) for split in augments}
        num_bytes = existing_bytes = 0
        for split, augment in augments.items():
            split_bytes = len(files[split]) * 3 * self.preprocess.size**2
            if has_random_resized_crop(augment):
                split_bytes = estimate_bytes(files[split], self.decoded_px)
            num_bytes += split_bytes
            _, preparation = self._reader(files[split], augment)
            existing_bytes += split_bytes if open_cache(files[split], self.cache_dir, preparation) else 0
        # The copies of lower ranks may be in memory already.
        num_copies_to_make = num_processes - int(os.environ.get("LOCAL_RANK", "0"))
        kind, reason = choose_cache(self.cache, num_bytes, self.cache_dir, num_copies_to_make, existing_bytes)
        if kind == "none":
            return f"none: {reason}"
        for split, augment in augments.items():
            read, preparation = self._reader(files[split], augment)
            self._caches[split, preparation] = build_cache(files[split], read, kind, self.cache_dir, preparation)
        return f"{'in memory' if kind == 'ram' else f'in {self.cache_dir}'}: {reason}"

    @property
    def is_cached(self) -> bool:
        """Whether decoded images are cached, so that no epoch has to decode them."""
        return bool(self._caches)

    def _warn_about_decoded_px(self) -> None:
        if self.decoded_px and not has_random_resized_crop(self.augment):
            log.warning("data.decoded_px=%d has no effect without augment.random_resized_crop_scale", self.decoded_px)
        elif self.decoded_px and self.decoded_px < self.preprocess.size:
            text = "data.decoded_px=%d is less than preprocess.size=%d: training images are blurred"
            log.warning(text, self.decoded_px, self.preprocess.size)

    def _reader(self, files: LabeledFiles, augment: Augment | None) -> tuple[Callable[[int], np.ndarray], str]:
        """Return the function that reads an image as it is cached and then augmented, and its preparation as text."""
        if has_random_resized_crop(augment):
            prepare = partial(limit_shorter_side, max_shorter_side_px=self.decoded_px)
            preparation = f"decoded_px={self.decoded_px}"
        else:
            prepare = partial(resize_and_crop, preprocess=self.preprocess)
            names = ("size", "resize", "crop", "interpolation")
            preparation = " ".join(f"{name}={getattr(self.preprocess, name)}" for name in names)
        return partial(read_prepared, files, self.class_names, prepare), preparation

    def dataset(self, split: str, augment: Augment | None = None) -> FileDataset:
        """Return the preprocessed images of a split, with those parts of `augment` that the loader applies."""
        files: Any = getattr(self.splits, split)
        read, preparation = self._reader(files, augment)
        if cache := self._caches.get((split, preparation)):
            read = cache.read
        return FileDataset(files.labels, read, self.preprocess.size, augment, self.seed)


def read_prepared(
    files: Samples, class_names: Sequence[str], prepare: Callable[[np.ndarray], np.ndarray], index: int
) -> np.ndarray:
    """Decode and prepare an image; not a method, so that workers get the files without the data module."""
    return prepare(files.read(index, class_names))


class ImageFolderDataModule(FileDataModule):
    """Load images from a folder per class, in `root`, or in train, val and test folders of `root`."""

    def list_files(self) -> tuple[tuple[str, ...], dict[str, LabeledFiles]]:
        """List the images; the classes are those of the training images."""
        class_names, files, self.ignored_entries = list_image_folder(self.root, self.needs_train)
        return class_names, files


class ImageListDataModule(FileDataModule):
    """Load the images that the CSV `list_file` lists in the columns path, label and, optionally, split.

    The paths are relative to `root`, or to the directory of the CSV; `settings` are arguments of `FileDataModule`.
    """

    group_settings = ("group_by", "group_pattern")

    def __init__(self, list_file: str, root: str | None = None, **settings: Any) -> None:
        if not list_file:
            raise ConfigError("data.list_file has no value; set it to a CSV with the columns path,label[,split].")
        self.list_file = Path(list_file).expanduser()
        super().__init__(root=root or str(self.list_file.parent), **settings)

    def list_files(self) -> tuple[tuple[str, ...], dict[str, LabeledFiles]]:
        """Read the list; the classes are its labels, sorted."""
        rows = read_list(self.list_file, self.split_plan.group_by)
        class_names = tuple(sorted({row.label for row in rows}))
        return class_names, files_from_list(self.root, rows, class_names)
