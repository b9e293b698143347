"""Samples in files: decoded when they are needed, or kept decoded; what is damaged is named or left out."""

import csv
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imago.augment.resized_crop import limit_shorter_side, limited_sides
from imago.augment.settings import Augment
from imago.data.datamodule import Found, ImageDataModule
from imago.data.dataset import FileDataset, LabeledFiles
from imago.data.examine import examine
from imago.data.image_cache import CACHE_MODES, ImageStore, build_store, choose_store, estimate_bytes, open_store
from imago.data.image_statistics import describe_images, shrink
from imago.errors import ConfigError, DataError
from imago.images import Preprocess, resize_and_crop
from imago.resources import available_cores
from imago.seeding import random_permutation
from imago.text import printable

log = logging.getLogger(__name__)

_SAMPLE = 2  # tells what `split_seed` is used for
MAX_SAMPLE = 512  # images that mean and std are computed from: a standard error of mean below 0.01
SAMPLE_BYTES = 100_000_000  # fewer where the files are large: a second or two of decoding
MIN_SAMPLE = 16
ON_BAD_IMAGE = ("error", "skip")


class _Preparation(NamedTuple):
    """What becomes of a decoded image: how, with which height and width, and that as plain data."""

    make: Callable[[np.ndarray], np.ndarray]
    sides: Callable[[int, int], tuple[int, int]]
    key: dict[str, Any]


