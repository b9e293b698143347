"""One grid in TensorBoard of what the network really sees: cropped, flipped, mixed, with the colours put back."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from imago.data.augment_grid import lay_out, restore_colours

_MAX_PICTURES = 32
_COLUMNS = 8


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
                board.experiment.add_image("train/pictures", lay_out(images, _COLUMNS), trainer.global_step)
