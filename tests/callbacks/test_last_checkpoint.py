"""When `last.ckpt` is written, and when it must not be."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imago.callbacks import last_checkpoint
from imago.callbacks.last_checkpoint import LastCheckpoint
from imago.errors import DivergedError, StorageError
from imago.task.epoch_metrics import EpochMetrics


class Saves:
    """Stands for a Trainer in its third step; counts what is saved."""

    def __init__(self, world_size: int = 2, rank: int = 0) -> None:
        self.saved: list[Path] = []
        self.world_size, self.is_global_zero, self.global_step = world_size, rank == 0, 3
        self.accumulate_grad_batches, self.num_training_batches, self.should_stop, self.validating = 2, 8, False, False
        self.callbacks: list[Any] = []
        self._checkpoint_connector = SimpleNamespace(dump_checkpoint=lambda weights_only: {})
        self.strategy = SimpleNamespace(save_checkpoint=lambda state, path: self.saved.append(path))
        none_yet = SimpleNamespace(current=SimpleNamespace(processed=0, completed=0))
        epoch_loop = SimpleNamespace(batch_progress=none_yet, val_loop=SimpleNamespace(batch_progress=none_yet))
        self.fit_loop = SimpleNamespace(epoch_loop=epoch_loop, epoch_progress=none_yet)


MODULE: Any = torch.nn.BatchNorm1d(2)
MODULE.scores = {"train": EpochMetrics()}


def in_training(trainer: Any, **settings: float) -> LastCheckpoint:
    callback = LastCheckpoint("run/checkpoints", **settings)
    callback.on_train_start(trainer, MODULE)
    return callback


def test_an_error_saves_once_training_has_begun():
    trainer: Any = Saves()
    in_training(trainer).on_exception(trainer, MODULE, ValueError())
    assert trainer.saved == [Path("run/checkpoints/last.ckpt").absolute()]


@pytest.mark.parametrize("error", [DivergedError("nan"), StorageError("full")])
def test_broken_numbers_and_a_full_disk_are_not_saved(error: Exception):
    trainer: Any = Saves()
    in_training(trainer).on_exception(trainer, MODULE, error)
    assert trainer.saved == []


def test_an_error_while_a_checkpoint_is_restored_or_in_the_test_saves_nothing():
    trainer: Any = Saves()
    LastCheckpoint("run/checkpoints").on_exception(trainer, MODULE, ValueError())
    callback = in_training(trainer)
    callback.on_train_end(trainer, MODULE)
    callback.on_exception(trainer, MODULE, ValueError())
    assert trainer.saved == []


def test_only_the_first_rank_saves():
    trainer: Any = Saves(rank=1)
    in_training(trainer).on_exception(trainer, MODULE, ValueError())
    assert trainer.saved == []


def test_a_long_epoch_is_saved_between_steps_when_the_time_has_come(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(last_checkpoint, "monotonic", lambda: clock[0])
    trainer: Any = Saves()
    callback = in_training(trainer, every_minutes=10.0)
    callback.on_train_epoch_start(trainer, MODULE)
    due = []
    for batch in range(8):  # of 4 minutes each; two make a step
        before = len(trainer.saved)
        callback.on_train_batch_start(trainer, MODULE, None, batch)
        due += [batch] if len(trainer.saved) > before else []
        clock[0] += 240
    assert due == [4]  # 10 minutes are over in batch 3, within a step; then again after batch 7


def test_what_a_broken_batch_has_changed_is_undone():
    trainer: Any = Saves()
    callback = in_training(trainer)
    callback.on_train_batch_start(trainer, MODULE, None, 0)
    MODULE(torch.full((3, 2), 7.0))
    MODULE.scores["train"].update(torch.tensor(1.0), torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    callback.on_exception(trainer, MODULE, ValueError())
    assert MODULE.running_mean.tolist() == [0.0, 0.0]
    assert (MODULE.num_batches_tracked, MODULE.scores["train"].num_images, len(trainer.saved)) == (0, 0, 1)


def test_what_a_finished_step_has_changed_stays():
    trainer: Any = Saves()
    callback = in_training(trainer)
    module: Any = torch.nn.BatchNorm1d(2)
    module.scores = {"train": EpochMetrics()}
    callback.on_train_start(trainer, module)
    callback.on_train_batch_start(trainer, module, None, 0)
    module(torch.full((3, 2), 7.0))
    trainer.global_step += 1
    callback.on_exception(trainer, module, ValueError())
    assert module.num_batches_tracked == 1


def test_within_the_optimizer_nothing_is_saved():
    trainer: Any = Saves()
    callback = in_training(trainer)
    callback.on_before_optimizer_step(trainer, MODULE, None)  # type: ignore[arg-type]
    callback.on_exception(trainer, MODULE, ValueError())
    assert trainer.saved == []
