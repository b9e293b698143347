"""One grid in TensorBoard of what the network really sees: cropped, flipped, mixed, with the colours put back."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

_MAX_PICTURES = 32
_COLUMNS = 8
_GAP_PX = 2


class PictureGrid(Callback):
    """Writes `train/pictures` at the first training batch of the process, and nothing at any later step.

    The pixels are the batch's own after augmentation and normalisation, so a wrong mean, channel order or augmentation
    shows. The module tells `preprocess` in its hyper-parameters; without a TensorBoard logger nothing is written.
    """

    def __init__(self) -> None:
        self._is_written = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._is_written:
            return
        self._is_written = True
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if boards and trainer.is_global_zero:
            preprocess = pl_module.hparams["preprocess"]
            images = restore_colours(batch[0][:_MAX_PICTURES].detach(), preprocess["mean"], preprocess["std"])
            for board in boards:
                board.experiment.add_image("train/pictures", lay_out(images), trainer.global_step)


def restore_colours(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Undo the normalisation.

    Args:
        images: normalised pictures (N, 3, H, W), on any device and of any floating-point type.
        mean: per channel, of pixels in [0, 1].
        std: per channel, likewise.

    Returns:
        uint8 (N, 3, H, W) on the CPU; what lies outside [0, 255], as jitter can leave it, is clipped.
    """
    scale, shift = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (std, mean))
    return ((images.float().cpu() * scale + shift) * 255).round().clamp(0, 255).to(torch.uint8)


def lay_out(images: Tensor, columns: int = _COLUMNS) -> Tensor:
    """Put pictures uint8 (N, 3, H, W) side by side, N at least 1, with white gaps; gives (3, height, width)."""
    height, width = images.shape[-2:]
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell_height, cell_width = height + _GAP_PX, width + _GAP_PX
    grid = torch.full((3, rows * cell_height + _GAP_PX, columns * cell_width + _GAP_PX), 255, dtype=torch.uint8)
    for place, image in enumerate(images):
        top, left = (place // columns) * cell_height + _GAP_PX, (place % columns) * cell_width + _GAP_PX
        grid[:, top : top + height, left : left + width] = image
    return grid
