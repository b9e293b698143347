"""Dropout and the like draw from (seed, epoch, batch, rank): nothing depends on what came before."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from imago.seeding import derive_seed


class StepSeed(Callback):
    """Seeds torch before every training step, so that a resumed run draws what the uninterrupted one would have.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(derive_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))
