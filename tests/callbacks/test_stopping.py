"""When a signal or `trainer.max_time` ends training; `test_checkpoints.py` and end_to_end resume such runs."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from imago.callbacks import stopping
from imago.callbacks.stopping import StopOnSignal, TimeLimit, has_epoch_ended_early, watch_ranks
from imago.errors import ConfigError, Stopped
from imago.runs.run_directory import RunDirectory

MODULE: Any = None


def test_a_signal_stops_before_the_batch_that_begins_the_next_step_and_saves(tmp_path: Path):
    directory = RunDirectory(tmp_path, tmp_path)
    saved: list[Any] = []
    checkpoints = [SimpleNamespace(save_now=saved.append), SimpleNamespace()]
    trainer: Any = SimpleNamespace(accumulate_grad_batches=2, world_size=1, checkpoint_callbacks=checkpoints)
    callback = StopOnSignal(directory)
    callback.on_train_batch_start(trainer, MODULE, None, 0)
    directory.signals.received_signal = signal.SIGUSR1
    callback.on_train_batch_start(trainer, MODULE, None, 1)
    assert saved == []
    with pytest.raises(Stopped) as stop:
        callback.on_train_batch_start(trainer, MODULE, None, 2)
    assert (stop.value.reason, saved) == ("SIGUSR1", [trainer])


@pytest.mark.parametrize("is_alive", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_waits_for_a_frozen_process_leaves_some_time_after_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_alive: bool
):
    monkeypatch.setattr(stopping, "_BLOCKED_S", 0.3)
    directory = RunDirectory(tmp_path / "run", tmp_path)
    pid = os.fork()
    if not pid:
        callback = StopOnSignal(directory)
        with suppress(BaseException), directory.open("seed: 0\n", [], 0):
            directory.signals.is_deferred = True
            stopping._leave_when_blocked(callback)
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(14):
                time.sleep(0.05)  # in all twice as long as a frozen process is waited for
                if is_alive:
                    callback.on_validation_batch_start()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (0 if is_alive else 143)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == (("finished", None) if is_alive else ("stopped", "SIGTERM"))


def test_a_rank_that_is_killed_before_it_is_connected_is_the_reason(tmp_path: Path):
    directory = RunDirectory(tmp_path / "run", tmp_path)
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)

    def start() -> None:
        launcher.procs = [subprocess.Popen(["sleep", "60"])]

    launcher._call_children_scripts = start  # type: ignore[method-assign]
    directory.signals.launcher = launcher
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    watch_ranks(trainer, directory)
    with directory.open("seed: 0\n", [], 0):
        launcher._call_children_scripts()
        launcher.procs[0].kill()
        end_s = time.monotonic() + 5
        while directory.summary["status"] == "running" and time.monotonic() < end_s:
            time.sleep(0.01)
        assert directory.summary["reason"].startswith("rank 1: killed by signal 9, possibly out of memory")


def end_batch(batch_idx: int, is_validation_due: bool = False) -> tuple[bool, bool]:
    """End a batch of 5, two of which make a step, after the time is up: whether it stops, and cuts the epoch."""
    limit = TimeLimit("00:00:00:01")
    limit._duration = 0.0
    epoch_loop = SimpleNamespace(_should_check_val_fx=lambda fetcher: is_validation_due)
    trainer: Any = SimpleNamespace(
        callbacks=[limit],
        num_training_batches=5,
        accumulate_grad_batches=2,
        should_stop=False,
        fit_loop=SimpleNamespace(epoch_loop=epoch_loop, _data_fetcher=None),
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )
    limit.on_train_batch_end(trainer, MODULE, None, None, batch_idx)
    return trainer.should_stop, has_epoch_ended_early(trainer)


def test_a_time_limit_ends_training_between_steps_and_not_before_a_validation_within_the_epoch():
    assert end_batch(0) == (False, False)
    assert end_batch(1) == (True, True)
    assert end_batch(1, is_validation_due=True) == (False, False)
    assert end_batch(4, is_validation_due=True) == (True, False)  # the last batch does not cut the epoch


def test_a_run_without_time_left_is_refused():
    limit = TimeLimit("00:00:00:00")
    trainer: Any = SimpleNamespace(should_stop=False, strategy=SimpleNamespace(broadcast=lambda value: value))
    with pytest.raises(ConfigError, match="trainer.max_time=00:00:00:00: no time is left"):
        limit.on_fit_start(trainer)


def test_lightning_has_the_method_that_is_replaced():
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)


def test_on_a_gpu_the_signal_of_the_step_before_is_read_so_that_the_newest_step_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
):
    """The tensors are on the CPU here; the calls are those for a GPU."""
    waited: list[int] = []

    class Event:
        num_recorded = 0

        def record(self) -> None:
            Event.num_recorded += 1
            self.number = Event.num_recorded

        def synchronize(self) -> None:
            waited.append(self.number)

    full = torch.full
    monkeypatch.setattr(torch, "full", lambda size, value, device: full(size, value))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: tensor.clamp_(min=2))  # another rank has 2
    stopper = StopOnSignal(SimpleNamespace())
    found = [stopper._highest_of_ranks(signal, torch.device("cuda")) for signal in (0, 15, 1)]
    assert found == [0, 2, 15]
    assert waited == [1, 2]
    assert stopper._highest_of_ranks(1, torch.device("cpu")) == 2
