"""Seed torch before every training step, from (seed, epoch, batch index, rank)."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from imago.seeding import derive_seed


class StepSeed(Callback):
    """Seed dropout and other random layers, so that a resumed run draws the same numbers as an uninterrupted one.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(derive_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))
