"""`trainer.max_time`: a pause between two optimizer steps, from which `resume=` goes on as if there had been none."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from imago.errors import ConfigError


class TimeLimit(Timer):
    """Ends the training when the time is up: Lightning's own may do so between batches that accumulate to one step.

    Args:
        duration: as `trainer.max_time`, e.g. "00:12:00:00", days first; resumes count.

    Attributes:
        cuts_epoch: whether the time was up before the epoch was.
    """

    def __init__(self, duration: str | dict[str, int]) -> None:
        super().__init__(duration, verbose=False)
        self.duration = duration
        self.cuts_epoch = False

    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Refuse to go on for no time at all."""
        super().on_fit_start(trainer, *args, **kwargs)
        if trainer.should_stop:
            raise ConfigError(f"trainer.max_time={self.duration}: the run has used it up; a longer time extends it.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.cuts_epoch = trainer.should_stop and batch_idx + 1 < trainer.num_training_batches


def is_time_up(trainer: Trainer) -> bool:
    """Tell whether the epoch that runs is cut short by a time limit."""
    limits = [callback for callback in trainer.callbacks if isinstance(callback, TimeLimit)]  # type: ignore[attr-defined]
    return any(limit.cuts_epoch for limit in limits)
