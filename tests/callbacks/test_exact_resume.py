"""A resumed run draws the same numbers, and its curves have every step once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imago.callbacks.exact_resume import StepSeed, TruncateLogs
from imago.logger.metrics_csv import MetricsCsv

MODULE = SimpleNamespace(automatic_optimization=True)
HERE = {"seed": 1, "epoch": 2, "batch": 3, "rank": 0}


def draws(seed: int, epoch: int, batch: int, rank: int) -> list[float]:
    """What a network would draw in this step."""
    with torch.random.fork_rng():
        torch.rand(1 + batch)  # whatever came before
        trainer: Any = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        StepSeed(seed).on_train_batch_start(trainer, SimpleNamespace(), None, batch)  # type: ignore[arg-type]
        return torch.rand(8).tolist()


@pytest.mark.parametrize("name", HERE)
def test_another_seed_epoch_batch_or_rank_draws_something_else(name: str):
    assert draws(**HERE) == draws(**HERE)
    assert draws(**HERE) != draws(**HERE | {name: HERE[name] + 1})


def resume(run_dir: Path, step: int, is_rank_0: bool = True) -> tuple[MetricsCsv, TensorBoardLogger]:
    """Begin to train at a step with new loggers, as a resumed run does."""
    loggers = MetricsCsv(str(run_dir / "metrics.csv")), TensorBoardLogger(str(run_dir), name="tensorboard", version="")
    trainer: Any = SimpleNamespace(loggers=loggers, global_step=step, is_global_zero=is_rank_0, lightning_module=MODULE)
    TruncateLogs().on_train_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
    return loggers


def log(loggers, steps) -> None:
    for step in steps:
        for logger in loggers:
            logger.log_metrics({"loss": float(step)}, step)
    loggers[1].experiment.flush()


def test_rows_after_the_checkpoint_are_removed_before_the_first_new_one(tmp_path: Path):
    log(resume(tmp_path, 0), range(0, 10))
    loggers = resume(tmp_path, 4)
    steps = [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert steps == ["step", "0", "1", "2", "3"]
    log(loggers, [7])  # now with a larger log_every_n_steps
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [0, 1, 2, 3, 7]


def test_only_rank_0_writes_files(tmp_path: Path):
    resume(tmp_path, 0, is_rank_0=False)
    assert list(tmp_path.iterdir()) == []
