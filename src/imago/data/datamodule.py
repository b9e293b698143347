"""The LightningDataModule of every data set: a subclass says where the pictures are, this class serves them."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from imago.data.augmentation import Augment
from imago.data.dataset import ArrayDataset, FileDataset, LabelledArray, LabelledFiles, Pictures, Splits
from imago.data.sampling import EvalSampler, TrainSampler
from imago.errors import DataError
from imago.images import Preprocess, resize_and_crop
from imago.pixels import Normalise

MAX_RESIZED_BYTES = 4 * 2**30  # of one split held in memory at another size than its own; training pads a second copy
WORKER_TIMEOUT_S = 300  # a worker that hangs ends the run instead of holding it for ever


class ImageDataModule(LightningDataModule):
    """Serves uint8 batches `(images (B, 3, H, W), labels (B,))` and normalises them on the device.

    A subclass gives `load_splits` and `own_preprocess`. Whoever uses it calls `set_up_data`, may then set `preprocess`,
    and asks for loaders.

    Args:
        batch_size: samples per training step over all devices, and per evaluation batch on each.
        num_workers: processes that prepare batches; 0 is fastest for pictures in memory, None takes the cores there
            are, at most 4. Batches are the same whatever the number.
        augment: settings of `Augment`, for training only.
        seed: keys the order of the samples and their augmentation.
    """

    def __init__(self, batch_size: int, num_workers: int | None, augment: dict[str, Any], seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = min(4, available_cores()) if num_workers is None else num_workers
        self.augment = Augment(**augment)
        self.seed = seed
        self._splits: Splits | None = None
        self._preprocess: Preprocess | None = None
        self._normalise: Normalise | None = None

    def load_splits(self) -> Splits:
        """Read the data set: its class names and its train, val and test pictures.

        Raises:
            DataError: if it is missing or damaged.
        """
        raise NotImplementedError

    def own_preprocess(self) -> Preprocess:
        """Say how these pictures are evaluated when neither the user nor pretrained weights ask for something else.

        Called after `load_splits`, once, and only when somebody asks for `preprocess` before setting it.
        """
        raise NotImplementedError

    def set_up_data(self) -> None:
        """Read the data set once and check its labels; later calls return at once."""
        if self._splits is None:
            self.prepare_data()
            splits = self.load_splits()
            for name, split in splits.named():
                check_labels(name, split.labels, splits.class_names)
            self._splits = splits

    @property
    def splits(self) -> Splits:
        """The data set, as `set_up_data` read it."""
        assert self._splits is not None, "set_up_data() comes first"
        return self._splits

    @property
    def preprocess(self) -> Preprocess:
        """How pictures are evaluated: what was set, else `own_preprocess`."""
        if self._preprocess is None:
            self._preprocess = self.own_preprocess()
        return self._preprocess

    @preprocess.setter
    def preprocess(self, record: Preprocess) -> None:
        self._preprocess, self._normalise = record, None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names; the place of a name is its label."""
        return self.splits.class_names

    def fingerprint(self) -> str:
        """Give a short hash of class names, split sizes, labels, and names and sizes of files.

        Another split, another order or another file has another one.
        """
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for name, split in self.splits.named():
            digest.update(f"{name} {len(split)}".encode() + split.identity())
        return digest.hexdigest()[:16]

    def batches_per_epoch(self, limit: int | float = 1.0) -> int:
        """Count the training batches of an epoch; `limit` is Lightning's `limit_train_batches`: a number or a share."""
        batches = len(TrainSampler(len(self.splits.train), self.batch_size, self.seed))
        return min(limit, batches) if isinstance(limit, int) else max(1, int(batches * limit))

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches, starting where an interrupted run stopped."""
        sampler = TrainSampler(len(self.splits.train), self.batch_size, self.seed, *self._rank())
        if self.trainer is not None:
            # The progress is restored by now, the epoch number is not: count the batches that are done.
            done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
            sampler.epoch, sampler.start_batch = divmod(done, self.batches_per_epoch(self.trainer.limit_train_batches))
        return self._loader(self._dataset(self.splits.train, self.augment), sampler)

    def val_dataloader(self) -> DataLoader:
        """The validation pictures in order, each once."""
        return self._eval_loader(self.splits.val)

    def test_dataloader(self) -> DataLoader:
        """The test pictures in order, each once."""
        return self._eval_loader(self.splits.test)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Turn uint8 into normalised float32 in channels_last order, on the device: a quarter of the bytes travel."""
        images, labels = batch
        if self._normalise is None:
            self._normalise = Normalise(self.preprocess)
        return self._normalise.to(images.device)(images), labels

    def _eval_loader(self, split: Pictures) -> DataLoader:
        return self._loader(self._dataset(split), EvalSampler(len(split), self.batch_size, *self._rank()))

    def _dataset(self, pictures: Pictures, augment: Augment | None = None) -> ArrayDataset | FileDataset:
        if isinstance(pictures, LabelledFiles):
            return FileDataset(pictures, self.class_names, self.preprocess, augment, self.seed)
        return ArrayDataset(self._at_size(pictures), augment, self.seed)

    def _loader(self, dataset: ArrayDataset | FileDataset, sampler: TrainSampler | EvalSampler) -> DataLoader:
        return _Loader(
            dataset,
            batch_sampler=sampler,  # type: ignore[arg-type]  # yields a BatchKey where torch expects a list
            collate_fn=_as_is,  # type: ignore[arg-type]  # the data set gives whole batches
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            timeout=WORKER_TIMEOUT_S if self.num_workers else 0,
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _at_size(self, pictures: LabelledArray) -> LabelledArray:
        size, resize = self.preprocess.size, self.preprocess.resize
        is_whole = self.preprocess.crop == "squash" or resize == size
        if pictures.images.shape[-2:] == (size, size) and is_whole:
            return pictures
        num_bytes = len(pictures) * 3 * size**2
        if num_bytes > MAX_RESIZED_BYTES:
            raise DataError(
                f"preprocess.size={size}: {len(pictures):,} pictures of that size need {num_bytes / 2**30:.1f} GiB, "
                f"and this data set is held in memory; write it as files for data=image_folder, or take a smaller size."
            )
        resized = np.empty((len(pictures), 3, size, size), np.uint8)
        for place, image in enumerate(pictures.images):
            resized[place] = resize_and_crop(image.transpose(1, 2, 0), self.preprocess).transpose(2, 0, 1)
        return LabelledArray(resized, pictures.labels)


class _Loader(DataLoader):
    """Raises, in the main process, the error that a worker gave in place of a batch."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its own iterator class
        return map(_checked, super().__iter__())


def available_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_labels(split: str, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Refuse a split that would train or score nonsense.

    Raises:
        DataError: no pictures, fewer than two classes, or a label that names no class.
    """
    if len(class_names) < 2:
        raise DataError(f"the data set has the classes {list(class_names)}; a classifier needs at least 2.")
    if not len(labels):
        raise DataError(f"the {split} split has no pictures.")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise DataError(
            f"the {split} split has labels from {labels.min()} to {labels.max()}; "
            f"with {len(class_names)} classes they must lie in 0 .. {len(class_names) - 1}."
        )


def _as_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The data set has already put the batch together."""
    return batch


def _checked(batch: Any) -> Any:
    if isinstance(batch, DataError):
        raise batch
    return batch
