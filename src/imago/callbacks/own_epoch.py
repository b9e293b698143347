"""Let callbacks that monitor a value act only on the value of the current epoch."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class OwnEpoch(Callback):
    """Forget logged values when the next epoch starts, and compare training values at the end of their epoch.

    Lightning keeps the values of an earlier epoch where a new one has none, such as an epoch without validation, and
    with `trainer.check_val_every_n_epoch` compares after the validation, where training values are an epoch old. This
    callback comes after those that log the previous epoch.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        monitoring: list[Any] = [*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks]
        for callback in monitoring:
            name = "_save" if isinstance(callback, ModelCheckpoint) else "_check"
            if str(getattr(callback, "monitor", None)).startswith("train"):
                setattr(callback, f"{name}_on_train_epoch_end", True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.callback_metrics.clear()
