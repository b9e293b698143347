"""Let callbacks that monitor a value act only on the value of the current epoch."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class OwnEpoch(Callback):
    """Forget logged values when the next epoch starts, and compare training values at the end of their epoch.

    Lightning keeps the values of an earlier epoch where a new one has none, such as an epoch without validation, and
    with `trainer.check_val_every_n_epoch` compares after the validation, where training values are an epoch old. This
    callback comes after those that log the previous epoch.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for stopper in trainer.early_stopping_callbacks:
            if stopper.monitor.startswith("train"):
                stopper._check_on_train_epoch_end = True
        for saver in trainer.checkpoint_callbacks:
            if isinstance(saver, ModelCheckpoint) and str(saver.monitor).startswith("train"):
                saver._save_on_train_epoch_end = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.callback_metrics.clear()
