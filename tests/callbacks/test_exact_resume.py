"""A resumed run draws the same numbers, its curves have every step once, and its settings are those typed."""

import operator
import re
import time
import warnings
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import open_dict
from own_tasks import Adapting
from small_fit import QUIET, SMALL, EachStep, build_data, build_task, build_trainer, fit_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imago.callbacks.exact_resume import ResumedStateCheck, StepSeed, TruncateLogs
from imago.errors import ConfigError, DataError
from imago.logger.metrics_csv import MetricsCsv
from imago.runs.checkpoint import read_checkpoint, write_checkpoint

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]
MODULE = SimpleNamespace(automatic_optimization=True, device=torch.device("cpu"))
HERE = {"seed": 1, "epoch": 2, "batch": 3, "rank": 0}


def draws(seed: int, epoch: int, batch: int, rank: int) -> list[float]:
    """What a network would draw in this step."""
    with torch.random.fork_rng():
        torch.rand(1 + batch)  # whatever came before
        trainer: Any = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        StepSeed(seed).on_train_batch_start(trainer, MODULE, None, batch)  # type: ignore[arg-type]
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


def test_tensorboard_shows_every_step_though_the_clock_was_set_back_before_each_resume(tmp_path: Path):
    for number, start in enumerate((0, 4, 8)):
        log(resume(tmp_path, start), range(start, start + 6))
        for file in (tmp_path / "tensorboard").glob(f"*tfevents.{time.strftime('%s')[:6]}*"):  # of today
            later_s = 9_999_999_999 - 1000 * number
            file.rename(file.with_name(re.sub(r"\d{10}", str(later_s), file.name, count=1)))
    log(resume(tmp_path, 12), range(12, 14))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(14))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 4


