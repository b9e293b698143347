"""A run that is interrupted in any way is resumed to the weights and curves of an uninterrupted one."""

import csv
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from short_runs import summary
from warm_runs import TINY, TWO, WarmRuns

from imago.runs.checkpoint import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("interruptions")]  # their runs are made once

# How it is interrupted, the exit code, the status, the step that is saved, and further settings. Epochs begin at the
# optimizer steps 0, 3 and 6.
EVERY_STEP = ("callbacks.last_checkpoint.every_minutes=0.0",)
WAYS: dict[str, tuple[str, int, str, int, tuple[str, ...]]] = {
    "epoch end": ("{_target_: interruptions.Raise, step: 3}", 1, "failed", 3, ()),
    "mid-epoch": ("{_target_: interruptions.Kill, step: 5}", -9, "running", 4, EVERY_STEP),
    "exception": ("{_target_: interruptions.Raise, step: 4}", 1, "failed", 3, ()),
    "SIGTERM": ("{_target_: interruptions.Signal, step: 4}", 143, "stopped", 4, ()),
    "kill -9": ("{_target_: interruptions.Kill, step: 4}", -9, "running", 3, ()),
}
IN_TEST = [("SIGTERM", 2, 1), ("kill -9", 2, 2)]  # a run with a teacher is killed in the middle of an epoch, see below
ALL = [(way, num_workers, num_processes) for way in WAYS for num_workers in (0, 2) for num_processes in (1, 2)]

MEASURED = ("images_per_s", "data_wait_share", "peak_memory_gib")  # no function of the seed


@pytest.fixture(scope="module")
def whole(runs: WarmRuns) -> Callable[..., Path]:
    """Return an uninterrupted run of one or two processes; the number of workers has no effect."""

    @functools.cache
    def run(num_processes: int, *more: str) -> Path:
        name = f"whole{num_processes}{len(more)}"
        runs.run(*TINY, *(TWO if num_processes == 2 else ()), *more, f"run_name={name}")
        return runs.logs / "train" / name

    return run


def assert_same(run: Path, other: Path) -> None:
    """Same weights and optimizer, same best score, same curves but for the clock's."""
    ours, theirs = (read_checkpoint(directory / "checkpoints" / "last.ckpt") for directory in (run, other))
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    for name in ("optimizer_states", "lr_schedulers"):
        assert str(ours[name]) == str(theirs[name])
    assert (summary(run)["val"], summary(run)["test"]) == (summary(other)["val"], summary(other)["test"])
    # The training means of an epoch that was interrupted in several processes have all batches of rank 0 only.
    has_means = "devices: 2" not in (run / "config.yaml").read_text()
    means = set() if has_means else {"train/loss", "train/acc"}
    assert [without(row, means) for row in curves(run)] == [without(row, means) for row in curves(other)]
    tags = ("train/loss_step", "val/acc") + (("train/loss",) if has_means else ())
    for tag in tags:
        assert scalars(run, tag) == scalars(other, tag), "a step is missing or is there twice"


