"""Provide the base LightningDataModule: splits, samplers, loaders, and augmentation and normalization on the device."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from imago.augment.batch_augment import BatchAugment
from imago.augment.settings import Augment
from imago.data.csv_list import COLUMNS
from imago.data.dataset import ArrayDataset, FileDataset, LabeledArray, LabeledFiles, Samples, Splits
from imago.data.device_images import DeviceSplits
from imago.data.loader import BatchLoader
from imago.data.sampling import EvalSampler, TrainSampler, limited_batches
from imago.data.splitting import SplitPlan, complete_splits, training_part
from imago.data.stratified import stratified_order
from imago.errors import ConfigError, DataError
from imago.files import encode_names, write_csv
from imago.images import Preprocess, resize_and_crop
from imago.normalize import Normalize
from imago.resources import available_cores

# Limit for one resized split in memory; training makes a padded copy of it, so twice that; our own choice.
MAX_RESIZED_BYTES = 4 * 2**30
MAX_WORKERS = 16  # our own choice: each takes memory and time to start
SAMPLERS = ("shuffle", "balanced")

ClassNamesAndSplits = tuple[tuple[str, ...], dict[str, Samples]]  # the samples of each published split, by its name


class ImageDataModule(LightningDataModule):
    """Load uint8 batches `(images (B, 3, H, W), labels (B,))`; augment and normalize them on the device.

    A subclass implements `load_dataset` and `default_preprocess`. A caller calls `set_up_data`, may then set
    `preprocess`, and then gets loaders.

    Args:
        batch_size: samples per training batch over all devices, and per evaluation batch on each device.
        num_workers: processes that prepare batches; None chooses by dataset and machine. Batches do not depend on it.
        augment: arguments of `imago.augment.settings.Augment`; evaluation loaders do not use it.
        seed: determines the order of the samples and their augmentation.
        loader: further arguments of torch's DataLoader, e.g. `prefetch_factor`.
        sampler: "shuffle" uses every training image once per epoch, "balanced" samples the classes equally often.
        on_device: "auto", True or False: keep images in memory on the device and make the batches of a training there,
            see `imago.data.device_images.DeviceSplits`. The batches are the same.
        split: arguments of `imago.data.splitting.SplitPlan`.

    Attributes:
        splits: the samples; exists after `set_up_data`.
        ignored_entries: directory entries that are not part of the dataset: path and reason.
        bad_images: images that cannot be read and were left out: name and reason.
        memory_format: of normalized images.
        random_splits: names of the splits that were split off at random because they are not published.
        repeats_first_epoch: whether every epoch has the training samples of the first one, for trainer.overfit_batches.
        needs_train: whether the dataset must have training images.
    """

    splits: Splits
    group_settings: tuple[str, ...] = ()  # those of `SplitPlan` by which a subclass finds groups

    def __init__(
        self,
        batch_size: int,
        num_workers: int | None,
        augment: dict[str, Any],
        seed: int,
        sampler: str = "shuffle",
        loader: Mapping[str, Any] | None = None,
        on_device: bool | str = False,
        **split: Any,
    ) -> None:
        super().__init__()
        if sampler not in SAMPLERS:
            raise ConfigError(f"data.sampler={sampler} is not one of {', '.join(SAMPLERS)}.")
        self.loader = loader or {}
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = Augment(**augment)
        self.seed = seed
        self.sampler = sampler
        self.device_splits = DeviceSplits(on_device)
        self.split_plan = SplitPlan(**split)
        for name in ("group_by", "group_pattern"):
            if (value := getattr(self.split_plan, name)) and name not in self.group_settings:
                needed = (
                    "data=image_list" if name == "group_by" else "image files, data=image_folder or data=image_list"
                )
                raise ConfigError(f"data.{name}={value} needs {needed}; leave it out.")
        self.ignored_entries: list[tuple[str, str]] = []
        self.bad_images: list[tuple[str, str]] = []
        self.random_splits: list[str] = []
        self.memory_format = torch.channels_last
        self.repeats_first_epoch = False
        self.needs_train = True
        self._normalizer: tuple[Preprocess, Normalize] | None = None

    def load_dataset(self) -> ClassNamesAndSplits:
        """Return the class names, and the samples of each published split; "train" is always one of them.

        Raises:
            DataError: if the dataset is missing or damaged.
        """
        raise NotImplementedError

    def default_preprocess(self) -> Preprocess:
        """Return the preprocessing to use if neither the user nor pretrained weights define one.

        Called at most once, after `load_dataset`.
        """
        raise NotImplementedError

    def set_up_data(self, only: str | None = None) -> None:
        """Load the dataset and complete its splits, see `complete_splits`; later calls do nothing."""
        if not hasattr(self, "splits"):
            self.needs_train = only is None
            self.prepare_data()
            class_names, published = self.load_dataset()
            bad_names = [name for name, _ in self.bad_images]
            splits, self.random_splits = complete_splits(published, self.split_plan, class_names, bad_names, only)
            self._listed_splits = Splits(class_names, **splits)
            if only is None:
                splits["train"] = training_part(splits["train"], self.split_plan)
            self.splits = Splits(class_names, **splits)

    @cached_property
    def preprocess(self) -> Preprocess:
        """The preprocessing that was set, else `default_preprocess`."""
        return self.default_preprocess()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K names; label i means `class_names[i]`. Exists after `set_up_data`."""
        return self.splits.class_names

    def fingerprint(self) -> str:
        """Return a short hash of class names, split sizes, labels, and names and sizes of files."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for name, samples in self.splits.items():
            num_bytes = samples.num_bytes.tobytes() if isinstance(samples, LabeledFiles) else b""
            digest.update(f"{name} {len(samples)}".encode())
            digest.update(samples.labels.tobytes() + encode_names(samples.names) + num_bytes)
        return digest.hexdigest()[:16]

    def batches_per_epoch(self, limit_train_batches: int | float = 1.0) -> int:
        """Return the number of training batches per epoch; the limit is a number (int) or a share (float)."""
        num_batches = len(TrainSampler(len(self.splits.train), self.batch_size, self.seed))
        return limited_batches(num_batches, limit_train_batches)

    def write_split(self, directory: Path) -> None:
        """Write `split.csv`, which `data.split_file` reads before `data.train_fraction`, unless all are published."""
        if self.random_splits or self.split_plan.split_file:
            rows = [
                (name, self.class_names[label], split)
                for split, part in self._listed_splits.items()
                for name, label in zip(part.names, part.labels, strict=True)
            ]
            write_csv(directory / "split.csv", [COLUMNS, *rows])

    def fill_cache(self, num_processes: int, num_epochs: float) -> str:
        """Decode images before the first epoch if that saves time; return where they are kept, for the log."""
        return "in memory: the whole dataset"

    def setup(self, stage: str) -> None:
        """Choose where the batches of a training are made; called by the Trainer before it asks for the loaders."""
        if stage == "fit" and self.trainer is not None and self.device_splits.setting:
            self.place_images(self.trainer.strategy.root_device)

    def place_images(self, device: torch.device) -> None:
        """Choose whether train and val are kept on `device`, see `DeviceSplits.place`."""
        self.device_splits.place(self.splits, self.preprocess.size, self.augment, device)

    def training_dataset(self) -> ArrayDataset | FileDataset:
        """Return the training images with the augmentations that are applied in the data loader.

        Raises:
            ConfigError: if an augmentation is larger than the images.
        """
        for name in ("crop_padding_px", "cutout_px"):
            value, size = getattr(self.augment, name), self.preprocess.size
            if value >= size:
                raise ConfigError(f"augment.{name}={value} must be less than the side of the images, {size} px.")
        return self.dataset("train", self.augment)

    def dataset(self, split: str, augment: Augment | None = None) -> ArrayDataset | FileDataset:
        """Return the preprocessed images of a split, with those parts of `augment` that the data loader applies."""
        return ArrayDataset(self._resize(getattr(self.splits, split)), augment, self.seed)

    def train_dataloader(self) -> DataLoader:
        """Return shuffled, augmented batches, starting where an interrupted run stopped."""
        sampler = self.train_sampler()
        if self.trainer is not None:
            # Lightning has restored the progress by now, but not the epoch number: compute it from the batches done.
            num_done, per_epoch = self._num_batches_done(), self.batches_per_epoch(self.trainer.limit_train_batches)
            sampler.epoch, sampler.start_batch = divmod(num_done, per_epoch)
        return self._build_loader(self.device_splits.move("train", self.training_dataset()), sampler)

    def train_sampler(self) -> TrainSampler:
        """Return the sampler of the training images, at the start of the first epoch."""
        train = self.splits.train
        labels = train.labels if self.sampler == "balanced" else None
        return TrainSampler(len(train), self.batch_size, self.seed, *self._rank(), labels, self.repeats_first_epoch)

    def val_dataloader(self) -> DataLoader:
        """Return the validation images; on the device if a Trainer fits and they are kept there."""
        return self._evaluation_loader("val", self.device_splits.move("val", self.dataset("val")))

    def test_dataloader(self) -> DataLoader:
        """Return the test images."""
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: str) -> DataLoader:
        """Return the preprocessed images of a split, each once: in order, or drawn by class if the Trainer limits them.

        The limited ones are the same in every epoch.
        """
        return self._evaluation_loader(split, self.dataset(split))

    def _evaluation_loader(self, split: str, dataset: Any) -> DataLoader:
        sampler = EvalSampler(len(dataset), self.batch_size, *self._rank())
        limit = getattr(self.trainer, f"limit_{split}_batches", 1.0)
        if limited_batches(len(sampler), limit) < len(sampler):
            sampler.order = stratified_order(dataset.labels, self.split_plan.split_seed)
        return self._build_loader(dataset, sampler)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Augment training batches and normalize all, on the device: uint8 is a quarter of the bytes to transfer."""
        images, labels = self.device_splits.gather(batch)
        if self.trainer is None or not self.trainer.training:
            return self._normalize(images), labels
        key = self.trainer.current_epoch, self._num_batches_done(), self._rank()[0]
        return self.augment_batch(images, labels, key)

    def augment_batch(self, images: Tensor, labels: Tensor, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Apply the augmentations that work on whole batches, and normalize.

        `images` are uint8 (B, 3, H, W), on any device, `labels` int64 (B,); `key` is epoch, batch index and rank.
        Return float32 (B, 3, H, W); labels unchanged, or float (B, K) if images are mixed.
        """
        augment = self._batch_augment
        mixed = augment.mix(self._normalize(augment.adjust_colors(images, key)), labels, key)
        return augment.extra(*mixed, key)

    @cached_property
    def _batch_augment(self) -> BatchAugment:
        return BatchAugment(self.augment, len(self.class_names), self.seed)

    def _normalize(self, images: Tensor) -> Tensor:
        if self._normalizer is None or self._normalizer[0] is not self.preprocess:
            self._normalizer = self.preprocess, Normalize(self.preprocess)
            self._normalizer[1].memory_format = self.memory_format
        return self._normalizer[1].to(images.device)(images)

    def _build_loader(self, dataset: Any, sampler: TrainSampler | EvalSampler) -> DataLoader:
        num_workers, default_type = self.num_workers, "cuda" if torch.cuda.is_available() else "cpu"
        device_type = self.trainer.strategy.root_device.type if self.trainer else default_type
        if num_workers is None:
            # On a CPU the network needs all cores: more busy processes than cores make it many times slower.
            has_gpu = device_type != "cpu"
            is_slow = dataset.augment is not None and dataset.augment.has_single_image_transforms
            num_cores = available_cores() // (self.trainer.num_devices if self.trainer else 1)
            needs_workers = has_gpu and (is_slow or isinstance(dataset, FileDataset))
            num_workers = max(1, min(MAX_WORKERS, num_cores)) if needs_workers else 0
        # Pinning starts CUDA on the first GPU, which may be full, or not the one in use: only for a Trainer.
        is_pinned = self.trainer is not None and device_type == "cuda"
        return BatchLoader(dataset, sampler, num_workers, self.loader, pin_memory=is_pinned)

    def _num_batches_done(self) -> int:
        assert self.trainer is not None, "called only while a Trainer runs"
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _resize(self, samples: LabeledArray) -> LabeledArray:
        size, resize = self.preprocess.size, self.preprocess.resize
        crops_nothing = self.preprocess.crop == "squash" or resize == size
        if samples.images.shape[-2:] == (size, size) and crops_nothing:
            return samples
        num_bytes = len(samples) * 3 * size**2
        if num_bytes > MAX_RESIZED_BYTES:
            raise DataError(
                f"preprocess.size={size}: {len(samples):,} images of that size need {num_bytes / 2**30:.1f} GiB, "
                f"and this dataset is held in memory; write it as files for data=image_folder, or use a smaller size."
            )
        resized = np.empty((len(samples), 3, size, size), np.uint8)
        for index, image in enumerate(samples.images):
            resized[index] = resize_and_crop(image.transpose(1, 2, 0), self.preprocess).transpose(2, 0, 1)
        return LabeledArray(resized, samples.labels, samples.names)
