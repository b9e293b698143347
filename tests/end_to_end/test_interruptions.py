"""A run that is interrupted in any way is resumed to the weights and curves of an uninterrupted one."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from short_runs import summary
from warm_runs import TINY, TWO, WarmRuns

from imago.runs.checkpoint import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("interruptions")]  # their runs are made once

# How it is interrupted, the exit code, and further settings. Epochs begin at the optimizer steps 0, 3 and 6.
WAYS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "epoch end": ("{_target_: interruptions.Raise, step: 3}", 1, ()),
    "mid-epoch": ("{_target_: interruptions.Kill, step: 5}", -9, ("callbacks.last_checkpoint.every_minutes=0.0",)),
    "exception": ("{_target_: interruptions.Raise, step: 4}", 1, ()),
    "SIGTERM": ("{_target_: interruptions.Signal, step: 4}", 143, ()),
    "kill -9": ("{_target_: interruptions.Kill, step: 4}", -9, ()),
}
SAVED_STEP = {"epoch end": 3, "mid-epoch": 4, "exception": 3, "SIGTERM": 4, "kill -9": 3}
IN_TEST = [("mid-epoch", 2, 1), ("SIGTERM", 0, 1), ("kill -9", 2, 2)]
ALL = [(way, workers, processes) for way in WAYS for workers in (0, 2) for processes in (1, 2)]

MEASURED = ("images_per_s", "data_wait_share", "peak_memory_gib")  # no function of the seed


@pytest.fixture(scope="module")
def whole(runs: WarmRuns) -> dict[int, Path]:
    """Return uninterrupted runs by their number of processes; the number of workers has no effect."""
    return Whole(runs)


class Whole(dict):
    def __init__(self, runs: WarmRuns) -> None:
        super().__init__()
        self.runs = runs

    def __missing__(self, processes: int) -> Path:
        name = f"whole{processes}"
        self.runs.run(*TINY, *(TWO if processes == 2 else ()), f"run_name={name}")
        self[processes] = self.runs.logs / "train" / name
        return self[processes]


def assert_same(run: Path, other: Path, with_curves: bool = True) -> None:
    """Same weights and optimizer, same best score, same curves but for the clock's."""
    ours, theirs = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (run, other))
    assert [
        name for name, value in ours["state_dict"].items() if not torch.equal(value, theirs["state_dict"][name])
    ] == []
    assert str(ours.get("current_model_state")) == str(theirs.get("current_model_state"))
    assert str(ours["optimizer_states"]) == str(theirs["optimizer_states"])
    assert str(ours["lr_schedulers"]) == str(theirs["lr_schedulers"])
    assert summary(run)["val"] == summary(other)["val"]
    assert summary(run)["test"] == summary(other)["test"]
    assert not with_curves or curves(run) == curves(other)


def curves(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def interrupt(runs: WarmRuns, way: str, workers: int, processes: int, *more: str) -> Path:
    callback, exit_code, settings = WAYS[way]
    name = f"{way.replace(' ', '_')}{workers}{processes}{len(list(runs.logs.glob('train/*')))}"
    given = (
        *TINY,
        *settings,
        *more,
        *(TWO if processes == 2 else ()),
        f"data.num_workers={workers}",
        f"run_name={name}",
    )
    runs.run(*given, f"+callbacks.broken={callback}", expect=exit_code)
    return runs.logs / "train" / name


def assert_resumed_to_the_same(runs: WarmRuns, whole: dict[int, Path], way: str, workers: int, processes: int) -> None:
    run = interrupt(runs, way, workers, processes)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == SAVED_STEP[way]
    status = {"SIGTERM": "stopped", "kill -9": "running", "mid-epoch": "running"}.get(way, "failed")
    assert summary(run)["status"] == status
    runs.run(f"resume={run}", "callbacks.broken=null")
    assert summary(run)["status"] == "finished"
    assert_same(run, whole[processes])
    assert not list(run.rglob("*.part"))


@pytest.mark.parametrize(("way", "workers", "processes"), IN_TEST)
def test_an_interrupted_run_is_resumed_to_the_same_weights_and_curves(
    runs, whole, way: str, workers: int, processes: int
):
    assert_resumed_to_the_same(runs, whole, way, workers, processes)


@pytest.mark.soak
@pytest.mark.parametrize(("way", "workers", "processes"), ALL)
def test_every_interruption_is_resumed_to_the_same_weights_and_curves(
    runs, whole, way: str, workers: int, processes: int, record_property
):
    record_property("rule", "resumed runs that end with the weights and curves of an uninterrupted one, bit for bit")
    assert_resumed_to_the_same(runs, whole, way, workers, processes)


KINDS = {
    "averaged weights": ("callbacks=[default,ema]", "callbacks.ema.decay=0.8"),
    "distillation": ("task=distillation", "task.teacher=TEACHER"),
}


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("averaged weights", "SIGTERM"),
        ("distillation", "mid-epoch"),
        pytest.param("averaged weights", "mid-epoch", marks=pytest.mark.soak),
        pytest.param("distillation", "SIGTERM", marks=pytest.mark.soak),
    ],
)
def test_averaged_weights_and_a_teacher_are_resumed_to_the_same_weights(
    runs, whole, kind: str, way: str, record_property
):
    record_property("rule", "runs with averaged weights or a teacher that go on to the same weights")
    more = [text.replace("TEACHER", str(whole[1])) for text in KINDS[kind]]
    untouched = runs.logs / "train" / f"untouched {kind}"
    if not untouched.exists():
        runs.run(*TINY, *more, f"run_name={untouched.name}")
    run = interrupt(runs, way, 0, 1, *more)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == SAVED_STEP[way]
    runs.run(f"resume={run}", "callbacks.broken=null")
    assert_same(run, untouched)