def test_only_rank_0_writes_files(tmp_path: Path):
    resume(tmp_path, 0, is_rank_0=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_schedule_of_torch_that_keeps_its_length_is_resumed_for_the_same_length_only(compose, tmp_path: Path):
    def settings(max_epochs: int) -> Any:
        cfg = compose(*SMALL, "callbacks.image_grid=null", "logger.tensorboard=null", "trainer.limit_train_batches=2")
        cfg.trainer.max_epochs = max_epochs
        with open_dict(cfg):
            cfg.schedule = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.01}
            cfg.task.schedule = cfg.schedule
        return cfg

    rates: list[float] = []
    see = EachStep(lambda trainer: rates.append(trainer.optimizers[0].param_groups[0]["lr"]))
    with pytest.raises(ZeroDivisionError), warnings.catch_warnings(action="ignore", category=UserWarning):
        fit_run(settings(3), tmp_path, see, EachStep(lambda trainer: 1 // (trainer.global_step < 3)))
    for max_epochs in (2, 4):
        with pytest.raises(ConfigError, match=rf"OneCycleLR was started for 6 .* resumed for {2 * max_epochs};"):
            fit_run(settings(max_epochs), tmp_path)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        fit_run(settings(3), tmp_path, see)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=6)
    expected = []
    for _ in range(6):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step() if len(expected) < 6 else None
    assert rates == pytest.approx([*expected[:4], *expected[2:]])  # the step of the error, and again from the save


STILL = ("schedule=constant", "optimizer.lr=1e-30", "trainer.limit_train_batches=1", "logger.tensorboard=null")


def fit(compose, run: Path, *settings: str) -> Any:
    return fit_run(compose(*SMALL, *STILL, "callbacks.image_grid=null", *settings), run)


@pytest.mark.slow
@pytest.mark.parametrize(("patience", "num_epochs"), [(1, 3), (5, 6)])
def test_a_patience_typed_on_resume_counts_from_the_best_epoch(compose, tmp_path, patience: int, num_epochs: int):
    early = ("callbacks=early_stopping", "trainer.max_epochs=12")
    assert fit(compose, tmp_path, *early, "callbacks.early_stopping.patience=1").current_epoch == 2
    assert fit(compose, tmp_path, *early, f"callbacks.early_stopping.patience={patience}").current_epoch == num_epochs


@pytest.mark.slow
def test_settings_in_the_state_of_a_callback_are_those_typed_last_and_others_stay_as_adapted(compose, tmp_path):
    def used(epochs: int, *settings: str) -> list[tuple[float, float]]:
        own = ("++callbacks.own._target_=own_tasks.Adapting", "++callbacks.own.level=1", *settings)
        trainer = fit(compose, tmp_path, f"trainer.max_epochs={epochs}", *own)
        return next(callback.used for callback in trainer.callbacks if isinstance(callback, Adapting))

    assert used(2, "++callbacks.own.share=0.5") == [(1, 0.5), (2, 0.5)]
    assert used(3, "++callbacks.own.share=0.5") == [(3, 0.5)]
    assert used(4, "++callbacks.own.share=0.7") == [(4, 0.7)]
    assert used(5, "++callbacks.own.share=0.7", "callbacks.own.level=9") == [(9, 0.7)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        ("optimizer=muon", "optimizer.weight_decay=0"),
        ("optimizer=muon", "++optimizer.relative=true"),
        ("optimizer=torch", "optimizer._target_=torch.optim.Adafactor"),
    ],
)
def test_an_optimizer_with_several_kinds_of_state_is_resumed_to_the_same_weights(compose, tmp_path, optimizer: tuple):
    settings = ("schedule=constant", "optimizer.lr=0.01", *optimizer)
    fit(compose, tmp_path / "parts", "trainer.max_epochs=1", *settings)
    assert (
        read_checkpoint(tmp_path / "parts" / "checkpoints" / "last.ckpt")["epoch"] == 0
    )  # the second one continues it
    states = [
        fit(compose, tmp_path / name, "trainer.max_epochs=2", *settings).lightning_module.state_dict()
        for name in ("parts", "whole")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


@pytest.fixture(scope="module")
def saved_run(compose: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable]:
    """The checkpoint of one epoch, and a function that resumes from it for a second one."""
    folder = tmp_path_factory.mktemp("resumed")

    def fit(max_epochs: int, file: Path | None = None) -> None:
        limits = (f"trainer.max_epochs={max_epochs}", "trainer.limit_train_batches=2")
        cfg = compose(*SMALL, *limits, "callbacks.progress=null", "callbacks.best_checkpoint.save_top_k=2")
        data = build_data(cfg)
        trainer = build_trainer(cfg, folder)
        best = trainer.checkpoint_callback
        trainer.callbacks = [ResumedStateCheck(), *trainer.callbacks, best.top_checkpoints]
        task = build_task(cfg, data)
        trainer.fit(task, data, ckpt_path=file)
        trainer.test(task, data, ckpt_path=best.best_model_path, verbose=False)  # its state is older than the run's

    fit(1)
    return folder / "checkpoints" / "last.ckpt", lambda file: fit(2, file)


@pytest.mark.slow
@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (("loops", "fit_loop", "epoch_progress", "current"), "loops.fit_loop.epoch_progress.current is str, not dict"),
        (("loops", "fit_loop", "epoch_progress", "current", "ready"), "epoch_progress.current.ready is str, not int"),
        (
            ("optimizer_states", 0, "param_groups", 0, "betas"),
            "optimizer_states.0.param_groups.0.betas is str, not tuple",
        ),
        (("optimizer_states", 0, "state", 1), "optimizer_states.1 is str, not dict"),
        (("optimizer_states", 0, "state", 1, "exp_avg"), "optimizer_states.1.exp_avg is str, not Tensor"),
        (("lr_schedulers", 0, "last_epoch"), "lr_schedulers.0.last_epoch is str, not int"),
        (("callbacks", "TrainMetrics"), "callbacks.TrainMetrics is str, not dict"),
        (("callbacks", "TrainMetrics", "loss_sum"), "callbacks.TrainMetrics.loss_sum is str, not Tensor"),
    ],
)
def test_a_changed_field_of_the_training_state_is_named(saved_run, tmp_path: Path, keys: tuple, text: str):
    file, resume_from = saved_run
    checkpoint = read_checkpoint(file)
    reduce(operator.getitem, keys[:-1], checkpoint)[keys[-1]] = "x"
    write_checkpoint(checkpoint, tmp_path / "changed.ckpt")
    with pytest.raises(DataError, match=f"changed.ckpt: its field .*{re.escape(text)}"):
        resume_from(tmp_path / "changed.ckpt")


@pytest.mark.slow
@pytest.mark.filterwarnings(*QUIET)
def test_an_unchanged_training_state_is_resumed(saved_run):
    file, resume_from = saved_run
    resume_from(file)
    assert read_checkpoint(file)["global_step"] == 4
