"""The batch script of `docs/`, on a cluster of two small programs: `srun` and `scontrol`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from short_runs import summary
from warm_runs import TINY

from imago.paths import PROJECT_ROOT

SCRIPT = PROJECT_ROOT / "docs" / "cluster.sbatch"

# Starts two tasks with the variables that SLURM sets for each, and waits for both; fails as the first of them does.
SRUN = """#!/bin/bash
export SLURM_STEP_ID=0 SLURM_NODEID=0
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & other=$!
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"; code=$?
wait $other
exit $code
"""


def submit(cluster: Path, logs: Path, *settings: str) -> subprocess.CompletedProcess:
    """Run the script as the batch job 4711 with two tasks on one node."""
    for name, text in (("srun", SRUN), ("scontrol", f'#!/bin/sh\necho "$@" >> {cluster}/asked\n')):
        (cluster / name).write_text(text)
        (cluster / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "imago", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NNODES": "1", "SLURM_NODELIST": "localhost", "PATH": f"{cluster}:{os.environ['PATH']}"}
    job |= {"PYTHON": sys.executable, "PYTHONPATH": str(PROJECT_ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(SCRIPT), *settings, f"paths.log_dir={logs}"]
    return subprocess.run(command, cwd=PROJECT_ROOT, env=os.environ | job, capture_output=True, text=True, timeout=280)


@pytest.mark.soak
def test_the_batch_script_survives_the_end_of_its_time(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    settings = (*TINY, "trainer.accelerator=cpu")
    signal = "+callbacks.broken={_target_: interruptions.Signal, step: 4, number: 10}"
    first = submit(tmp_path / "bin", tmp_path, *settings, signal)
    run = tmp_path / "train" / "job-4711"
    assert first.returncode == 143, first.stdout + first.stderr
    assert (summary(run)["status"], summary(run)["reason"]) == ("stopped", "SIGUSR1")
    assert (tmp_path / "bin" / "asked").read_text() == "requeue 4711\n"
    again = submit(tmp_path / "bin", tmp_path, *settings, "callbacks.broken=null")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("test accuracy") == 1
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["job-4711"]
    assert summary(run)["status"] == "finished"
    assert len(json.loads((run / "provenance.json").read_text())["resumes"]) == 1


def test_the_guide_and_the_script_agree():
    guide, script = (PROJECT_ROOT / "docs" / "cluster.md").read_text(), SCRIPT.read_text()
    for part in ("--signal=USR1@90", "resume=auto", "run_name=job-$SLURM_JOB_ID"):
        assert part in guide
        assert part in script


def test_the_files_for_kubernetes_and_ray_start_as_many_processes_as_the_settings_say(compose):
    guide = (PROJECT_ROOT / "docs" / "cluster.md").read_text()
    job = yaml.safe_load(re.search(r"```yaml\n(.*?)```", guide, re.DOTALL)[1])["spec"]["trainer"]
    settings = [text for text in (*job["command"], *job["args"]) if "=" in text]
    composed = compose(*settings).trainer
    assert (composed.num_nodes, composed.devices) == (job["numNodes"], job["numProcPerNode"])
    assert job["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": composed.devices}

    script = re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1]
    compile(script, "train_ray.py", "exec")
    composed = compose(*re.search(r'SETTINGS = "(.*)"', script)[1].split()).trainer
    assert f"--nnodes={composed.num_nodes} --nproc-per-node={composed.devices} " in script
    assert f'"num_workers": {composed.num_nodes}' in script
    assert f'"GPU": {composed.devices}' in script
