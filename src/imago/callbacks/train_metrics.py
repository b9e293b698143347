"""Record what `training_step` returns: loss and accuracy of the epoch, and of single steps on logging steps."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from imago.errors import ConfigError, DivergedError
from imago.task.base import ImageTask
from imago.task.metrics import LossAndAccuracy, count_correct


def num_steps_done(trainer: Trainer) -> int:
    """Return the number of optimizer steps so far; with manual optimization, that of batches."""
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return batches.processed


def log_step(trainer: Trainer, values: dict[str, float], step: int) -> None:
    """Pass numbers of a step to the loggers, and keep them for the progress bar.

    `self.log` would convert each to a tensor and, for the bar, synchronize with the device on every step.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, TrainMetrics):
            callback.newest |= values
    for logger in trainer.loggers:
        logger.log_metrics({**values, "epoch": trainer.current_epoch}, step)


class TrainMetrics(Callback):
    """Log `train/loss` and `train/acc` of each epoch of an `ImageTask`, and of single steps on logging steps.

    The sums are saved, so that the values of an interrupted epoch are those of all its batches; with several ranks only
    those of rank 0. With manual optimization it also steps the schedule, once per batch.
    """

    def __init__(self) -> None:
        self.newest: dict[str, float] = {}  # newest value of each name passed to `log_step`
        self._sums = LossAndAccuracy()
        self._step = 0  # steps before the current batch
        self._logged_step = -1
        self._lr = math.nan

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step = num_steps_done(trainer)
        if self._is_due(trainer) and trainer.optimizers:
            self._lr = trainer.optimizers[0].param_groups[0]["lr"]  # before the schedule steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the batch; on a logging step log it, which synchronizes with the device.

        Raises:
            DivergedError: if the loss of a logging step is not finite.
        """
        if not isinstance(pl_module, ImageTask):
            return
        if not pl_module.automatic_optimization:
            for config in trainer.lr_scheduler_configs:
                config.scheduler.step()  # type: ignore[call-arg]  # `Plateau` needs no argument either
        if not isinstance(outputs, Mapping) or outputs.get("loss") is None:
            return  # the step was skipped
        loss, logits, labels = outputs["loss"], outputs.get("logits"), outputs.get("labels")
        if pl_module.automatic_optimization and trainer.accumulate_grad_batches > 1:
            loss = loss * trainer.accumulate_grad_batches  # Lightning has divided it
        self._sums.update(loss, len(batch[0]), logits, labels)
        if self._is_due(trainer):
            self._logged_step = self._step  # with accumulation, the first batch of a step logs
            values = {"train/loss_step": loss.item()}
            if not math.isfinite(values["train/loss_step"]) and not _is_fp16_overflow(trainer):
                raise DivergedError(
                    f"the loss is {values['train/loss_step']} at epoch {trainer.current_epoch}, step {self._step}; "
                    f"lower optimizer.lr, set trainer.gradient_clip_val=1.0, or check the data with src/check.py."
                )
            if logits is not None and labels is not None:
                values["train/acc_step"] = count_correct(logits, labels).item() / len(logits)
            log_step(trainer, values | {"lr": float(self._lr)}, self._step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            self._sums = LossAndAccuracy()  # a checkpoint has the sums of rank 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sums = LossAndAccuracy()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, ImageTask):
            result = self._sums.compute(trainer.strategy)
            result.pop("num_images", None)
            pl_module.log_dict({f"train/{name}": value for name, value in result.items()}, sync_dist=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise a ConfigError if early stopping monitors a name that is not logged; training values follow later."""
        for stopper in trainer.early_stopping_callbacks:
            is_missing = stopper.monitor not in trainer.callback_metrics and not stopper.monitor.startswith("train")
            if is_missing and not trainer.sanity_checking:
                logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
                raise ConfigError(
                    f"early stopping: monitor={stopper.monitor} is not logged by {type(pl_module).__name__}; it logs "
                    f"{logged}; type callbacks.early_stopping.monitor=NAME."
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the current epoch."""
        return {name: torch.as_tensor(value) for name, value in vars(self._sums).items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self._sums, name, int(value) if name in ("num_images", "num_counted") else value)

    def _is_due(self, trainer: Trainer) -> bool:
        return (self._step + 1) % trainer.log_every_n_steps == 0 and self._logged_step != self._step  # type: ignore[attr-defined]


def _is_fp16_overflow(trainer: Trainer) -> bool:
    """Return whether a loss that is not finite is an fp16 overflow: the scaler skips such a step and halves its scale.

    It is not an overflow if the weights are not finite either, or if the scale is already below 1.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or scaler.get_scale() < 1.0:
        return False
    return all(bool(value.isfinite().all()) for value in trainer.lightning_module.state_dict().values())
