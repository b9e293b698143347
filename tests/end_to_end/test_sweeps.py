"""Sweeps of real runs: an array job of SLURM, and a sweep that is killed and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from short_runs import summary
from warm_python import warm_imago
from warm_runs import TINY, WarmRuns

from imago.analysis.ranking import rank_settings
from imago.paths import PROJECT_ROOT, short_path

SCRIPT = PROJECT_ROOT / "docs" / "sweeps.sbatch"
SEARCH = ("sweep=random", "sweep.n_trials=2", "optimizer.lr=tag(log,interval(1e-4,1e-2))")


def submit(logs: Path, *settings: str, task: int = 0) -> subprocess.CompletedProcess:
    """Run the script as a task of the array job 4711."""
    job = {"SLURM_JOB_ID": "4712", "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_NTASKS": "1"}
    job |= {"PYTHON": str(warm_imago().executable), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(SCRIPT), *settings, f"paths.log_dir={logs}"]
    return subprocess.run(command, cwd=PROJECT_ROOT, env=os.environ | job, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_an_array_job_searches_ranks_and_tests_the_best_setting_once(tmp_path: Path):
    done = submit(tmp_path, *TINY, *SEARCH)
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "sweeps" / "job-4711"
    values = [summary(sweep / name)["best_value"] for name in "01"]
    best = max("01", key=lambda name: values[int(name)])
    assert ["test" in summary(sweep / name) for name in "01"] == [False, False]
    tested = [path.parts[-4] for path in sweep.glob("*/eval/test/metrics.json")]
    assert tested == [best]
    accuracy = json.loads((sweep / best / "eval/test/metrics.json").read_text())["acc"]
    assert json.loads((sweep / "sweep.json").read_text())["test"]["acc"] == [accuracy]
    lines = done.stdout.splitlines()
    assert [line.split(" (")[0] for line in lines if line.startswith("trial ")] == ["trial 0", "trial 1"]
    assert f"{max(values):.4f}" in (sweep / "ranking.md").read_text().splitlines()[4]
    again = submit(tmp_path, *TINY, *SEARCH, task=1)  # another task that comes when all is done
    assert again.returncode == 0
    assert "trial 2" not in again.stdout
    other = submit(tmp_path, *TINY, *SEARCH, "model.dropout=0.3")
    assert other.returncode == 2
    assert "is a sweep with other settings (none; now model.dropout=0.3)" in other.stderr


@pytest.mark.slow
def test_jobs_of_a_launcher_write_to_the_directory_of_the_sweep_and_are_ranked(runs: WarmRuns):
    """They compose their settings in processes of their own."""
    done = runs.run(*TINY, "hydra/launcher=joblib", "optimizer.lr=1e-3,2e-3", "sweep_name=jobs", "-m")
    sweep = runs.logs / "sweeps" / "jobs"
    assert done.stdout.splitlines()[-1].endswith(f"src/report.py run={short_path(sweep)}   # the ranking")
    assert [summary(sweep / name)["status"] for name in "01"] == ["finished", "finished"]
    assert ["test" in summary(sweep / name) for name in "01"] == [False, False]
    ranking = rank_settings(sweep)
    assert {setting.settings["optimizer.lr"] for setting in ranking.settings} == {"0.001", "0.002"}
    assert ranking.best.mean == max(summary(sweep / name)["best_value"] for name in "01")


@pytest.mark.soak
@pytest.mark.parametrize("kills_child", [False, True])
@pytest.mark.parametrize("attempt", range(10))
def test_a_killed_sweep_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path, attempt: int, kills_child: bool):
    settings = (*TINY, *SEARCH, "trainer.max_epochs=6", "resume=auto", f"paths.log_dir={tmp_path}", "-m")
    script = [sys.executable, "src/train.py", *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*script, "sweep_name=killed"], cwd=PROJECT_ROOT, env=environment)
    trial = tmp_path / "sweeps/killed" / str(attempt % 2)
    while not (trial / "checkpoints/last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(0.1 * attempt)
    process.kill()
    process.wait()
    if kills_child and summary(trial)["status"] == "running":
        os.kill(summary(trial)["pid"], signal.SIGKILL)
    for name in ("killed", "undisturbed"):
        subprocess.run([*script, f"sweep_name={name}"], cwd=PROJECT_ROOT, env=environment, check=True)
    for number in "01":
        files = [tmp_path / "sweeps" / name / number / "checkpoints/last.ckpt" for name in ("killed", "undisturbed")]
        ours, theirs = (torch.load(file, weights_only=True)["state_dict"] for file in files)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_guide_and_the_script_agree():
    guide, script = (PROJECT_ROOT / "docs" / "sweeps.md").read_text(), SCRIPT.read_text()
    assert "resume=auto" in guide
    assert "sweep_name=job-$SLURM_ARRAY_JOB_ID" in script
    assert "--signal=B:USR1@90" in script
