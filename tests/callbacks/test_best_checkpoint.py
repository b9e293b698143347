"""The best score survives a move of the run directory."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from imago.callbacks.best_checkpoint import BestCheckpoint
from imago.callbacks.time_limit import TimeLimit
from imago.runs.checkpoint import write_checkpoint


def had_a_best(tmp_path: Path) -> BestCheckpoint:
    old = BestCheckpoint(str(tmp_path / "old"), "val/acc", "max")
    best = str(tmp_path / "old" / "best.ckpt")
    old.best_model_path = old.kth_best_model_path = best
    old.best_model_score = old.kth_value = torch.tensor(0.9)
    old.best_k_models = {best: torch.tensor(0.9)}
    return old


def test_a_moved_run_remembers_its_best_score(tmp_path: Path):
    write_checkpoint({"imago": {"schema": 1}}, tmp_path / "new" / "best.ckpt")
    new = BestCheckpoint(str(tmp_path / "new"), "val/acc", "max")
    new.load_state_dict(had_a_best(tmp_path).state_dict())
    assert new.best_model_score == 0.9
    assert new.best_model_path == str(tmp_path / "new" / "best.ckpt")
    assert new.best_k_models == {new.best_model_path: torch.tensor(0.9)}


@pytest.mark.parametrize("content", [None, b"", b"PK half of it"])
def test_a_best_checkpoint_that_is_gone_or_damaged_is_not_believed_in(tmp_path: Path, content: bytes | None):
    (tmp_path / "new").mkdir()
    if content is not None:
        (tmp_path / "new" / "best.ckpt").write_bytes(content)
    new = BestCheckpoint(str(tmp_path / "new"), "val/acc", "max")
    new.load_state_dict(had_a_best(tmp_path).state_dict())
    assert (new.best_model_score, new.best_model_path, new.best_k_models) == (None, "", {})


def test_a_run_that_had_no_best_yet_starts_without(tmp_path: Path):
    state = BestCheckpoint(str(tmp_path / "old"), "val/loss", "min").state_dict()
    new = BestCheckpoint(str(tmp_path / "new"), "val/loss", "min")
    new.load_state_dict(state)
    assert new.best_model_path == ""
    assert new.best_k_models == {}


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
@pytest.mark.parametrize(
    ("cuts_epoch", "has_best", "is_compared"), [(True, True, False), (True, False, True), (False, True, True)]
)
def test_an_epoch_that_was_cut_short_counts_only_where_there_is_no_other(
    tmp_path: Path, monkeypatch, hook: str, cuts_epoch: bool, has_best: bool, is_compared: bool
):
    compared: list[str] = []
    monkeypatch.setattr(ModelCheckpoint, hook, lambda self, trainer, pl_module: compared.append(hook))
    limit = TimeLimit("00:00:00:01")
    limit.cuts_epoch = cuts_epoch
    trainer: Any = SimpleNamespace(callbacks=[limit])
    callback = had_a_best(tmp_path) if has_best else BestCheckpoint(str(tmp_path), "val/acc", "max")
    getattr(callback, hook)(trainer, None)
    assert bool(compared) == is_compared
