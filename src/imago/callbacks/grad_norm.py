"""How long the gradient is: a jump tells of trouble before the loss does."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class GradNorm(Callback):
    """Logs `grad_norm` on logging steps: the Euclidean length of the gradient of all weights, before it is clipped."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        gradients = [
            weight.grad for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None
        ]
        module: Any = pl_module  # of our task
        module.log_step({"grad_norm": torch.nn.utils.get_total_norm(gradients).item()}, trainer.global_step)