@pytest.mark.soak
def test_an_interruption_within_an_epoch_leaves_no_gap_in_the_curves(runs: WarmRuns):
    single = (*TINY, "trainer.accumulate_grad_batches=1", "callbacks.last_checkpoint.every_minutes=0.0")
    runs.run(*single, "run_name=single")
    runs.run(*single, "run_name=broken", "+callbacks.broken={_target_: interruptions.Raise, step: 7}", expect=1)
    run, other = runs.logs / "train" / "broken", runs.logs / "train" / "single"
    runs.run(f"resume={run}", "callbacks.broken=null")
    assert_same(run, other)
    assert scalars(run, "val/acc") == scalars(other, "val/acc")


def test_tensorboard_shows_no_step_twice_after_a_kill(runs: WarmRuns, whole: dict[int, Path]):
    run = interrupt(runs, "kill -9", 0, 1)
    runs.run(f"resume={run}", "callbacks.broken=null")
    for tag in ("train/loss_step", "val/acc", "train/loss"):
        assert scalars(run, tag) == scalars(whole[1], tag)


def test_a_pause_by_max_time_is_resumed_to_the_same_weights(runs: WarmRuns, whole: dict[int, Path]):
    slow = "+callbacks.slow={_target_: interruptions.Slow, seconds: 0.5}"
    # 7.5 s of waiting in all: the time is up in the second or third epoch, whatever the machine.
    runs.run(*TINY, "run_name=paused", "trainer.max_time=00:00:00:04", slow)
    run = runs.logs / "train" / "paused"
    paused = summary(run)
    assert (paused["status"], paused["epochs"]) in [("finished", 1), ("finished", 2), ("finished", 0)]
    assert "test" in paused
    assert not list((run / "checkpoints").glob("*.part"))
    used_up = runs.run(f"resume={run}", expect=2)
    assert "trainer.max_time=00:00:00:04: the run has used it up" in used_up.text
    runs.run(f"resume={run}", "trainer.max_time=null", "callbacks.slow=null")
    assert_same(run, whole[1], with_curves=False)  # the validation before the final test stays in the curve
    assert [row["step"] for row in curves(run)] == [row["step"] for row in curves(whole[1])]


def test_a_finished_run_is_refused_and_an_extended_one_keeps_its_best_score(runs: WarmRuns, whole: dict[int, Path]):
    run = runs.logs / "train" / "done"
    shutil.copytree(whole[1], run, symlinks=True)
    again = runs.run(f"resume={run}", expect=2)
    assert "has finished its trainer.max_epochs=3; trainer.max_epochs=6 extends it" in again.text
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")
    runs.run(f"resume={run}", "trainer.max_epochs=4", "optimizer.lr=0.002")
    assert summary(run)["epochs"] == 4
    assert [row["epoch"] for row in curves(run) if row["val/acc"]] == ["0", "1", "2", "3"]
    assert summary(run)["val"]["acc"] >= max(float(row["val/acc"]) for row in curves(whole[1]) if row["val/acc"])
    assert best["epoch"] <= 3


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("data.batch_size=16", "data.batch_size=16 cannot change on resume: the run has data.batch_size=32"),
        ("trainer.precision=32-true", "trainer.precision=32-true cannot change on resume"),
        ("model.dropout=0.3", "model.dropout=0.3 cannot change on resume: the run has model.dropout=0.1"),
        ("data=cifar10", "data._target_="),
    ],
)
def test_a_setting_that_changes_the_run_is_refused_in_one_line(runs, whole, setting: str, text: str):
    done = runs.run(f"resume={whole[1]}", "trainer.max_epochs=6", setting, expect=2)
    errors = [line for line in done.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.text
    assert text in errors[0]


def test_auto_starts_resumes_and_restarts_a_run_without_a_checkpoint(runs: WarmRuns, whole: dict[int, Path]):
    named = ("run_name=auto", "resume=auto")
    killed = "+callbacks.broken={_target_: interruptions.Kill, step: 1}"
    runs.run(*TINY, *named, killed, expect=-9)
    run = runs.logs / "train" / "auto"
    assert not (run / "checkpoints" / "last.ckpt").exists()
    runs.run(*TINY, *named, "+callbacks.broken={_target_: interruptions.Kill, step: 4}", expect=-9)
    runs.run(*TINY, *named, "callbacks.broken=null")
    assert_same(run, whole[1])
    assert len(json.loads((run / "provenance.json").read_text())["resumes"]) == 2


@pytest.mark.parametrize(
    ("way", "step"), [pytest.param("RaiseInValidation", 3, marks=pytest.mark.soak), ("SignalInValidation", 6)]
)
def test_a_run_that_is_interrupted_in_its_validation_is_resumed(runs, whole, way: str, step: int):
    callback = f"+callbacks.broken={{_target_: interruptions.{way}, step: 6}}"
    runs.run(*TINY, f"run_name={way}", callback, expect=1 if way.startswith("Raise") else 143)
    run = runs.logs / "train" / way
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == step
    runs.run(f"resume={run}", "callbacks.broken=null")
    assert_same(run, whole[1])