class FileDataModule(ImageDataModule):
    """A data set of image files; a subclass gives `list_files`.

    Args:
        root: the folder that holds them.
        cache_dir: where decoded images and the results of examinations are kept.
        cache: where decoded images are kept from the first epoch on: "none", "ram", "disk" or "auto", which takes one
            of these by what fits. The pixels are the same.
        decoded_px: shorter side that training images are scaled down to before a random resized crop; None cuts it
            out of the image as it is.
        on_bad_image: "error" stops at an image that cannot be read; "skip" decodes every image before the run and
            leaves those out.
        settings: the arguments of `ImageDataModule`.

    Raises:
        ConfigError: if a setting cannot work.
    """

    def __init__(
        self,
        root: str,
        cache_dir: str,
        cache: str = "none",
        decoded_px: int | None = None,
        on_bad_image: str = "error",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if not root:
            raise ConfigError("data.root has no value; give the folder of your images, e.g. data.root=~/flowers.")
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
        self._stores: dict[tuple[str, str], ImageStore] = {}

    def list_files(self) -> tuple[tuple[str, ...], dict[str, LabeledFiles]]:
        """Find the files and their classes, without opening any.

        Raises:
            DataError: for what is no data set, naming what is expected.
        """
        raise NotImplementedError

    def find_images(self) -> Found:
        """List the files, and leave out the bad ones where that is asked for."""
        class_names, found = self.list_files()
        if self.on_bad_image == "skip":
            found = {split: self._without_bad(files) for split, files in found.items()}
            if self.bad:
                share = len(self.bad) / sum(map(len, found.values()), len(self.bad))
                log.warning("left out %d images that cannot be read (%.2g %%)", len(self.bad), 100 * share)
        counts = np.bincount(found["train"].labels, minlength=len(class_names))
        if not counts.all():
            raise DataError(
                f"class {class_names[counts.argmin()]!r} of {printable(self.root)} has no training images that can "
                "be read; put some there or remove it."
            )
        return class_names, dict(found)

    def default_preprocess(self) -> Preprocess:
        """Size by the size of the images; mean and std of a sample of the training images."""
        files = self._sample()
        with ThreadPoolExecutor(min(4, available_cores())) as threads:
            images = list(threads.map(lambda index: shrink(files.read(index, self.class_names)), range(len(files))))
        log.info("mean and std from %s training images", f"{len(files):,}")
        return describe_images(images)

    def write_split(self, folder: Path) -> None:
        """Leave the list of bad images, too."""
        super().write_split(folder)
        if self.bad:
            with (folder / "bad_images.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                csv.writer(file, lineterminator="\n").writerows([("path", "reason"), *self.bad])

    def _without_bad(self, files: LabeledFiles) -> LabeledFiles:
        examined = examine(files.root, files.names, files.num_bytes, files.mtime_ns, self.cache_dir, available_cores())
        is_bad = np.array([bool(error) for error in examined.errors], bool)
        self.bad += [(files.names[place], examined.errors[place]) for place in np.flatnonzero(is_bad)]
        return files.take(np.flatnonzero(~is_bad))

    def _notes(self) -> list[str]:
        """Say which settings have no effect, or one that is hardly meant."""
        if self.decoded_px is None:
            return []
        if self.augment.random_resized_crop_scale is None:
            return [f"data.decoded_px={self.decoded_px} has no effect without augment.random_resized_crop_scale"]
        if self.decoded_px < self.preprocess.size:
            return [f"data.decoded_px={self.decoded_px} is less than preprocess.size={self.preprocess.size}: blurred"]
        return []

    def keep_decoded(self, num_processes: int, num_epochs: float) -> str:
        """Decode the images of training and validation now, as `cache` says, so that no epoch has to.

        Args:
            num_processes: of this machine that will each train on them.
            num_epochs: how often they will be asked for; "auto" keeps nothing for a single time.

        Returns:
            Where they are kept and why, in a few words.

        Raises:
            UserError: if they do not fit, or one cannot be read.
        """
        for note in self._notes():
            log.warning("%s", note)
        parts = {"train": self._prepare(self.augment), "val": self._prepare(None)}
        if self.cache == "none":
            return "nowhere: as typed"
        if self.cache == "auto" and num_epochs <= 1:
            return "nowhere: one epoch needs each image once"
        files: dict[str, Any] = {split: getattr(self.splits, split) for split in parts}
        sizes = {split: estimate_bytes(files[split], part.sides) for split, part in parts.items()}
        kept = {split: open_store(files[split], self.cache_dir, part.key) for split, part in parts.items()}
        kept_bytes = sum(sizes[split] for split, store in kept.items() if store)
        # Ranks that came before this one have taken their share of the memory already.
        num_to_come = num_processes - int(os.environ.get("LOCAL_RANK", "0"))
        where, note = choose_store(self.cache, sum(sizes.values()), self.cache_dir, num_to_come, kept_bytes)
        if where == "none":
            return f"nowhere: {note}"
        for split, part in parts.items():
            here = (files[split], self.class_names, part.make, where, self.cache_dir, part.key, available_cores())
            self._stores[split, part.key["kind"]] = build_store(*here)
        return f"{'in memory' if where == 'ram' else f'in {self.cache_dir}'}: {note}"

    @property
    def keeps_decoded(self) -> bool:
        """Whether no epoch has to decode."""
        return bool(self._stores)

    def _prepare(self, augment: Augment | None) -> "_Preparation":
        """Say what becomes of an image before it is augmented; validation and test show exactly that."""
        if augment is not None and augment.random_resized_crop_scale is not None:
            key = {"kind": "part", "decoded_px": self.decoded_px}
            return _Preparation(
                partial(limit_shorter_side, most_px=self.decoded_px),
                partial(limited_sides, most_px=self.decoded_px),
                key,
            )
        shape = {name: getattr(self.preprocess, name) for name in ("size", "resize", "crop", "interpolation")}
        size = self.preprocess.size
        return _Preparation(
            partial(resize_and_crop, preprocess=self.preprocess), lambda *_: (size, size), {"kind": "square", **shape}
        )

    def _dataset(self, split: str, augment: Augment | None) -> FileDataset:
        files: Any = getattr(self.splits, split)
        part = self._prepare(augment)
        store = self._stores.get((split, part.key["kind"]))
        return FileDataset(files, self.class_names, self.preprocess.size, part.make, augment, self.seed, store)

    def _sample(self) -> LabeledFiles:
        """Choose the training images to look at: the same ones every time."""
        files: Any = self.splits.train
        order = random_permutation(len(files), self.plan.split_seed, _SAMPLE)[:MAX_SAMPLE]
        num_fitting = int((np.cumsum(files.num_bytes[order]) <= SAMPLE_BYTES).sum())
        return files.take(order[: max(MIN_SAMPLE, num_fitting)])
