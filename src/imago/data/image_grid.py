"""Samples side by side with their colors put back: what augmentation does, and what the network really sees."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from imago.data.dataset import Splits
from imago.data.sampling import BatchKey
from imago.images import Preprocess

_GAP_PX = 2
_WHITE = 255


class _Batches(Protocol):
    def __getitems__(self, key: BatchKey, /) -> tuple[Tensor, Tensor]: ...


class AugmentedData(Protocol):
    """What is asked of a data module that shows its augmentation."""

    @property
    def splits(self) -> Splits:
        """The data set."""

    @property
    def preprocess(self) -> Preprocess:
        """Mean and std of the normalization."""

    def training_dataset(self) -> _Batches:
        """The training images as workers give them."""

    def evaluation_dataset(self, split: str, /) -> _Batches:
        """The images of a split as they are evaluated, uint8."""

    def augment_batch(self, images: Tensor, labels: Tensor, key: tuple[int, int, int], /) -> tuple[Tensor, Tensor]:
        """Do to a training batch what is done on the device; gives normalized images."""


def draw_augmentations(data: AugmentedData, num_images: int = 8, num_draws: int = 8) -> np.ndarray:
    """Draw training images, a row each: as evaluated, then as the first epochs would show them.

    Args:
        data: after its images were read.
        num_images: at most so many, spread evenly over the training split. They make up one batch, so that each is
            mixed with another one of them.
        num_draws: epochs to show.

    Returns:
        uint8 (height, width, 3), with white gaps; the gap after the first column is wider.
    """
    num_train = len(data.splits.train)
    rows = np.unique(np.linspace(0, num_train - 1, num_images).astype(np.int64))
    originals, _ = data.evaluation_dataset("train").__getitems__(BatchKey(0, rows))
    dataset, columns = data.training_dataset(), []
    for epoch in range(num_draws):
        images, labels = dataset.__getitems__(BatchKey(epoch, rows))
        mixed, _ = data.augment_batch(images, labels, (epoch, 0, 0))
        columns.append(restore_colors(mixed, data.preprocess.mean, data.preprocess.std))
    draws = lay_out(torch.stack(columns, dim=1).flatten(0, 1), num_draws)
    return torch.cat([lay_out(originals, columns=1), draws], dim=2).permute(1, 2, 0).numpy()


def restore_colors(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalization.

    Args:
        images: normalized images (N, 3, H, W), on any device and of any floating-point type.
        mean: per channel, of pixels in [0, 1].
        std: per channel, likewise.

    Returns:
        uint8 (N, 3, H, W) on the CPU; what lies outside [0, 255] is clipped.
    """
    scale, shift = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (std, mean))
    return ((images.float().cpu() * scale + shift) * 255).round().clamp(0, 255).to(torch.uint8)


def lay_out(images: Tensor, columns: int) -> Tensor:
    """Put images uint8 (N, 3, H, W) side by side, N at least 1, with white gaps; gives (3, height, width)."""
    height, width = images.shape[-2:]
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell_height, cell_width = height + _GAP_PX, width + _GAP_PX
    grid = torch.full((3, rows * cell_height + _GAP_PX, columns * cell_width + _GAP_PX), _WHITE, dtype=torch.uint8)
    for place, image in enumerate(images):
        top, left = (place // columns) * cell_height + _GAP_PX, (place % columns) * cell_width + _GAP_PX
        grid[:, top : top + height, left : left + width] = image
    return grid
