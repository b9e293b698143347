"""The state with the best validation: what is tested, exported and used."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from imago.callbacks.time_limit import is_time_up
from imago.errors import DataError
from imago.runs.checkpoint import read_checkpoint

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, also when the run directory was moved or copied before it is resumed.

    Args:
        dirpath: folder of the file.
        monitor: name of the logged number that decides.
        mode: "max" if more of it is better, else "min".
    """

    def __init__(self, dirpath: str, monitor: str, mode: str) -> None:
        super().__init__(dirpath, filename="best", monitor=monitor, mode=mode, enable_version_counter=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._counts(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._counts(trainer):  # Lightning saves here where each epoch is validated once
            super().on_train_epoch_end(trainer, pl_module)

    def _counts(self, trainer: Trainer) -> bool:
        """Compare whole epochs; one that `trainer.max_time` cut short counts only where there is no other."""
        return not (is_time_up(trainer) and self.best_model_path)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the best score; Lightning forgets it where the folder has another name than when it was saved."""
        moved: dict[str, Any] = {"dirpath": self.dirpath}
        if state_dict["best_model_path"]:
            best = str(Path(str(self.dirpath)) / "best.ckpt")
            try:
                read_checkpoint(Path(best))
            except DataError as error:
                log.warning("%s The best epoch is looked for among those that are still to come.", error)
                return
            moved |= {"best_model_path": best, "kth_best_model_path": best}
            moved["best_k_models"] = {best: state_dict["best_model_score"]}
        super().load_state_dict(state_dict | moved)
