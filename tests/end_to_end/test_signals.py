"""SIGTERM, SIGUSR1 and Ctrl-C save the state, set exit code and summary, and leave no process running."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from short_runs import summary
from warm_python import left_over
from warm_runs import TINY, TWO, WarmRuns

from imago.runs.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

LONG = (*TINY, "trainer.max_epochs=500", "+callbacks.slow={_target_: interruptions.Slow, seconds: 0.05}")
STRATEGIES = {
    "one process": (),
    "one process, 2 workers": ("data.num_workers=2",),
    "ddp": (*TWO, "trainer.strategy=auto"),
    "ddp_fork": TWO,
}
CODES = {signal.SIGTERM: (143, "SIGTERM"), signal.SIGUSR1: (143, "SIGUSR1"), signal.SIGINT: (130, "Ctrl-C")}
# To the process that the user started, or, as from a terminal, to all of them.
IN_TEST = [
    ("one process", signal.SIGUSR1, False),
    ("one process, 2 workers", signal.SIGINT, True),
    ("ddp", signal.SIGTERM, False),
    ("ddp_fork", signal.SIGINT, True),
    ("ddp_fork", signal.SIGTERM, False),
]
ALL = [(name, number, to_all) for name in STRATEGIES for number in CODES for to_all in (False, True)]


def is_stopped(runs: WarmRuns, strategy: str, number: int, to_all: bool) -> float:
    """Stop a run in its second epoch and return the seconds until it exits."""
    name = f"{strategy}-{number}-{to_all}".replace(" ", "").replace(",", "")
    run = runs.start(*LONG, *STRATEGIES[strategy], f"run_name={name}")
    folder = runs.logs / "train" / name
    run.wait_for("epoch   1/500")
    while last_logged_step(folder) < 4:  # within the second epoch, which begins at 3
        time.sleep(0.02)
    start = time.monotonic()
    (os.killpg if to_all else os.kill)(run.pid, number)
    exit_code = run.wait(60)
    seconds = time.monotonic() - start
    found = summary(folder)
    assert (exit_code, found["status"], found["reason"]) == (CODES[number][0], "stopped", CODES[number][1]), run.text
    saved = read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]
    assert saved == last_logged_step(folder) + 1, "every step that was done is saved"
    assert "Traceback" not in run.text
    assert not left_over(run)
    return seconds


def last_logged_step(folder: Path) -> int:
    return int((folder / "metrics.csv").read_text().splitlines()[-1].split(",")[0])


@pytest.mark.parametrize(("strategy", "number", "to_all"), IN_TEST)
def test_a_signal_saves_and_ends_all_processes(runs: WarmRuns, strategy: str, number: int, to_all: bool):
    is_stopped(runs, strategy, number, to_all)


@pytest.mark.soak
@pytest.mark.parametrize(("strategy", "number", "to_all"), ALL)
def test_every_signal_ends_every_kind_of_run(runs, strategy: str, number: int, to_all: bool, record_property):
    record_property("rule", "runs that a signal ends with all steps saved, the right exit code and no process left")
    record_property(
        f"seconds from {signal.Signals(number).name} to the exit", is_stopped(runs, strategy, number, to_all)
    )


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.soak), "ddp_fork"])
def test_no_process_outlives_one_that_was_killed_and_the_run_goes_on(runs: WarmRuns, strategy: str):
    name = f"killed-{strategy}"
    run = runs.start(*LONG, *STRATEGIES[strategy], f"run_name={name}")
    run.wait_for("epoch   1/500")
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait(60) == -9
    assert not left_over(run)
    folder = runs.logs / "train" / name
    assert summary(folder)["status"] in ("running", "failed")  # the other rank may have come to say so
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] >= 3


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_a_frozen_process_does_not_keep_the_others_from_leaving(runs: WarmRuns, strategy: str):
    name = f"frozen-{strategy}"
    run = runs.start(*LONG, *STRATEGIES[strategy], f"run_name={name}")
    run.wait_for("epoch   1/500")
    psutil.Process(run.pid).children()[-1].suspend()
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(150) == 143
    assert "without saving: another process of the run does not respond" in run.text
    found = summary(runs.logs / "train" / name)
    assert (found["status"], found["reason"]) == ("stopped", "SIGTERM")
    assert not left_over(run)


def test_a_signal_in_the_final_test_keeps_the_training_and_the_test_is_repeated(runs: WarmRuns):
    slow = "+callbacks.slow={_target_: interruptions.SlowTest}"
    run = runs.start(*TINY, "run_name=tested", slow)
    run.wait_for("testing")
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(30) == 143
    folder = runs.logs / "train" / "tested"
    assert (summary(folder)["status"], summary(folder)["epochs"]) == ("stopped", 3)
    assert "stopped by SIGTERM; to continue: python src/train.py resume=" in run.text
    runs.run(f"resume={folder}", "callbacks.slow=null")
    assert summary(folder)["status"] == "finished"
    assert "test" in summary(folder)


def test_a_slurm_job_saves_at_sigusr1_and_is_queued_again(runs: WarmRuns, tmp_path: Path):
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "imago", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    job |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_STEP_ID": "0"}
    job |= {"SLURM_NTASKS_PER_NODE": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ("run_name=job77", "resume=auto")
    broken = "+callbacks.broken={_target_: interruptions.Signal, step: 4, number: 10}"
    runs.run(*TINY, *command, broken, expect=143, **job)
    folder = runs.logs / "train" / "job77"
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert (summary(folder)["status"], summary(folder)["reason"]) == ("stopped", "SIGUSR1")
    assert not list(folder.rglob("hpc_ckpt*"))
    runs.run(*TINY, *command, "callbacks.broken=null", **job)
    assert summary(folder)["status"] == "finished"
    assert len(json.loads((folder / "provenance.json").read_text())["resumes"]) == 1


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.soak), signal.SIGTERM])
def test_a_sweep_of_several_processes_passes_the_signal_on(runs: WarmRuns, number: int):
    run = runs.start(*LONG, *TWO, "-m", "optimizer.lr=1e-3,2e-3", f"sweep_name=sweep{number}", warm_children=True)
    output = runs.logs / "sweeps" / f"sweep{number}" / "0" / "output.log"
    while not (output.exists() and "epoch   1/" in output.read_text()):
        time.sleep(0.1)
    os.kill(run.pid, number)
    assert run.wait(60) == CODES[number][0]
    trial = runs.logs / "sweeps" / f"sweep{number}" / "0"
    assert (summary(trial)["status"], summary(trial)["reason"]) == ("stopped", "SIGTERM")
    assert not trial.with_name("1").exists()
