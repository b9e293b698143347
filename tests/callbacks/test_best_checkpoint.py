"""The best score survives a move of the run folder."""

from pathlib import Path

import torch

from imago.callbacks.best_checkpoint import BestCheckpoint


def had_a_best(tmp_path: Path) -> BestCheckpoint:
    old = BestCheckpoint(str(tmp_path / "old"), "val/acc", "max")
    best = str(tmp_path / "old" / "best.ckpt")
    old.best_model_path = old.kth_best_model_path = best
    old.best_model_score = old.kth_value = torch.tensor(0.9)
    old.best_k_models = {best: torch.tensor(0.9)}
    return old


def test_a_moved_run_remembers_its_best_score(tmp_path: Path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "best.ckpt").touch()
    new = BestCheckpoint(str(tmp_path / "new"), "val/acc", "max")
    new.load_state_dict(had_a_best(tmp_path).state_dict())
    assert new.best_model_score == 0.9
    assert new.best_model_path == str(tmp_path / "new" / "best.ckpt")
    assert new.best_k_models == {new.best_model_path: torch.tensor(0.9)}


def test_a_best_checkpoint_that_is_gone_is_not_believed_in(tmp_path: Path):
    new = BestCheckpoint(str(tmp_path / "new"), "val/acc", "max")
    new.load_state_dict(had_a_best(tmp_path).state_dict())
    assert (new.best_model_score, new.best_model_path, new.best_k_models) == (None, "", {})


def test_a_run_that_had_no_best_yet_starts_without(tmp_path: Path):
    state = BestCheckpoint(str(tmp_path / "old"), "val/loss", "min").state_dict()
    new = BestCheckpoint(str(tmp_path / "new"), "val/loss", "min")
    new.load_state_dict(state)
    assert new.best_model_path == ""
    assert new.best_k_models == {}
