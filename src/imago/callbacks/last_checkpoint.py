"""The newest state of the run, also when the run breaks off: what `resume=` continues from."""

import logging
import math
from pathlib import Path
from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import Optimizer

from imago.callbacks.before_batch import BeforeBatch
from imago.callbacks.time_limit import is_time_up
from imago.errors import DivergedError, StorageError

log = logging.getLogger(__name__)


class LastCheckpoint(ModelCheckpoint):
    """Saves `last.ckpt` after every epoch, within a long one, and when an exception ends the run.

    It is a callback of its own, because `save_last` of a monitoring one moves only when the best does.

    Args:
        dirpath: folder of the file.
        every_minutes: time between two saves within an epoch; a kill without notice loses no more.
    """

    def __init__(self, dirpath: str, every_minutes: float = 15.0) -> None:
        super().__init__(
            dirpath, filename="last", save_on_exception=True, save_on_train_epoch_end=True, enable_version_counter=False
        )
        self.every_minutes = every_minutes
        self._saved_at = monotonic()
        self._is_training = False
        self._before: BeforeBatch | None = None
        self._is_concluding = False  # the validation's result is told to some, but not to all yet
        self._updated_from = -1  # optimizer steps that were done when the newest one began

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_training = True
        self._before = BeforeBatch(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._is_training = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        is_due = monotonic() - self._saved_at > 60 * self.every_minutes
        if is_due and batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            self._saved_at = monotonic()
            self._save_from_rank_0(trainer)
        if self._before is not None:
            self._before.keep(trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._updated_from = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where `trainer.max_time` cuts an epoch short, as if this were a pause: what follows is not training."""
        if is_time_up(trainer):
            self._save_from_rank_0(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_concluding = not trainer.sanity_checking

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._is_concluding = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_time_up(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last finished step; what a broken one has changed is undone.

        Not before the first step, when a checkpoint may be restored in part, nor in the test, which has loaded other
        weights. Not if the numbers are what broke: a state without finite weights helps nobody. And with several ranks
        only from rank 0 and without its waiting for the others: they may be gone, or in the middle of a step.
        """
        if not self._is_training or isinstance(exception, (DivergedError, StorageError)):
            return
        is_ending = self._is_concluding or _is_concluding_an_epoch(trainer)
        if is_ending or self._updated_from == trainer.global_step or _is_within_a_step(trainer, pl_module):
            log.warning("stopped within a step or the end of an epoch: last.ckpt stays as it was saved last")
            return
        _forget_unfinished_validation(trainer)
        if self._before is not None:
            self._before.restore(trainer.global_step)
        if trainer.world_size == 1:
            super().on_exception(trainer, pl_module, exception)
        else:
            self._save_from_rank_0(trainer)

    def _save_from_rank_0(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and trainer.global_step > 0:
            state = trainer._checkpoint_connector.dump_checkpoint(False)  # False: with the optimizer
            trainer.strategy.save_checkpoint(state, Path(str(self.dirpath)) / "last.ckpt")


def _forget_unfinished_validation(trainer: Trainer) -> None:
    """Let the resumed run validate this epoch from the first image on: the sums of what was done are not saved.

    Lightning would go on with the batch it had come to, or skip the validation, depending on where it broke off.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    batches = loop.batch_progress
    is_in_last_hook = batches.current.completed + 1 == batches.current.processed == trainer.num_training_batches
    if is_in_last_hook:  # of the epoch's batches: that one is done
        batches.increment_completed()
    if trainer.validating or (is_in_last_hook and loop._should_check_val_epoch()):
        progress = loop.val_loop.batch_progress
        progress.reset()
        progress.total.ready = progress.total.started = 1  # what it looks like within the first batch


def _is_concluding_an_epoch(trainer: Trainer) -> bool:
    """Whether some callbacks have seen the end of the epoch, and others not."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return progress.processed > progress.completed


def _is_within_a_step(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Whether batches are counted whose gradients wait for more (`accumulate_grad_batches`), or the other way round.

    Such a state would resume to other weights than those of the uninterrupted run.
    """
    steps_per_epoch: Any = getattr(pl_module, "steps_per_epoch", None)
    if steps_per_epoch is None:
        return False
    progress: Any = trainer.fit_loop
    num_epochs = progress.epoch_progress.current.processed
    num_batches = progress.epoch_loop.batch_progress.current.processed
    if num_batches == trainer.num_training_batches and trainer.global_step == num_epochs * steps_per_epoch:
        return False  # the epoch is counted, and its batches are not yet set back to 0
    return trainer.global_step != num_epochs * steps_per_epoch + math.ceil(
        num_batches / trainer.accumulate_grad_batches
    )
