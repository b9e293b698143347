"""When `trainer.max_time` ends training; `test_last_checkpoint.py` resumes such runs."""

from types import SimpleNamespace
from typing import Any

import pytest

from imago.callbacks.time_limit import TimeLimit, is_time_up
from imago.errors import ConfigError

MODULE: Any = None


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
    return trainer.should_stop, is_time_up(trainer)


def test_training_ends_after_a_batch_that_ends_a_step():
    assert end_batch(0) == (False, False)
    assert end_batch(1) == (True, True)


def test_training_does_not_end_before_a_validation_within_the_epoch():
    assert end_batch(1, is_validation_due=True) == (False, False)


def test_the_last_batch_of_an_epoch_does_not_cut_it():
    assert end_batch(4, is_validation_due=True) == (True, False)


def test_a_run_without_time_left_is_refused():
    limit = TimeLimit("00:00:00:00")
    trainer: Any = SimpleNamespace(should_stop=False, strategy=SimpleNamespace(broadcast=lambda value: value))
    with pytest.raises(ConfigError, match="trainer.max_time=00:00:00:00: the run has used it up"):
        limit.on_fit_start(trainer)
