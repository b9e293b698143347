"""Keep the images of a split on the device and make its batches there, as airbench94 does (Jordan 2024).

The data loader returns only the choices of a batch: indices, crops and flips. They are drawn by the functions that
`ArrayDataset` uses, so both have the same pixels, bit for bit, and both can be resumed in the middle of an epoch.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from imago.augment.crop_flip import sample_crop_flip
from imago.augment.settings import Augment
from imago.data.dataset import ArrayDataset, BatchDataset, LabeledArray, Splits
from imago.data.sampling import BatchIndices
from imago.errors import ConfigError
from imago.settings import typed_value

MODES = ("auto", True, False)  # of data.on_device
# Of the free memory of a GPU, for the images with data.on_device=auto; activations need the rest; our own choice.
MAX_MEMORY_SHARE = 0.25


class BatchChoices(NamedTuple):
    """What identifies the pixels of a batch."""

    split: str
    values: Tensor  # int64 (5, B): index of the image, top and left of its crop in px, left-right and top-bottom flip


class ChoiceDataset(BatchDataset):
    """Return the choices of whole batches.

    Args:
        split: name of the split, to find its `DeviceImages`.
        dataset: its labels, augmentation and seed are used; loader workers get no images.
    """

    def __init__(self, split: str, dataset: ArrayDataset) -> None:
        self.split, self.labels, self.augment, self.seed = split, dataset.labels, dataset.augment, dataset.seed

    def load(self, key: BatchIndices) -> BatchChoices:
        """Return the choices of one batch."""
        values = np.zeros((5, len(key.indices)), np.int64)
        values[0] = key.indices
        if self.augment is not None:
            params = sample_crop_flip(self.augment, self.seed, key.epoch_keys, key.indices)
            values[1:4] = params.top, params.left, params.flip
            if params.vertical_flip is not None:
                values[4] = params.vertical_flip
        return BatchChoices(self.split, torch.from_numpy(values))


class DeviceImages:
    """The images of a dataset, padded for random crops, and its labels, on a device."""

    def __init__(self, dataset: ArrayDataset, device: torch.device) -> None:
        padding_px = dataset.augment.crop_padding_px if dataset.augment is not None else 0
        self._images = torch.from_numpy(np.ascontiguousarray(dataset.images)).to(device)
        self._labels = torch.from_numpy(dataset.labels).to(device)
        self.height_px, self.width_px = (side - 2 * padding_px for side in dataset.images.shape[-2:])

    def gather(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Make the batch of `BatchChoices.values`, on the device and without waiting for it.

        Return images uint8 (B, 3, H, W) and labels int64 (B,).
        """
        _, channels, padded_height, padded_width = self._images.shape
        index, top, left, flip, vertical_flip = values[:, :, None]  # (B, 1) each
        row, column = (torch.arange(side, device=values.device) for side in (self.height_px, self.width_px))
        rows = top + torch.where(vertical_flip > 0, self.height_px - 1 - row, row)  # (B, H)
        columns = left + torch.where(flip > 0, self.width_px - 1 - column, column)  # (B, W)
        planes = index * channels + torch.arange(channels, device=values.device)  # (B, 3)
        starts = planes[:, :, None] * padded_height + rows[:, None]  # (B, 3, H)
        pixels = starts[..., None] * padded_width + columns[:, None, None]  # (B, 3, H, W)
        return self._images.take(pixels), self._labels[values[0]]


class DeviceSplits:
    """The splits that are kept on a device while a Trainer fits.

    Args:
        setting: data.on_device. "auto" keeps train and val on a CUDA device if they take at most `MAX_MEMORY_SHARE` of
            its free memory; True keeps them on any device, a CPU too.

    Attributes:
        reason: where batches are made, and why, for the start table; set by `place`.

    Raises:
        ConfigError: if `setting` is not one of `MODES`.
    """

    def __init__(self, setting: bool | str) -> None:
        if setting not in MODES:
            raise ConfigError(f"data.on_device={typed_value(setting)} is not one of auto, true, false.")
        self.setting = setting
        self.reason = "on the CPU: data.on_device=false"
        self._device: torch.device | None = None
        self._images: dict[str, DeviceImages] = {}

    @property
    def are_used(self) -> bool:
        """Whether the images are kept on a device."""
        return self._device is not None

    def place(self, splits: Splits, size_px: int, augment: Augment, device: torch.device) -> None:
        """Choose whether train and val, resized to `size_px`, are kept on `device`, before their loaders are built.

        Raises:
            ConfigError: if that is required, and impossible.
        """
        sides_px = {"train": size_px + 2 * augment.crop_padding_px, "val": size_px}
        num_bytes = sum(len(getattr(splits, name)) * 3 * side**2 for name, side in sides_px.items())
        is_auto, is_cuda = self.setting == "auto", device.type == "cuda"
        obstacle = f"the network runs on the {device.type.upper()}" if is_auto and not is_cuda else None
        if names := augment.single_image_settings:
            obstacle = f"augment.{names[0]} transforms single images, on the CPU"
        if not isinstance(splits.train, LabeledArray):
            obstacle = "the images are read one by one; only those that are held in memory can be kept on the device"
        if is_cuda and obstacle is None and self.setting:
            free_bytes = torch.cuda.mem_get_info(device)[0]
            if num_bytes > free_bytes * (MAX_MEMORY_SHARE if is_auto else 1):
                share = f"{MAX_MEMORY_SHARE:.0%} of " if is_auto else ""
                obstacle = (
                    f"{_mebibytes(num_bytes)} of images, more than {share}the {_mebibytes(free_bytes)} free there"
                )
        if obstacle and self.setting is True:
            raise ConfigError(f"data.on_device=true: {obstacle}; type data.on_device=auto.")
        self._device = device if self.setting and obstacle is None else None
        if self.setting or obstacle:
            kept = f"on {device}, where {_mebibytes(num_bytes)} of images are kept"
            self.reason = f"on the CPU: {obstacle}" if obstacle else kept

    def move(self, split: str, dataset: Any) -> Any:
        """Move a dataset to the device and return its choices; the dataset itself if its batches come from the CPU.

        Raises:
            ConfigError: if its class is not that whose batches `DeviceImages` makes.
        """
        if self._device is None:
            return dataset
        if type(dataset) is not ArrayDataset:
            typed, kind = f"data.on_device={typed_value(self.setting)}", type(dataset).__name__
            raise ConfigError(f"{typed} cannot make the batches of {kind}; type data.on_device=false.")
        self._images[split] = DeviceImages(dataset, self._device)
        return ChoiceDataset(split, dataset)

    def gather(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return images uint8 (B, 3, H, W) and labels int64 (B,) of `BatchChoices`; any other batch as it is."""
        return self._images[batch.split].gather(batch.values) if isinstance(batch, BatchChoices) else batch


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
