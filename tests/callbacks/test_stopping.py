"""When a signal or `trainer.max_time` ends training; `test_checkpoints.py` and end_to_end resume such runs."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imago.callbacks.stopping import StopOnSignal, TimeLimit, has_epoch_ended_early
from imago.errors import ConfigError, Stopped
from imago.runs.run_directory import RunDirectory

MODULE: Any = None


def test_a_signal_stops_before_the_batch_that_begins_the_next_step_and_saves(tmp_path: Path):
    directory = RunDirectory(tmp_path, tmp_path)
    saved: list[Any] = []
    checkpoints = [SimpleNamespace(save_now=saved.append), SimpleNamespace()]
    trainer: Any = SimpleNamespace(accumulate_grad_batches=2, world_size=1, checkpoint_callbacks=checkpoints)
    callback = StopOnSignal(directory)
    callback.on_train_batch_start(trainer, MODULE, None, 0)
    directory.signals.received_signal = signal.SIGUSR1
    callback.on_train_batch_start(trainer, MODULE, None, 1)
    assert saved == []
    with pytest.raises(Stopped) as stop:
        callback.on_train_batch_start(trainer, MODULE, None, 2)
    assert (stop.value.reason, saved) == ("SIGUSR1", [trainer])


def end_batch(batch_idx: int, is_validation_due: bool = False) -> tuple[bool, bool]:
    """End a batch of 5, two of which make a step, after the time is up: whether it stops, and cuts the epoch."""
    limit = TimeLimit("00:00:00:01")
    limit._duration = 0.0
    epoch_loop = SimpleNamespace(_should_check_val_fx=lambda fetcher: is_validation_due)
    trainer: Any = SimpleNamespace(
        callbacks=[limit],
        num_training_batches=5,
        accumulate_grad_batches=2,
        should_stop=False,
        fit_loop=SimpleNamespace(epoch_loop=epoch_loop, _data_fetcher=None),
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )
    limit.on_train_batch_end(trainer, MODULE, None, None, batch_idx)
    return trainer.should_stop, has_epoch_ended_early(trainer)


def test_a_time_limit_ends_training_between_steps_and_not_before_a_validation_within_the_epoch():
    assert end_batch(0) == (False, False)
    assert end_batch(1) == (True, True)
    assert end_batch(1, is_validation_due=True) == (False, False)
    assert end_batch(4, is_validation_due=True) == (True, False)  # the last batch does not cut the epoch


def test_a_run_without_time_left_is_refused():
    limit = TimeLimit("00:00:00:00")
    trainer: Any = SimpleNamespace(should_stop=False, strategy=SimpleNamespace(broadcast=lambda value: value))
    with pytest.raises(ConfigError, match="trainer.max_time=00:00:00:00: no time is left"):
        limit.on_fit_start(trainer)
