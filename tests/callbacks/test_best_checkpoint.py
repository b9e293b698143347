"""The best score is kept when the run directory is moved; a cut epoch and a validation within a step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from imago.callbacks.best_checkpoint import BestCheckpoint
from imago.callbacks.time_limit import TimeLimit
from imago.errors import ConfigError
from imago.runs.checkpoint import write_checkpoint


def with_best(tmp_path: Path) -> BestCheckpoint:
    old = BestCheckpoint(str(tmp_path / "old"), "val/acc", "max")
    best = str(tmp_path / "old" / "best.ckpt")
    old.best_model_path = old.kth_best_model_path = best
    old.best_model_score = old.kth_value = torch.tensor(0.9)
    old.best_k_models = {best: torch.tensor(0.9)}
    return old


def test_a_moved_run_keeps_its_best_score(tmp_path: Path):
    write_checkpoint({"imago": {"schema": 2}}, tmp_path / "new" / "best.ckpt")
    new = BestCheckpoint(str(tmp_path / "new"), "val/acc", "max")
    new.load_state_dict(with_best(tmp_path).state_dict())
    assert new.best_model_score == 0.9
    assert new.best_model_path == str(tmp_path / "new" / "best.ckpt")
    assert new.best_k_models == {new.best_model_path: torch.tensor(0.9)}


@pytest.mark.parametrize("content", [None, b"", b"PK half of it"])
def test_a_best_score_without_an_intact_file_is_forgotten(tmp_path: Path, content: bytes | None):
    (tmp_path / "new").mkdir()
    if content is not None:
        (tmp_path / "new" / "best.ckpt").write_bytes(content)
    new = BestCheckpoint(str(tmp_path / "new"), "val/acc", "max")
    new.load_state_dict(with_best(tmp_path).state_dict())
    assert (new.best_model_score, new.best_model_path, new.best_k_models) == (None, "", {})


def test_a_run_without_a_best_yet_is_resumed_without(tmp_path: Path):
    state = BestCheckpoint(str(tmp_path / "old"), "val/loss", "min").state_dict()
    new = BestCheckpoint(str(tmp_path / "new"), "val/loss", "min")
    new.load_state_dict(state)
    assert new.best_model_path == ""
    assert new.best_k_models == {}


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
@pytest.mark.parametrize(
    ("cuts_epoch", "has_best", "is_compared"), [(True, True, False), (True, False, True), (False, True, True)]
)
def test_an_epoch_that_was_cut_short_counts_only_if_there_is_no_other(
    tmp_path: Path, monkeypatch, hook: str, cuts_epoch: bool, has_best: bool, is_compared: bool
):
    compared: list[str] = []
    monkeypatch.setattr(ModelCheckpoint, hook, lambda self, trainer, pl_module: compared.append(hook))
    limit = TimeLimit("00:00:00:01")
    limit.cuts_epoch = cuts_epoch
    trainer: Any = SimpleNamespace(callbacks=[limit])
    callback = with_best(tmp_path) if has_best else BestCheckpoint(str(tmp_path), "val/acc", "max")
    getattr(callback, hook)(trainer, None)
    assert bool(compared) == is_compared


@pytest.mark.parametrize(
    ("interval", "accumulate", "num_batches", "every_n_epochs", "is_refused"),
    [
        (3, 2, 8, 1, True),
        (4, 2, 8, 1, False),
        (5, 2, 5, 1, False),  # at the end of the epoch the last step ends, too
        (4, 2, 5, None, True),  # counted over epochs
        (4, 2, 8, None, False),
        (float("inf"), 2, 8, 1, False),
    ],
)
def test_a_validation_within_an_optimizer_step_is_refused(
    tmp_path: Path, interval: float, accumulate: int, num_batches: int, every_n_epochs: int | None, is_refused: bool
):
    trainer: Any = SimpleNamespace(
        val_check_batch=interval,
        val_check_interval=interval,
        accumulate_grad_batches=accumulate,
        num_training_batches=num_batches,
        check_val_every_n_epoch=every_n_epochs,
        enable_validation=True,
    )
    callback, module = BestCheckpoint(str(tmp_path), "val/acc", "max"), None
    if is_refused:
        with pytest.raises(ConfigError, match=f"trainer.val_check_interval={interval} validates after {interval} ba"):
            callback.on_train_start(trainer, module)  # type: ignore[arg-type]
    else:
        callback.on_train_start(trainer, module)  # type: ignore[arg-type]
