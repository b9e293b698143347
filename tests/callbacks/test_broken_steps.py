"""An exception at any moment of the training: the run goes on to the weights and curves of one that never broke."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from small_fit import QUIET, build_data, build_task, build_trainer

from imago.runs.checkpoint import read_checkpoint

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(text) for text in QUIET)]

# Two epochs of four steps, with BatchNorm, averaged weights, mixed images, and a schedule in steps.
SETTINGS = (
    *("data=shapes", "data.batch_size=8", "model=small_resnet", "model.width=4", "augment.mixup_alpha=0.2"),
    *("callbacks=[default,ema]", "callbacks.ema.decay=0.8", "callbacks.image_grid=null"),
    *("trainer.max_epochs=2", "trainer.limit_train_batches=4", "trainer.limit_val_batches=2"),
    "trainer.log_every_n_steps=1",
)
MEASURED = ("images_per_s", "data_wait_share", "peak_memory_gib")  # no function of the seed

# Each with the optimizer steps that are done when it comes; 3 is within the first epoch, 4 at its end.
MOMENTS = [
    *(("on_train_batch_start", 3), ("on_before_zero_grad", 3), ("on_before_backward", 3), ("on_after_backward", 3)),
    *(("on_before_optimizer_step", 3), ("on_train_batch_end", 3), ("on_train_batch_end", 4)),
    *(("on_validation_start", 4), ("on_validation_epoch_start", 4), ("on_validation_batch_end", 4)),
    *(("on_validation_epoch_end", 4), ("on_validation_end", 8), ("on_train_epoch_end", 8)),
    *(("on_train_epoch_start", 4), ("on_train_batch_start", 4), ("on_after_backward", 7), ("on_train_batch_end", 8)),
]


class RaiseIn(Callback):
    """A bug in one of a callback's hooks."""

    def __init__(self, hook: str, step: int) -> None:
        def break_off(trainer: Any, *arguments: Any, **named: Any) -> None:
            if trainer.global_step == step:
                raise ZeroDivisionError(f"broken in {hook}")

        setattr(self, hook, break_off)


def fit(cfg, run: Path, *callbacks: Callback, resume: bool = False, is_first: bool = False) -> None:
    data = build_data(cfg)
    task = build_task(cfg, data)
    task.steps_per_epoch = 4
    trainer = build_trainer(cfg, run, *callbacks)
    if is_first:
        trainer.callbacks.sort(key=lambda callback: not isinstance(callback, RaiseIn))  # type: ignore[attr-defined]
    trainer.fit(task, datamodule=data, ckpt_path=str(run / "checkpoints" / "last.ckpt") if resume else None)


def state(run: Path, name: str = "last") -> dict[str, Any]:
    saved = read_checkpoint(run / "checkpoints" / f"{name}.ckpt")
    kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "train_score")
    return {key: saved[key] for key in kept if key in saved}


def curves(run: Path) -> list[str]:
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    kept = [place for place, name in enumerate(rows[0]) if name not in MEASURED]
    return [",".join(row[place] for place in kept) for row in rows]


@pytest.fixture(scope="module")
def whole(compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing broke."""
    run = tmp_path_factory.mktemp("whole")
    fit(compose(*SETTINGS), run)
    return run


@pytest.mark.parametrize(
    "is_first", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["after_ours", "before_ours"]
)
@pytest.mark.parametrize(("hook", "step"), MOMENTS)
def test_it_goes_on_as_if_nothing_had_been(compose, whole, tmp_path, hook: str, step: int, is_first: bool):
    with pytest.raises(ZeroDivisionError, match=hook):
        fit(compose(*SETTINGS), tmp_path, RaiseIn(hook, step), is_first=is_first)
    saved = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"]
    # Where some have seen the end of an epoch and others not, the end of the one before is the last sound state.
    assert saved == (4 if hook in ("on_validation_end", "on_train_epoch_end") else step)
    fit(compose(*SETTINGS), tmp_path, resume=True)
    for name in ("last", "best"):
        torch.testing.assert_close(state(tmp_path, name), state(whole, name), rtol=0, atol=0)
    assert curves(tmp_path) == curves(whole)