def without(row: dict[str, str], names: set[str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name not in names}


def curves(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{name: row[name] for name in row.keys() - MEASURED} for row in csv.DictReader(file)]


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def assert_resumed_to_the_same(runs: WarmRuns, other: Path, way: str, *settings: str) -> None:
    callback, exit_code, status, saved_step, more = WAYS[way]
    run = runs.logs / "train" / f"run{len(list(runs.logs.glob('train/*')))}"
    broken = f"+callbacks.broken={callback}"
    runs.run(*TINY, *more, *settings, broken, f"run_name={run.name}", expect=exit_code)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == saved_step
    assert summary(run)["status"] == status
    runs.run(f"resume={run}", "callbacks.broken=null")
    assert summary(run)["status"] == "finished"
    assert_same(run, other)
    assert not list(run.rglob("*.part"))


@pytest.mark.parametrize(("way", "num_workers", "num_processes"), IN_TEST)
def test_an_interrupted_run_is_resumed_to_the_same_weights_and_curves(
    runs: WarmRuns, whole, way: str, num_workers: int, num_processes: int
):
    processes = TWO if num_processes == 2 else ()
    assert_resumed_to_the_same(runs, whole(num_processes), way, *processes, f"data.num_workers={num_workers}")


@pytest.mark.soak
@pytest.mark.parametrize(("way", "num_workers", "num_processes"), ALL)
def test_every_interruption_is_resumed_to_the_same_weights_and_curves(
    runs: WarmRuns, whole, way: str, num_workers: int, num_processes: int, record_property
):
    record_property("rule", "resumed runs that end with the weights and curves of an uninterrupted one, bit for bit")
    processes = TWO if num_processes == 2 else ()
    assert_resumed_to_the_same(runs, whole(num_processes), way, *processes, f"data.num_workers={num_workers}")


@pytest.mark.soak  # tests/task/test_base.py has the weights, tests/training/test_teacher.py the command
@pytest.mark.parametrize("way", ["mid-epoch", "SIGTERM"])
def test_a_run_with_a_teacher_is_resumed_to_the_same_weights(runs: WarmRuns, whole, way: str):
    taught = ("task=distillation", f"task.teacher={whole(1)}")
    assert_resumed_to_the_same(runs, whole(1, *taught), way, *taught)


def test_a_finished_run_has_nothing_to_do_and_an_extended_one_keeps_its_best_score(runs: WarmRuns, whole):
    run = runs.logs / "train" / "done"
    shutil.copytree(whole(1), run, symlinks=True)
    again = runs.run(f"resume={run}")
    assert "this run has finished with trainer.max_epochs=3; trainer.max_epochs=6 extends it" in again.stdout
    assert (again.stderr, summary(run)) == ("", summary(whole(1)))
    runs.run(f"resume={run}", "trainer.max_epochs=4")
    assert summary(run)["epochs"] == 4
    assert [row["epoch"] for row in curves(run) if row["val/acc"]] == ["0", "1", "2", "3"]
    assert summary(run)["val"]["acc"] >= max(float(row["val/acc"]) for row in curves(whole(1)) if row["val/acc"])


def test_a_limit_below_what_a_killed_run_has_done_is_refused(runs: WarmRuns):
    runs.run(*TINY, "run_name=long", "+callbacks.broken={_target_: interruptions.Kill, step: 7}", expect=-9)
    run = runs.logs / "train" / "long"
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for limit, done in (("max_epochs=1", 2), ("max_steps=5", 6)):
        refused = runs.run(f"resume={run}", "callbacks.broken=null", f"trainer.{limit}", expect=2)
        assert f"trainer.{limit} is less than the {done} that this run has done; type more." in refused.stderr
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.suffix != ".log"} == {
        file: text for file, text in before.items() if file.suffix != ".log"
    }


def test_auto_starts_resumes_and_restarts_a_run_without_a_checkpoint(runs: WarmRuns, whole):
    named = ("run_name=auto", "resume=auto")
    killed = "+callbacks.broken={_target_: interruptions.Kill, step: 1}"
    runs.run(*TINY, *named, killed, expect=-9)
    run = runs.logs / "train" / "auto"
    assert not (run / "checkpoints" / "last.ckpt").exists()
    runs.run(*TINY, *named, "+callbacks.broken={_target_: interruptions.Kill, step: 4}", expect=-9)
    runs.run(*TINY, *named, "callbacks.broken=null")
    assert_same(run, whole(1))
    provenance = json.loads((run / "provenance.json").read_text())
    assert len(provenance["resumes"]) == 1  # the first start had saved nothing: it is forgotten


def test_a_signal_in_a_validation_takes_effect_after_it_and_the_run_is_resumed(runs: WarmRuns, whole):
    runs.run(*TINY, "+callbacks.broken={_target_: interruptions.SignalInValidation, step: 6}", "run_name=v", expect=143)
    run = runs.logs / "train" / "v"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 6
    runs.run(f"resume={run}", "callbacks.broken=null")
    assert_same(run, whole(1))
