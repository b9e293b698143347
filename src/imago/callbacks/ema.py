"""Average the weights over training; the averaged weights are validated, saved as the best, tested and exported."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from imago.callbacks.train_metrics import num_steps_done
from imago.errors import ConfigError


class Ema(WeightAveraging):
    """An exponential moving average of weights and BatchNorm statistics, updated after every optimizer step.

    It changes three things in Lightning's callback: the final test uses the averaged weights of the checkpoint;
    integers (BatchNorm's count of batches) are copied, as their average would be truncated; and the average is on the
    device of the network. The weights are swapped only within a validation, where nothing is saved.

    Source: Polyak and Juditsky 1992; Tarvainen and Valpola 2017, section 2 (arXiv:1703.01780). The warm-up of the decay
    is that of TensorFlow's `ExponentialMovingAverage` with `num_updates`.

    Args:
        decay: share of the old average that is kept at each step, in [0, 1); it averages about 1 / (1 - decay) steps.
            After t steps at most (1 + t) / (10 + t) is kept, or a short run would average its first weights.

    Raises:
        ConfigError: if `decay` is out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"callbacks.ema.decay={decay} must be at least 0 and below 1.")

        def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
            if averaged[0].is_floating_point():  # the tensors of one call have one type
                # Not `num_averaged`: it is on the device, and reading it would wait for the device.
                step = num_steps_done(self._trainer) - 1
                torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + step) / (10 + step)))
            else:
                torch._foreach_copy_(averaged, current)

        super().__init__(multi_avg_fn=average)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer, self._device = trainer, trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Update after each step; Lightning compares `global_step`, which counts no steps of a raw optimizer."""
        step = num_steps_done(trainer)
        if step > self._latest_update_step and self._average_model is not None:
            self._average_model.update_parameters(pl_module)
            self._latest_update_step = step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load both sets of weights to continue training; a test keeps the averaged ones, which are already loaded."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
