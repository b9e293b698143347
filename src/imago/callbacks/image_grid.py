"""Show a grid of training images as the network sees them: augmented, with the normalization undone."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torchvision.utils import make_grid

from imago.images import write_png
from imago.normalize import restore_colors

_MAX_IMAGES, _NUM_COLUMNS = 32, 8  # a grid that fits on a screen; our own choice


class ImageGrid(Callback):
    """Add `train/images` to TensorBoard and write `train_images.png`, at the first training batch of the process.

    The pixels are those of the batch after augmentation and normalization, so that a wrong mean, channel order or
    augmentation is visible. `preprocess` of the data module restores the colors. `dirpath` is created if necessary.
    """

    def __init__(self, dirpath: str) -> None:
        self.dirpath = Path(dirpath)
        self._is_written = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._is_written or not trainer.is_global_zero:
            return
        self._is_written = True
        preprocess = trainer.datamodule.preprocess  # type: ignore[attr-defined]  # of our data module
        images = restore_colors(batch[0][:_MAX_IMAGES].detach(), preprocess.mean, preprocess.std)
        grid = make_grid(images, nrow=_NUM_COLUMNS, pad_value=255)
        self.dirpath.mkdir(parents=True, exist_ok=True)
        write_png(self.dirpath / "train_images.png", grid.permute(1, 2, 0).numpy())
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("train/images", grid, trainer.global_step)
