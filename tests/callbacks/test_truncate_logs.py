"""The curves of a resumed run: no step appears twice, and none is missing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imago.callbacks.truncate_logs import TruncateLogs
from imago.logger.metrics_csv import MetricsCsv
from imago.task.classification import EpochMetrics


def resume(folder: Path, step: int, is_first: bool = True) -> tuple[MetricsCsv, TensorBoardLogger]:
    """Begin to train at a step with new loggers, as a resumed run does."""
    loggers = MetricsCsv(str(folder / "metrics.csv")), TensorBoardLogger(str(folder), name="tensorboard", version="")
    trainer: Any = SimpleNamespace(loggers=loggers, global_step=step, is_global_zero=is_first)
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
    resume(tmp_path, 0, is_first=False)
    assert list(tmp_path.iterdir()) == []


def test_the_sums_of_the_interrupted_epoch_are_continued():
    whole, first, second = EpochMetrics(), EpochMetrics(), EpochMetrics()
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    for score, losses in ((whole, (0.5, 0.25)), (first, (0.5,))):
        for loss in losses:
            score.update(torch.tensor(loss), logits, labels)
    state: dict[str, Any] = {}
    callback, trainer = TruncateLogs(), SimpleNamespace(is_global_zero=True)
    callback.on_save_checkpoint(trainer, SimpleNamespace(epoch_metrics={"train": first}), state)  # type: ignore[arg-type]
    callback.on_load_checkpoint(trainer, SimpleNamespace(epoch_metrics={"train": second}), state)  # type: ignore[arg-type]
    second.update(torch.tensor(0.25), logits, labels)
    for name in ("loss_sum", "num_correct", "num_images"):
        assert getattr(second, name) == getattr(whole, name)
