"""A resumed run has one curve: no step twice, and the interrupted epoch's numbers are those of all its batches."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from imago.logger.metrics_csv import MetricsCsv

_KEY = "train_score"


class TruncateLogs(Callback):
    """Cuts what an interrupted run logged beyond the checkpoint that training goes on from.

    It also keeps the sums of the training images' loss and accuracy in the checkpoint: the module has them in
    `scores["train"]`. With several ranks only the first rank's sums are kept.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.cut(trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                _cut_events(logger, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count on where the interrupted run was: Lightning, resuming between two batches, counts one step twice."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step  # the step that epoch values get

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        score: Any = pl_module.scores["train"]  # type: ignore[index]  # of our task
        checkpoint[_KEY] = [torch.as_tensor(score.loss_sum), torch.as_tensor(score.num_right), score.num_images]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if _KEY in checkpoint and trainer.is_global_zero:
            score: Any = pl_module.scores["train"]  # type: ignore[index]
            score.loss_sum, score.num_right, score.num_images = checkpoint[_KEY]


def _cut_events(logger: TensorBoardLogger, step: int) -> None:
    """Tell TensorBoard that a session starts at this step: it then leaves out what earlier ones have from there on."""
    # Here, as only runs with this logger need it.
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

    writer = logger.experiment._get_file_writer()
    writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)
