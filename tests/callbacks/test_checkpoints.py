"""A run that is resumed from any of its checkpoints ends with the weights and curves of an uninterrupted one."""

import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from small_fit import QUIET, SMALL, build_data, build_task, build_trainer, fit_run

from imago.callbacks import checkpoints
from imago.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from imago.callbacks.stopping import TimeLimit
from imago.errors import ConfigError
from imago.runs.checkpoint import AtomicCheckpointIO, read_checkpoint, write_checkpoint

pytestmark = [pytest.mark.filterwarnings(text) for text in (*QUIET, "ignore:.*exists and is not empty")]

# Two epochs of five batches, with BatchNorm, averaged weights and mixed images; saved before every step.
SETTINGS = (
    *("data=shapes", "data.batch_size=8", "model=small_resnet", "model.width=8", "augment.mixup_alpha=0.2"),
    *("callbacks=ema", "callbacks.ema.decay=0.8", "callbacks.image_grid=null", "logger.tensorboard=null"),
    *("trainer.max_epochs=2", "trainer.limit_train_batches=5", "trainer.limit_val_batches=2"),
    *("trainer.log_every_n_steps=1", "callbacks.last_checkpoint.every_minutes=0.0"),
)
PLATEAU = ("schedule=plateau", "schedule.patience=0", "schedule.monitor=val/acc", "schedule.mode=max")
WITHIN = (*PLATEAU, "trainer.val_check_interval=2")
CASES: dict[str, tuple[str, ...]] = {
    "validation after each epoch": PLATEAU,
    "accumulating": ("trainer.accumulate_grad_batches=2",),
    "validation within the epoch": WITHIN,
    "validation within the epoch, accumulating": (*WITHIN, "trainer.accumulate_grad_batches=2"),
    "validation of every third batch": (
        *WITHIN,
        "trainer.val_check_interval=3",
        "trainer.check_val_every_n_epoch=null",
    ),
    "validation after the second epoch": (*PLATEAU, "trainer.check_val_every_n_epoch=2"),
}
MEASURED = ("images_per_s", "data_wait_share", "peak_memory_gib")  # no function of the seed


def fit(cfg: Any, run: Path, *callbacks: Callback, resume: str | None = None, come_first: bool = False) -> None:
    data = build_data(cfg)
    task = build_task(cfg, data)
    task.steps_per_epoch = math.ceil(5 / cfg.trainer.accumulate_grad_batches)
    trainer = build_trainer(cfg, run, *callbacks)
    if come_first:
        trainer.callbacks.sort(key=lambda callback: callback not in callbacks)  # type: ignore[attr-defined]
    trainer.fit(task, datamodule=data, ckpt_path=str(run / "checkpoints" / resume) if resume else None)


def state(file: Path) -> dict[str, Any]:
    """Everything in a checkpoint that training changes."""
    saved = read_checkpoint(file)
    names = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")
    sums = {"train_sums": saved["callbacks"]["TrainMetrics"]}
    return {name: saved[name] for name in names} | sums | {"lr": sorted(saved["lr_schedulers"][0].items(), key=str)}


def assert_same_state(run: Path, other: Path, name: str = "last.ckpt") -> None:
    ours, theirs = state(run / "checkpoints" / name), state(other / "checkpoints" / "last.ckpt")
    assert ours.pop("lr") == theirs.pop("lr")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def curves(run: Path) -> list[str]:
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    columns = [index for index, name in enumerate(rows[0]) if name not in MEASURED]
    return [",".join(row[index] for index in columns) for row in rows]


# Two other cases have validations within the epoch too.
SOAKED = {"validation within the epoch": pytest.mark.soak}


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, marks=SOAKED.get(case, ())) for case in CASES])
def test_every_saved_state_is_resumed_to_the_same_weights_and_curves(compose, tmp_path, monkeypatch, case: str):
    cfg, whole, copies = compose(*SETTINGS, *CASES[case]), tmp_path / "whole", []
    save = AtomicCheckpointIO.save_checkpoint

    def save_and_copy_run(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save(self, checkpoint, path)
        copies.append((tmp_path / f"copy {len(copies)}", Path(path).name, checkpoint["global_step"]))
        shutil.copytree(whole, copies[-1][0])

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_copy_run)
        fit(cfg, whole)
    assert {name for _, name, _ in copies} == {"best.ckpt", "last.ckpt"}
    steps_per_epoch = 3 if "accumulating" in case else 5
    assert {step for _, _, step in copies} == set(range(1, 2 * steps_per_epoch + 1)), "each step is saved"
    for copy, name, step in copies:
        fit(cfg, copy, resume=name)
        try:
            assert_same_state(
                copy, whole, name if step == 2 * steps_per_epoch else "last.ckpt"
            )  # nothing is left to do
            if name == "last.ckpt" and step % steps_per_epoch:  # else values are logged after the save, and the copy
                assert curves(copy) == curves(whole)
        except AssertionError as error:
            raise AssertionError(f"resumed from {name} of step {step}: {error}") from error


