"""Averaged weights: they are validated, kept as the best, tested and exported; training goes on with the others."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from imago.errors import ConfigError


class Ema(WeightAveraging):
    """An exponential moving average of weights and BatchNorm statistics, updated after every optimizer step.

    Lightning's own callback, with four things put right: a run that breaks off within validation keeps the two sets of
    weights apart; the final test gets the averaged weights of the checkpoint; whole numbers (BatchNorm's count of
    batches) are taken over, as their average would be cut off; and the average lies where the network is, not where it
    was built. Source of the idea: Polyak and Juditsky 1992; Tarvainen and Valpola 2017, section 2 (arXiv:1703.01780).

    Args:
        decay: share of the old average that stays at each step, in [0, 1); it looks back over about 1 / (1 - decay).

    Raises:
        ConfigError: a decay outside of that.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"callbacks.ema.decay={decay} must be at least 0 and below 1.")
        super().__init__(multi_avg_fn=partial(_average, 1 - decay))
        self._is_swapped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self._is_swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._is_swapped = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the weights back where they belong, before `LastCheckpoint` saves them: callbacks that save come last.

        A step that is done, but whose average is not, since another callback broke, is averaged.
        """
        if self._is_swapped:
            self.on_validation_epoch_end(trainer, pl_module)
        if self._average_model is not None:
            self.on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up both sets of weights to go on training; a test keeps what it was given, the averaged ones."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _average(share: float, averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
    """Move averages towards the current values by a share; no function within another, which ddp_spawn cannot send."""
    if averaged[0].is_floating_point():  # all of a list are of one type
        torch._foreach_lerp_(averaged, current, share)
    else:
        torch._foreach_copy_(averaged, current)
