"""End training after `trainer.max_time`, so that `resume=` continues it to the same weights."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from imago.errors import ConfigError


class TimeLimit(Timer):
    """End training when the time is up, after a batch that ends an optimizer step.

    Lightning's own may end it between batches that accumulate to one step, or before a validation within the epoch,
    which the resumed run would skip.

    Args:
        duration: as `trainer.max_time`, e.g. "00:12:00:00", days first; it includes the time before a resume.

    Attributes:
        cuts_epoch: whether training ended before the epoch did.
    """

    def __init__(self, duration: str | dict[str, int]) -> None:
        super().__init__(duration, verbose=False)
        self.duration = duration
        self.cuts_epoch = False

    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Raise a ConfigError if no time is left."""
        super().on_fit_start(trainer, *args, **kwargs)
        if trainer.should_stop:
            raise ConfigError(f"trainer.max_time={self.duration}: the run has used it up; a longer time extends it.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        is_last = batch_idx + 1 == trainer.num_training_batches
        ends_step = is_last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ends_step and (is_last or not loop.epoch_loop._should_check_val_fx(loop._data_fetcher)):  # type: ignore[arg-type]
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.cuts_epoch = trainer.should_stop and not is_last


def is_time_up(trainer: Trainer) -> bool:
    """Return whether a time limit ends the current epoch early."""
    limits = [callback for callback in trainer.callbacks if isinstance(callback, TimeLimit)]  # type: ignore[attr-defined]
    return any(limit.cuts_epoch for limit in limits)
