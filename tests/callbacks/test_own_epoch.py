"""An epoch without validation shows, compares and stores no value of an earlier one."""

import csv
from pathlib import Path
from typing import Any

import pytest
from small_fit import QUIET, SMALL, fit_run

from imago.runs.checkpoint import read_checkpoint

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]

EVERY_SECOND = (*SMALL, "trainer.max_epochs=5", "trainer.limit_train_batches=3", "trainer.check_val_every_n_epoch=2")
QUICK = ("callbacks.image_grid=null", "logger.tensorboard=null")


def epoch_values(run: Path, name: str) -> dict[int, float]:
    """The logged values of a name by epoch, counted from 0."""
    with (run / "metrics.csv").open() as file:
        return {int(row["epoch"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


@pytest.mark.slow
@pytest.mark.parametrize("monitor", ["train/loss", "val/loss"])
@pytest.mark.parametrize("lr", ["1e-3", "3e-1"])  # falling and rising losses
def test_best_checkpoints_and_early_stopping_compare_the_values_of_each_epoch(compose, tmp_path, monitor, lr):
    best = (f"callbacks.best_checkpoint.monitor={monitor}", "callbacks.best_checkpoint.save_top_k=2")
    stop = ("callbacks=early_stopping", f"callbacks.early_stopping.monitor={monitor}")
    trainer: Any = fit_run(compose(*EVERY_SECOND, *QUICK, *best, *stop, f"optimizer.lr={lr}"), tmp_path)
    values = epoch_values(tmp_path, monitor)
    assert list(values) == ([1, 3] if monitor == "val/loss" else [0, 1, 2, 3, 4])
    best_epoch = min(values, key=values.__getitem__)
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    score = next(state["best_model_score"] for key, state in checkpoint["callbacks"].items() if "BestCheck" in key)
    assert (checkpoint["epoch"], float(score)) == (best_epoch, pytest.approx(values[best_epoch], abs=1e-5))
    kept = {file.name for file in (tmp_path / "checkpoints").glob("epoch=*")}
    name = monitor.replace("/", "_")
    two_best = sorted(values, key=values.__getitem__)[:2]
    assert kept == {f"epoch={epoch}-{name}={values[epoch]:.4f}.ckpt" for epoch in two_best}
    (stopper,) = trainer.early_stopping_callbacks
    assert float(stopper.best_score) == pytest.approx(values[best_epoch], abs=1e-5)
    assert stopper.wait_count == sum(epoch > best_epoch for epoch in values)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), ("++trainer.max_steps=14",)], ids=["epochs", "ends within an epoch"])
def test_the_line_of_an_epoch_has_a_validation_only_if_there_was_one(compose, tmp_path, caplog, settings):
    with caplog.at_level("INFO", "imago.callbacks.progress"):
        fit_run(compose(*EVERY_SECOND, *QUICK, *settings), tmp_path)
    lines = [text for text in caplog.messages if text.startswith("epoch")]
    validated = epoch_values(tmp_path, "val/loss")
    assert list(validated) == [1, 3]
    for epoch, line in enumerate(lines):
        expected = f"val loss {validated[epoch]:.3f}" if epoch in validated else "val"
        assert (expected in line) == (epoch in validated), line
    assert len(lines) == 5