class RaiseIn(Callback):
    """Raise in one hook of a callback."""

    def __init__(self, hook: str, step: int) -> None:
        def raise_error(trainer: Any, *arguments: Any, **named: Any) -> None:
            if trainer.global_step == step:
                raise ZeroDivisionError(f"raised in {hook}")

        setattr(self, hook, raise_error)


# Each with the number of completed optimizer steps; 3 is within the first epoch, 5 at its end.
MOMENTS = [
    *(("on_after_backward", 3), ("on_before_optimizer_step", 3)),
    *(("on_train_batch_end", 3), ("on_train_batch_end", 5), ("on_validation_start", 5)),
    *(("on_validation_epoch_end", 5), ("on_validation_end", 10), ("on_train_epoch_end", 10)),
    *(("on_train_epoch_start", 5), ("on_train_batch_start", 5)),
]
# Next to one of them.
MORE_MOMENTS = [
    *(("on_train_batch_start", 3), ("on_before_zero_grad", 3), ("on_after_backward", 8)),
    *(("on_validation_epoch_start", 5), ("on_validation_batch_end", 5)),
]


@pytest.fixture(scope="module")
def cfg(compose) -> Any:
    return compose(*SETTINGS)


@pytest.fixture(scope="module")
def whole(cfg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("whole")
    fit(cfg, run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "come_first", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["after_ours", "before_ours"]
)
@pytest.mark.parametrize(
    ("hook", "step"), [*MOMENTS, *(pytest.param(*moment, marks=pytest.mark.soak) for moment in MORE_MOMENTS)]
)
def test_after_an_exception_the_last_save_is_intact_and_is_resumed(
    cfg, whole, tmp_path, hook: str, step: int, come_first: bool
):
    with pytest.raises(ZeroDivisionError, match=hook):
        fit(cfg, tmp_path, RaiseIn(hook, step), come_first=come_first)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] in (step - 1, step)
    fit(cfg, tmp_path, resume="last.ckpt")
    assert_same_state(tmp_path, whole)
    assert curves(tmp_path) == curves(whole)


