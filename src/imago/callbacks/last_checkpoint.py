"""Save the newest state of a run, from which `resume=` continues."""

from pathlib import Path
from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from imago.callbacks.time_limit import is_time_up


class LastCheckpoint(ModelCheckpoint):
    """Save `last.ckpt` after every epoch and, within a long one, between two optimizer steps.

    Only from these states does Lightning resume to the weights of an uninterrupted run. Therefore an exception saves
    nothing, and a signal is saved at the next such point, see `StopOnSignal`.

    This is a separate callback because `save_last` of a `ModelCheckpoint` with `monitor` writes only when the best
    score improves.

    Args:
        dirpath: directory of the file.
        every_minutes: time between two saves within an epoch; a kill without notice loses at most this.
    """

    def __init__(self, dirpath: str, every_minutes: float = 15.0) -> None:
        super().__init__(dirpath, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.every_minutes = every_minutes
        self._saved_at_s = monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A state that was saved before a batch counts that batch as fetched, and the resumed run fetches it again.
        # With check_val_every_n_epoch=null Lightning validates by this count.
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        batches.ready = batches.processed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at_s = monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        is_due = monotonic() - self._saved_at_s > 60 * self.every_minutes
        if is_due and batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            self._saved_at_s = monotonic()
            self.save(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when `trainer.max_time` ends an epoch early: what follows is not part of the training."""
        if is_time_up(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_time_up(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def save(self, trainer: Trainer) -> None:
        """Save in rank 0, without waiting for the other ranks; before the first step there is nothing to save."""
        if trainer.is_global_zero and trainer.global_step > 0:
            state = trainer._checkpoint_connector.dump_checkpoint(False)  # not the weights only
            trainer.strategy.save_checkpoint(state, Path(str(self.dirpath)) / "last.ckpt")
