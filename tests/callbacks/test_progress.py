"""The line of each epoch and the text after the bar."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tqdm import tqdm

from imago.callbacks.progress import Progress
from imago.callbacks.train_metrics import TrainMetrics, log_step


def test_each_epoch_of_this_process_is_one_line_with_the_values_of_both_splits(caplog: pytest.LogCaptureFixture):
    values = {"train/loss": 1.25, "train/acc": 0.5, "val/loss": 1.5, "val/acc": 0.4567, "val/f1": 0.5, "val_top5": 1.0}
    metrics = {name: torch.tensor(value) for name, value in values.items()}
    trainer: Any = SimpleNamespace(
        current_epoch=1, max_epochs=3, callback_metrics=metrics, num_training_batches=2, is_global_zero=True, loggers=[]
    )
    module: Any = None
    progress = Progress(refresh_every_n_steps=10)
    progress._trainer = trainer
    with caplog.at_level(logging.INFO, "imago"):
        progress.on_train_start(trainer, module)  # resumed in the second epoch, which is not logged yet
        progress.on_train_epoch_start(trainer, module)
        assert caplog.messages == []
        trainer.current_epoch = 2
        progress.on_train_epoch_start(trainer, module)
        trainer.current_epoch = 3
        progress.on_train_end(trainer, module)
    expected = "train loss 1.250 acc 50.00%   val loss 1.500 acc 45.67% f1 0.5000   val_top5 1"
    lines = [message.rpartition("   ")[0] for message in caplog.messages]  # without the seconds
    assert lines == [f"epoch   2/3   {expected}", f"epoch   3/3   {expected}"]


def test_the_bar_shows_the_values_of_the_last_logging_step():
    metrics, module = TrainMetrics(), SimpleNamespace()
    trainer: Any = SimpleNamespace(callbacks=[metrics], loggers=[])
    log_step(trainer, {"train/loss_step": 0.1234, "images_per_s": 12345.6, "lr": 0.1}, 3)
    assert Progress(10).get_metrics(trainer, module) == {"loss": "0.123", "images/s": "12,346"}


def test_the_bar_shows_every_metric_of_the_last_validation():
    values = {"val/loss": 0.12345, "val/acc": 0.5, "val/f1": 0.25, "val_iou": 0.125, "val_loss": 1.5, "train/loss": 1.0}
    metrics = {name: torch.tensor(value) for name, value in values.items()}
    trainer: Any = SimpleNamespace(callbacks=[], callback_metrics=metrics, state=SimpleNamespace(fn="validate"))
    module: Any = None
    progress = Progress(10)
    progress.val_progress_bar = tqdm(disable=True)
    assert progress.get_metrics(trainer, module) == {}
    progress.on_validation_end(trainer, module)
    shown = {"val/acc": "50.00%", "val/f1": "0.2500", "val_iou": "0.1250", "val_loss": "1.500"}
    assert progress.get_metrics(trainer, module) == shown