class FakeClock(Callback):
    """End the time of a `TimeLimit` in a batch of the first epoch."""

    def __init__(self, limit: TimeLimit, batch_idx: int) -> None:
        self.limit, self.batch_idx = limit, batch_idx

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch_idx:
            self.limit._duration = 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "batch_idx", "num_batches"),
    [("validation after each epoch", 2, 3), ("accumulating", 2, 4), ("validation within the epoch", 1, 3)],
)
def test_a_pause_by_max_time_is_resumed_to_the_same_weights(
    compose, tmp_path, case: str, batch_idx: int, num_batches: int
):
    cfg = compose(*SETTINGS, *CASES[case])
    fit(cfg, tmp_path / "whole")
    limit = TimeLimit("00:01:00:00")
    fit(cfg, tmp_path / "last.ckpt", limit, FakeClock(limit, batch_idx))
    paused = read_checkpoint(tmp_path / "last.ckpt" / "checkpoints" / "last.ckpt")
    assert paused["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] == num_batches
    shutil.copytree(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    for name in ("last.ckpt", "best.ckpt"):
        fit(cfg, tmp_path / name, resume=name)
        assert_same_state(tmp_path / name, tmp_path / "whole")


class Validations(Callback):
    """Record the loss and the weights of each validation, and end the time of a `TimeLimit` in the second batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for limit in (callback for callback in trainer.callbacks if isinstance(callback, TimeLimit)):
            limit._duration = 0.0 if batch_idx == 1 else limit._duration

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        weights = torch.cat([weight.detach().flatten() for weight in pl_module.net.parameters()])
        self.seen.append((float(trainer.callback_metrics["val/loss"]), weights))


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["++trainer.max_steps=2", "trainer.max_time=00:01:00:00"])
def test_the_score_of_an_epoch_that_ended_early_counts_after_a_resume(compose, tmp_path, limit: str):
    """The highest loss is the best, so that the weights after two steps are: later ones have lower losses."""
    quick = ("callbacks.image_grid=null", "logger.tensorboard=null", "trainer.num_sanity_val_steps=0")
    names = ("callbacks.best_checkpoint", "callbacks.early_stopping")
    highest = [f"{name}.{text}" for name in names for text in ("monitor=val/loss", "mode=max")]
    settings = (*SMALL, *quick, "callbacks=early_stopping", *highest, "trainer.max_epochs=2")
    validations, folder = Validations(), tmp_path / "checkpoints"
    fit_run(compose(*settings, limit), tmp_path, validations)
    assert len(validations.seen) == 1
    score, weights = validations.seen[0]
    for name in ("best.ckpt", "last.ckpt"):
        states = read_checkpoint(folder / name)["callbacks"]
        scores = [state[key] for state in states.values() for key in ("best_score", "best_model_score") if key in state]
        assert [float(value) for value in scores if value is not None] == pytest.approx([score] * 2)
    fit_run(compose(*settings), tmp_path, validations)
    assert len(validations.seen) == 3
    assert score == max(loss for loss, _ in validations.seen)
    best = read_checkpoint(folder / "best.ckpt")["state_dict"]
    torch.testing.assert_close(torch.cat([value.flatten() for value in best.values()]), weights, rtol=0, atol=0)


def saving_trainer(saved: list[Path], is_rank_0: bool = True, global_step: int = 3) -> Any:
    """Replace a Trainer by one that lists what is saved."""
    return SimpleNamespace(
        is_global_zero=is_rank_0,
        global_step=global_step,
        lightning_module=SimpleNamespace(automatic_optimization=True),
        accumulate_grad_batches=2,
        _checkpoint_connector=SimpleNamespace(dump_checkpoint=lambda weights_only: {}),
        strategy=SimpleNamespace(save_checkpoint=lambda state, path: saved.append(path)),
    )


def test_a_long_epoch_is_saved_between_steps_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch):
    clock, saved, num_saved = [0.0], [], []
    monkeypatch.setattr(checkpoints, "monotonic", lambda: clock[0])
    module: Any = None
    trainer = saving_trainer(saved)
    callback = LastCheckpoint("run/checkpoints", every_minutes=10.0)
    callback.on_train_epoch_start(trainer, module)
    for batch_idx in range(8):  # of 4 minutes each; two make a step
        callback.on_train_batch_start(trainer, module, None, batch_idx)
        num_saved.append(len(saved))
        clock[0] += 240
    assert num_saved == [0] * 4 + [1] * 4  # 10 minutes have passed in batch 3, within a step; then after batch 7
    assert saved == [Path("run/checkpoints/last.ckpt").absolute()]


@pytest.mark.parametrize("arguments", [{"is_rank_0": False}, {"global_step": 0}])
def test_other_ranks_and_a_run_without_a_step_save_nothing(arguments: dict[str, Any]):
    saved: list[Path] = []
    LastCheckpoint("run/checkpoints").save_now(saving_trainer(saved, **arguments))
    assert saved == []


def best_checkpoint(directory: Path, has_best: bool = False) -> BestCheckpoint:
    callback = BestCheckpoint(str(directory), "val/acc", "max")
    if has_best:
        best = str(directory / "best.ckpt")
        callback.best_model_path = callback.kth_best_model_path = best
        callback.best_model_score = callback.kth_value = torch.tensor(0.9)
        callback.best_k_models = {best: torch.tensor(0.9)}
    return callback


def test_a_moved_run_keeps_its_best_score(tmp_path: Path):
    write_checkpoint({"imago": {"schema": 2}}, tmp_path / "new" / "best.ckpt")
    new = best_checkpoint(tmp_path / "new")
    new.load_state_dict(best_checkpoint(tmp_path / "old", has_best=True).state_dict())
    assert new.best_model_score == 0.9
    assert new.best_model_path == str(tmp_path / "new" / "best.ckpt")
    assert new.best_k_models == {new.best_model_path: torch.tensor(0.9)}


@pytest.mark.parametrize(("has_best", "content"), [(False, None), (True, None), (True, b""), (True, b"PK half of it")])
def test_without_an_intact_file_there_is_no_best_score(tmp_path: Path, has_best: bool, content: bytes | None):
    if content is not None:
        (tmp_path / "best.ckpt").write_bytes(content)
    new = best_checkpoint(tmp_path)
    new.load_state_dict(best_checkpoint(tmp_path / "old", has_best).state_dict())
    assert (new.best_model_score, new.best_model_path, new.best_k_models) == (None, "", {})


@pytest.mark.parametrize(
    ("cuts_epoch", "has_best", "is_best_saved", "is_last_saved"),
    [(True, True, False, False), (True, False, True, False), (False, True, True, True)],
)
def test_an_epoch_that_was_cut_short_is_the_best_only_if_there_is_no_other(
    tmp_path: Path, monkeypatch, cuts_epoch: bool, has_best: bool, is_best_saved: bool, is_last_saved: bool
):
    monkeypatch.setattr(ModelCheckpoint, "_should_skip_saving_checkpoint", lambda self, trainer: False)
    limit = TimeLimit("00:00:00:01")
    limit.has_ended_epoch_early = cuts_epoch
    module = SimpleNamespace(automatic_optimization=True)
    trainer: Any = SimpleNamespace(callbacks=[limit], lightning_module=module, global_step=3)
    assert best_checkpoint(tmp_path, has_best)._should_skip_saving_checkpoint(trainer) != is_best_saved
    assert LastCheckpoint(str(tmp_path))._should_skip_saving_checkpoint(trainer) != is_last_saved


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
    module: Any = None
    words = f"trainer.val_check_interval={interval} validates after {interval} batches"
    with pytest.raises(ConfigError, match=words) if is_refused else nullcontext():
        best_checkpoint(tmp_path).on_train_start(trainer, module)
