"""Save the state with the best validation score, which is tested, exported and used."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from imago.callbacks.time_limit import is_time_up
from imago.errors import ConfigError, DataError
from imago.files import atomic_write
from imago.runs.checkpoint import read_checkpoint

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """Save `best.ckpt`, also when the run directory was moved or copied before it is resumed.

    Args:
        dirpath: directory of the file.
        monitor: name of the logged value to compare.
        mode: "max" or "min": which value of it is best.
    """

    def __init__(self, dirpath: str, monitor: str, mode: str) -> None:
        super().__init__(dirpath, filename="best", monitor=monitor, mode=mode, enable_version_counter=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that validation within an epoch falls between optimizer steps: a checkpoint has no gradients.

        Raises:
            ConfigError: if it does not.
        """
        super().on_train_start(trainer, pl_module)
        num_batches, accumulate = trainer.num_training_batches, trainer.accumulate_grad_batches
        interval: Any = trainer.val_check_batch
        if not trainer.enable_validation or interval in (None, float("inf")):
            return
        if trainer.check_val_every_n_epoch is None:  # the batches are counted over all epochs
            is_within_step = interval % accumulate or num_batches % accumulate
        else:
            is_within_step = interval != num_batches and interval % accumulate
        if is_within_step:
            raise ConfigError(
                f"trainer.val_check_interval={trainer.val_check_interval} validates after {interval} batches, within "
                f"an optimizer step of trainer.accumulate_grad_batches={accumulate} batches, and best.ckpt could not "
                f"be resumed; use a multiple of {accumulate} batches."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_compared(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_compared(trainer):  # Lightning saves here if each epoch is validated once
            super().on_train_epoch_end(trainer, pl_module)

    def _is_compared(self, trainer: Trainer) -> bool:
        """Return whether this epoch counts: one that `trainer.max_time` cut short only if there is no other."""
        return not (is_time_up(trainer) and self.best_model_path)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        last = Path(filepath).with_name("last.ckpt")
        if is_time_up(trainer) and last.is_file():
            # Lightning now counts the epoch as done. last.ckpt has the same weights and continues the epoch.
            if trainer.is_global_zero:
                with atomic_write(Path(filepath), "wb") as file:
                    file.write(last.read_bytes())
        else:
            super()._save_checkpoint(trainer, filepath)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score; Lightning does not if the directory has another path than when it was saved."""
        moved: dict[str, Any] = {"dirpath": self.dirpath}
        if state_dict["best_model_path"]:
            best = str(Path(str(self.dirpath)) / "best.ckpt")
            try:
                read_checkpoint(Path(best))
            except DataError as error:
                log.warning("%s The best epoch is chosen from the epochs that follow.", error)
                return
            moved |= {"best_model_path": best, "kth_best_model_path": best}
            moved["best_k_models"] = {best: state_dict["best_model_score"]}
        super().load_state_dict(state_dict | moved)
