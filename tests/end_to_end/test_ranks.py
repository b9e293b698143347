"""A rank that fails, one that is killed, and ranks that are started from outside."""

import json
import os
import socket
import subprocess
import sys

import pytest
from short_runs import summary
from warm_python import left_over
from warm_runs import TINY, TWO, WarmRuns

from imago.paths import PROJECT_ROOT

pytestmark = pytest.mark.slow

DDP = (*TWO, "trainer.strategy=auto")
KILLED = "rank 1: killed by signal 9, possibly out of memory: try a smaller data.batch_size"
BUG = "rank 1: ZeroDivisionError: broken on purpose"


def broken(name: str) -> str:
    return f"+callbacks.broken={{_target_: interruptions.{name}, step: 4, rank: 1}}"


@pytest.mark.parametrize(
    ("strategy", "callback", "reason"),
    [
        (TWO, "Raise", BUG),
        (TWO, "RaiseForUser", "rank 1: the images are gone."),
        (TWO, "KillRank", KILLED),
        pytest.param(DDP, "Raise", BUG, marks=pytest.mark.soak),
        pytest.param(DDP, "KillRank", KILLED, marks=pytest.mark.soak),
    ],
)
def test_the_summary_names_the_rank_that_failed_and_the_reason(runs: WarmRuns, strategy, callback: str, reason: str):
    name = f"{callback}-{strategy[-1].rpartition('=')[2]}"
    run = runs.start(*TINY, *strategy, broken(callback), f"run_name={name}")
    exit_code = run.wait()
    folder = runs.logs / "train" / name
    found = summary(folder)
    assert found["status"] == "failed", run.text
    assert found["reason"] == reason
    # Lightning kills the first process where another one has failed, if it does not come to fail by itself.
    assert exit_code in {"RaiseForUser": (2,), "KillRank": (2, -9), "Raise": (1, -9)}[callback]
    assert callback == "Raise" or "Traceback" not in run.text
    assert not left_over(run)
    assert json.loads((folder / "failure_rank1.json").read_text())["rank"] == "1"
    if callback == "Raise":
        runs.run(f"resume={folder}", "callbacks.broken=null")
        assert (summary(folder)["status"], list(folder.glob("failure_rank*"))) == ("finished", [])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def torchrun(runs: WarmRuns, launcher: list[str], *settings: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "src/train.py", *TINY, *settings]
    return subprocess.Popen(
        [*command, "trainer.accelerator=cpu", f"paths.log_dir={runs.logs}"],
        cwd=PROJECT_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT / "tests")},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.soak
def test_torchrun_on_two_nodes_makes_one_directory_and_the_same_weights(runs: WarmRuns):
    runs.run(*TINY, *TWO, "data.num_workers=0", "run_name=one_node")
    address = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    typed = ("trainer.num_nodes=2", "trainer.devices=1", "data.num_workers=0", "run_name=nodes")
    nodes = [torchrun(runs, [*address, f"--node-rank={node}"], *typed) for node in (0, 1)]
    screens = [node.communicate(timeout=250)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert [screen.count("test accuracy") for screen in screens] == [1, 0]
    ours, theirs = summary(runs.logs / "train" / "nodes"), summary(runs.logs / "train" / "one_node")
    assert (ours["status"], ours["val"], ours["test"]) == ("finished", theirs["val"], theirs["test"])
    assert {path.name for path in (runs.logs / "train").iterdir()} >= {"nodes", "one_node"}
    assert ours["test"]["num_images"] == 64


@pytest.mark.soak
def test_a_rank_that_fails_under_torchrun_is_the_reason_though_torchrun_stops_the_others(runs: WarmRuns):
    launcher = ["--nproc-per-node=2", f"--master-port={free_port()}"]
    done = torchrun(runs, launcher, "trainer.devices=2", "run_name=torchrun", broken("Raise"))
    done.communicate(timeout=250)
    assert done.returncode == 1
    found = summary(runs.logs / "train" / "torchrun")
    assert (found["status"], found["reason"]) == ("failed", BUG)
