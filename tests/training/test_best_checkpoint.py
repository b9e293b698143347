"""What is skipped after a run without a best checkpoint, or without all of its validation images."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from imago.task.base import ImageTask
from imago.training import best_checkpoint
from imago.training.best_checkpoint import calibrate_and_plot_best_checkpoint


@pytest.fixture
def calibrate_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that calibrates a run which validated on a part of the images."""
    monkeypatch.setattr(best_checkpoint, "add_hparams", lambda *arguments: None)
    cfg = OmegaConf.create({"trainer": {"limit_val_batches": 2}})

    def run(is_main_process: bool = True, predicts_classes: bool = True) -> None:
        directory: Any = SimpleNamespace(path=tmp_path, is_main_process=is_main_process, summary={"val": {"acc": 0.5}})
        trainer: Any = SimpleNamespace(loggers=[])
        task, nothing = ImageTask.__new__(ImageTask), None
        torch.nn.Module.__init__(task)
        task._hparams = {"predicts_classes": predicts_classes}
        calibrate_and_plot_best_checkpoint(cfg, nothing, task, trainer, directory)

    (tmp_path / "checkpoints").mkdir()
    return run


def test_without_a_best_checkpoint_nothing_is_calibrated(calibrate_and_plot, caplog: pytest.LogCaptureFixture):
    calibrate_and_plot()
    assert caplog.text == ""


def test_a_part_of_the_validation_images_is_too_few_to_calibrate(calibrate_and_plot, tmp_path: Path, caplog):
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    calibrate_and_plot(is_main_process=False)
    with caplog.at_level("INFO", "imago"):
        calibrate_and_plot()
    assert [record.getMessage() for record in caplog.records] == [
        "not calibrated: trainer.limit_val_batches=2 left images out"
    ]


def test_outputs_that_are_not_the_classes_of_the_data_are_not_calibrated(calibrate_and_plot, tmp_path: Path, caplog):
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    with caplog.at_level("INFO", "imago"):
        calibrate_and_plot(predicts_classes=False)
    assert "not calibrated: the outputs of ImageTask are not the classes of the data" in caplog.text
