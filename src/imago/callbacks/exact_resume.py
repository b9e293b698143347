"""Make a resumed run draw the same random numbers and log the same curves as an uninterrupted one."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from imago.logger.metrics_csv import MetricsCsv
from imago.seeding import derive_seed

_TRAIN_SUMS_KEY = "train_score"


class StepSeed(Callback):
    """Seed dropout and other random layers before every training step, from (seed, epoch, batch index, rank).

    Args:
        seed: the setting `seed`, the first part of the key.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(derive_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))


class TruncateLogs(Callback):
    """Remove from the logs what an interrupted run logged after its last save, so that each step appears once.

    It also saves the sums of the training loss and accuracy (the task's `epoch_metrics["train"]`) in the checkpoint, so
    that the values of an interrupted epoch are those of all its batches; with several ranks only those of rank 0.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, MetricsCsv):
                logger.truncate(trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                _truncate_events(logger, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # The step of epoch values. Lightning counts one step twice if it resumes between two batches.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        metrics: Any = pl_module.epoch_metrics["train"]  # type: ignore[index]  # of our task
        checkpoint[_TRAIN_SUMS_KEY] = [
            torch.as_tensor(metrics.loss_sum),
            torch.as_tensor(metrics.num_correct),
            metrics.num_images,
        ]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if _TRAIN_SUMS_KEY in checkpoint and trainer.is_global_zero:
            metrics: Any = pl_module.epoch_metrics["train"]  # type: ignore[index]
            metrics.loss_sum, metrics.num_correct, metrics.num_images = checkpoint[_TRAIN_SUMS_KEY]


def _truncate_events(logger: TensorBoardLogger, step: int) -> None:
    """Write the event of a session start at this step: TensorBoard then ignores older events from that step on."""
    # Imported here because only runs with this logger need it.
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

    writer = logger.experiment._get_file_writer()
    writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)
