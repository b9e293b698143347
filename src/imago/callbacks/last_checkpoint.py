"""The newest state of the run, also when the run breaks off: what `resume=` continues from."""

import logging
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from imago.errors import DivergedError

log = logging.getLogger(__name__)


class LastCheckpoint(ModelCheckpoint):
    """Saves `last.ckpt` after every epoch and when an exception ends the run.

    It is a callback of its own, because `save_last` of a monitoring one moves only when the best does.

    Args:
        dirpath: folder of the file.
    """

    def __init__(self, dirpath: str) -> None:
        super().__init__(
            dirpath, filename="last", save_on_exception=True, save_on_train_epoch_end=True, enable_version_counter=False
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last finished step.

        Not if the numbers are what broke: a state without finite weights helps nobody. And with several ranks only from
        rank 0 and without its waiting for the others: they may be gone, or in the middle of a step.
        """
        if isinstance(exception, DivergedError):
            return
        if _is_within_a_step(trainer, pl_module):
            log.warning("stopped within an optimizer step: last.ckpt stays that of the epoch before")
            return
        _forget_unfinished_validation(trainer)
        if trainer.world_size == 1:
            super().on_exception(trainer, pl_module, exception)
        elif trainer.is_global_zero and trainer.global_step > 0:
            state = trainer._checkpoint_connector.dump_checkpoint(False)  # False: with the optimizer
            trainer.strategy.save_checkpoint(state, Path(str(self.dirpath)) / "last.ckpt")


def _forget_unfinished_validation(trainer: Trainer) -> None:
    """Let the resumed run validate this epoch from the first picture on: the sums of what was done are not saved.

    Lightning would go on with the batch it had come to, or skip the validation, depending on where it broke off.
    """
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    progress = loop.batch_progress
    if trainer.validating and progress.current.completed < sum(loop.max_batches):
        progress.reset()
        progress.total.ready = progress.total.started = 1  # what it looks like within the first batch


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
