"""Record the loss of every step of a short training, for `tune=lr`."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

_DIVERGENCE_RATIO = 4.0  # times the lowest loss so far: as in fastai's learning rate finder


class LossCurve(Callback):
    """Record the losses and stop training after `num_steps` optimizer steps, or earlier if the loss has diverged.

    `losses` has the loss of each optimizer step; the last may be NaN or infinite.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.losses: list[float] = []
        self._batch_losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch_losses.append(outputs["loss"].item() * trainer.accumulate_grad_batches)  # Lightning has divided it
        if trainer.global_step == len(self.losses):  # this batch did not end an optimizer step
            return
        self.losses.append(sum(self._batch_losses) / len(self._batch_losses))
        self._batch_losses.clear()
        newest = self.losses[-1]
        has_diverged = not math.isfinite(newest) or newest > _DIVERGENCE_RATIO * min(self.losses)
        if has_diverged or len(self.losses) == self.num_steps:
            trainer.should_stop = True
