"""A resumed run continues its W&B run."""

from pathlib import Path

import pytest

from imago.logger.wandb_id import wandb_id

WANDB = {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "imago"}


def test_a_run_has_one_id_that_is_kept_in_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert wandb_id(WANDB, tmp_path) == {}  # only rank 0 logs
    monkeypatch.delenv("LOCAL_RANK")
    first = wandb_id(WANDB, tmp_path)
    assert wandb_id(WANDB, tmp_path) == first == {"id": (tmp_path / "wandb_id.txt").read_text()}
    (tmp_path / "other").mkdir()
    assert wandb_id(WANDB, tmp_path / "other") != first


@pytest.mark.parametrize(
    "logger",
    [WANDB | {"id": "mine"}, WANDB | {"version": "mine"}, {"_target_": "lightning.pytorch.loggers.CSVLogger"}],
)
def test_a_typed_id_and_other_loggers_are_left_alone(logger: dict, tmp_path: Path):
    assert wandb_id(logger, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
