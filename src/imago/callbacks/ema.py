"""Average the weights over training; the averaged weights are validated, saved as the best, tested and exported."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from imago.callbacks.train_metrics import num_steps_done
from imago.errors import ConfigError


class Ema(WeightAveraging):
    """An exponential moving average of weights and BatchNorm statistics, updated after every optimizer step.

    It changes four things in Lightning's callback: the final test uses the averaged weights of the checkpoint; integers
    (BatchNorm's count of batches) are copied, as their average would be truncated; the average is on the device of the
    network; and an update does not wait for the device, as torch's does to read its count of updates. The weights are
    swapped only within a validation, where nothing is saved.

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
        super().__init__()
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Update after each step; Lightning compares `global_step`, which counts no steps of a raw optimizer."""
        step = num_steps_done(trainer)
        if step > self._latest_update_step and self._average_model is not None:
            # The first update copies; a step before this one is counted from 0.
            kept = min(self.decay, step / (9 + step)) if self._latest_update_step else 0.0
            _average(self._average_model.module, pl_module, kept)
            self._average_model.n_averaged += 1
            self._latest_update_step = step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load both sets of weights to continue training; a test keeps the averaged ones, which are already loaded."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


@torch.no_grad()
def _average(averaged: nn.Module, current: nn.Module, kept: float) -> None:
    """Replace the share 1 - `kept` of the floating-point tensors of `averaged`, and its integers."""
    pairs = list(zip(_tensors(averaged), _tensors(current), strict=True))
    lerped = [pair for pair in pairs if kept and pair[0].is_floating_point()]
    copied = [pair for pair in pairs if not (kept and pair[0].is_floating_point())]
    if lerped:
        torch._foreach_lerp_([old for old, _ in lerped], [new for _, new in lerped], 1 - kept)
    if copied:
        torch._foreach_copy_([old for old, _ in copied], [new for _, new in copied])


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
