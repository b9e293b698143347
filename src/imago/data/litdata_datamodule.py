"""Provide datasets in litdata's chunk format, in a directory or in S3; the order of the samples is our own."""

import math
import re
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from imago.augment.settings import Augment
from imago.data.chunks import S3, ChunkFiles, LabeledChunks, read_set
from imago.data.csv_list import check_class_names
from imago.data.datamodule import ClassNamesAndSplits, ImageDataModule
from imago.data.dataset import FileDataset, Samples, has_random_resized_crop
from imago.data.examine import map_in_threads
from imago.data.file_datamodule import read_prepared
from imago.data.image_statistics import MAX_STATISTICS_IMAGES, preprocess_for_images, shrink
from imago.data.sampling import WindowSampler, chunk_places
from imago.errors import ConfigError, DataError
from imago.images import SPLITS, Preprocess, resize_and_crop

_MAX_DISTANCE = 0.1  # total variation between the classes of a window and of the dataset; our own choice


class LitDataModule(ImageDataModule):
    """Load samples {"image", "label"} in chunks; configs/data/litdata.yaml describes the arguments."""

    def __init__(
        self, root: str, cache_dir: str, cache_gb: float, shuffle_window: int, max_pixels: int, **settings: Any
    ) -> None:
        super().__init__(**settings)
        if self.sampler != "shuffle":
            raise ConfigError(f"data.sampler={self.sampler} needs all chunks at once; loss.weight=balanced does not.")
        if shuffle_window < 1:
            raise ConfigError(f"data.shuffle_window={shuffle_window} must be 1 or more, in chunks.")
        if not 0 < cache_gb < 1e9:
            raise ConfigError(f"data.cache_gb={cache_gb} must be above 0, in 10^9 bytes.")
        if re.match(r"\w\w+:", root) and not root.startswith(S3):  # a drive of Windows has one letter
            raise ConfigError(f"data.root={root}: chunks are read from a directory or from s3://BUCKET/PATH.")
        self.loader = {"timeout": 0, **self.loader}  # a window may take minutes; each download has limits of its own
        self.window, self.max_pixels = shuffle_window, max_pixels
        root = root.rstrip("/") if root.startswith(S3) else str(Path(root).expanduser())
        self.files = ChunkFiles(root, Path(cache_dir).expanduser(), int(cache_gb * 1e9))

    def load_dataset(self) -> ClassNamesAndSplits:
        splits = [name for name in SPLITS if self.files.read(f"{name}/index.json", is_optional=True)]
        sets = {name: read_set(self.files, f"{name}/") for name in splits} or {"train": read_set(self.files, "")}
        digest = sha256("".join(part[2] for part in sets.values()).encode()).hexdigest()
        self.files = replace(self.files, chunks=tuple(chain(*(part[0] for part in sets.values()))), folder=digest)
        end, published = 0, dict[str, Any]()
        for split, (chunks_of_split, extra, _) in sets.items():
            start, end = end, end + sum(chunk.num_samples for chunk in chunks_of_split)
            samples = LabeledChunks(self.files, np.arange(start, end), extra["labels"], self.max_pixels)
            if not len(samples.labels):
                stored = map_in_threads(samples.stored, range(end - start), f"labels of {split}")
                samples = replace(samples, labels=np.fromiter((label for _, label, _ in stored), np.int64))
            published[split] = samples
        numbers = tuple(map(str, range(min(end, 1 + max(int(part.labels.max()) for part in published.values())))))
        class_names, *others = {part[1]["class_names"] or numbers for part in sets.values()}
        if others:
            raise DataError(f"{self.files.root}: the splits have different class_names; write the dataset anew.")
        check_class_names(class_names, f"{self.files.root}: the classes")
        return class_names, published

    def default_preprocess(self) -> Preprocess:
        train: Any = self.splits.train
        ids, chunks = np.unique(self.files.chunk_of(train.positions), return_inverse=True)
        # 8 chunks, evenly spread: all would be downloaded before the first step; our own choice
        indices = np.flatnonzero(chunks % math.ceil(len(ids) / 8) == 0)
        sample = indices[:: math.ceil(len(indices) / MAX_STATISTICS_IMAGES)].tolist()
        return preprocess_for_images([*map_in_threads(lambda i: shrink(train.read(i)), sample, "mean and std")])

    def fingerprint(self) -> str:
        digest = sha256(f"{self.class_names} {self.files.folder}".encode())
        for _, samples in self.splits.items():
            digest.update(samples.positions.tobytes() + samples.labels.tobytes())  # type: ignore[attr-defined]
        return digest.hexdigest()[:16]

    def fill_cache(self, num_processes: int, num_epochs: float) -> str:
        if not self.files.root.startswith(S3):
            return f"none: chunks are read from {self.files.root}"
        sizes, limit_gb = sorted(chunk.num_bytes for chunk in self.files.chunks), self.files.max_bytes / 1e9
        needed_gb = sum(sizes[-2 * self.window * num_processes :]) / 1e9  # at the border of two windows
        if needed_gb > limit_gb:
            fault = f"two windows (data.shuffle_window={self.window}) need {needed_gb:.2g}"
            raise ConfigError(f"data.cache_gb={limit_gb:g}: {fault}; change one of them.")
        return f"chunks in {self.files.cache_dir}, at most {limit_gb:g} GB"

    def shuffle_note(self) -> str:
        counts = self._classes_of_chunks()
        counts = counts[np.argsort(chunk_places(counts.argmax(axis=1), self.seed, 0))]  # in the order of epoch 0
        size, total = min(self.window, len(counts)), counts.sum(axis=0)
        windows = np.add.reduceat(counts, np.arange(0, len(counts), size), dtype=np.int32)
        fewest = (windows[: len(counts) // size] > 0).sum(axis=1).min()  # the last one may be shorter
        text = f"windows of {size} of {len(counts):,} chunks have {fewest} classes or more"
        if 2 * fewest >= np.count_nonzero(total):
            return text
        while not _are_alike(windows[: len(counts) // size], total):
            size = min(2 * size, len(counts))
            windows = np.add.reduceat(windows, np.arange(0, len(windows), 2), dtype=np.int32)
        remedy = f"data.shuffle_window={size} has them about as often as the dataset"
        return f"{text}; WARNING: fewer than half of them; {remedy}"

    def _classes_of_chunks(self) -> np.ndarray:
        """Return the number of training samples of each class in each chunk that has some, int32 (C, K)."""
        train: Any = self.splits.train
        ids, chunks = np.unique(self.files.chunk_of(train.positions), return_inverse=True)
        counts = np.zeros((len(ids), len(self.class_names)), np.int32)
        np.add.at(counts, (chunks, train.labels), 1)
        return counts

    def train_sampler(self) -> WindowSampler:
        train: Any = self.splits.train
        chunks, classes = self.files.chunk_of(train.positions), self._classes_of_chunks().argmax(axis=1)
        shared = (len(train), self.batch_size, self.seed, *self._rank(), None, self.repeats_first_epoch)
        return WindowSampler(*shared, chunks, classes, self.window)

    def dataset(self, split: str, augment: Augment | None = None) -> FileDataset:
        samples: Samples = getattr(self.splits, split)
        resize: Any = partial(resize_and_crop, preprocess=self.preprocess)
        prepare = np.asarray if has_random_resized_crop(augment) else resize
        read = partial(read_prepared, samples, self.class_names, prepare)
        return FileDataset(samples.labels, read, self.preprocess.size, augment, self.seed)


def _are_alike(windows: np.ndarray, total: np.ndarray) -> bool:
    """Return whether windows, numbers of samples by class (W, K), have nearly the classes of the dataset, (K,)."""
    shares = windows / windows.sum(axis=1, keepdims=True)
    return bool((np.abs(shares - total / total.sum()).sum(axis=1) / 2 <= _MAX_DISTANCE).all())
