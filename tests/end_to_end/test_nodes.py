"""Training on two nodes: the same weights as on one, and one line when a node is lost, alone or another one."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import summary
from two_nodes import TwoNodes, two_nodes
from warm_runs import TINY, TWO, WarmRuns

from imago.paths import PROJECT_ROOT
from imago.runs.checkpoint import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("nodes")]  # their undisturbed run is made once

STEPS = 9  # of TINY: 3 epochs of 5 batches, of which 2 make a step
LEFT_S = 60  # within which a node leaves when the other is lost
RUN = (*TINY, "data.num_workers=0")
TIMEOUT = (
    "trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy, "
    "timeout: {_target_: datetime.timedelta, seconds: %d}}"
)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with two_nodes(tmp_path_factory.mktemp("nodes")) as found:
        yield found


def state(run: Path) -> dict[str, Any]:
    """Return the weights and the states of the optimizer in `last.ckpt`, which is checked while it is read."""
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    moments = checkpoint["optimizer_states"][0]["state"]
    flat = {f"{index}.{name}": value for index, values in moments.items() for name, value in values.items()}
    return checkpoint["state_dict"] | flat


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key]))] == []


def wait(processes: list[subprocess.Popen], timeout_s: float = 250) -> list[int | None]:
    """Return the exit codes; None of a process that still runs after the timeout."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and None in [process.poll() for process in processes]:
        time.sleep(0.1)
    return [process.poll() for process in processes]


@pytest.fixture(scope="module")
def undisturbed(nodes: TwoNodes, runs: WarmRuns) -> Path:
    """A run of two nodes with one process each."""
    codes = wait(nodes.torchrun(*RUN, "run_name=nodes", f"paths.log_dir={runs.logs}"))
    assert codes == [0, 0], nodes.text("rank0/stderr") + nodes.text("rank1/stderr") + nodes.text("node1.err")
    assert [nodes.text(f"rank{rank}/stdout").count("test accuracy") for rank in (0, 1)] == [1, 0]
    return runs.logs / "train" / "nodes"


def test_two_nodes_give_the_weights_of_two_processes_on_one_node(undisturbed: Path, runs: WarmRuns):
    runs.run(*RUN, *TWO, "run_name=one_node")
    one_node = runs.logs / "train" / "one_node"
    assert_same(state(undisturbed), state(one_node))
    ours, theirs = summary(undisturbed), summary(one_node)
    assert (ours["status"], ours["val"], ours["test"]) == ("finished", theirs["val"], theirs["test"])


def wait_for_save(nodes: TwoNodes, run: Path) -> None:
    end = time.monotonic() + 200
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < end, nodes.text("rank0/stderr")
        time.sleep(0.05)
    time.sleep(0.5)  # within the next epoch


def lose_a_node(nodes: TwoNodes, runs: WarmRuns, lost: int, name: str) -> Path:
    """Kill all processes of a node after the first save, and check how the other leaves; return the run directory."""
    run, slow = runs.logs / "train" / name, "+callbacks.slow={_target_: interruptions.Slow, seconds: 0.3}"
    processes = nodes.torchrun(*RUN, f"run_name={name}", f"paths.log_dir={runs.logs}", slow)
    wait_for_save(nodes, run)
    nodes.kill(lost)
    start_s, left = time.monotonic(), 1 - lost
    assert processes[left].wait(LEFT_S) != 0
    assert time.monotonic() - start_s < LEFT_S
    processes[lost].wait()
    errors = [line for line in nodes.text(f"rank{left}/stderr").splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, nodes.text(f"rank{left}/stderr")
    assert "lost the connection to another process of this run" in errors[0]
    assert "Traceback" not in nodes.text(f"rank{left}/stderr")
    assert "exitcode  : 2" in nodes.text(f"node{left}.err")
    assert summary(run)["status"] == "failed"
    assert "lost the connection" in summary(run)["reason"]
    assert 0 < read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] < STEPS
    return run


@pytest.mark.parametrize("lost", [1, 0])
def test_when_a_node_is_lost_the_other_leaves_and_the_run_resumes_on_two_nodes_or_one(
    nodes: TwoNodes, runs: WarmRuns, undisturbed: Path, lost: int
):
    run = lose_a_node(nodes, runs, lost, f"lost{lost}")
    copy = runs.logs / "train" / f"one{lost}"
    shutil.copytree(run, copy)
    codes = wait(nodes.torchrun(f"resume={run}", "callbacks.slow=null"))
    assert codes == [0, 0], nodes.text("rank0/stderr") + nodes.text("rank1/stderr")
    assert_same(state(run), state(undisturbed))

    on_one = ("callbacks.slow=null", "trainer.num_nodes=1", f"trainer.devices={1 + lost}", "trainer.accelerator=cpu")
    resumed = runs.run(f"resume={copy}", *on_one, *TWO[2:])
    assert (summary(copy)["status"], summary(copy)["steps"]) == ("finished", STEPS)
    assert "batch_size: 32" in (copy / "config.yaml").read_text()
    if lost:  # two processes, now on one node
        assert_same(state(copy), state(undisturbed))
    assert ("this run had 2 processes, now it has 1: data.batch_size is still" in resumed.text) == (lost == 0)
    assert json.loads((copy / "provenance.json").read_text())["processes"] == 1 + lost


@pytest.mark.soak
@pytest.mark.parametrize("attempt", range(20))
def test_a_lost_node_never_makes_the_other_hang(nodes: TwoNodes, runs: WarmRuns, attempt: int, record_property):
    record_property("rule", "nodes that leave within 60 s when another one is killed")
    lose_a_node(nodes, runs, attempt % 2, f"killed{attempt}")


def leave_together(nodes: TwoNodes, processes: list[subprocess.Popen]) -> list[str]:
    """Return the one line of each node; both exit with 2."""
    assert wait(processes) == [2, 2], nodes.text("node0.err") + nodes.text("node1.err")
    screens = [nodes.text(f"node{node}.err") for node in (0, 1)]
    assert "Traceback" not in "".join(screens)
    lines = [[line for line in screen.splitlines() if line.startswith("error: ")] for screen in screens]
    assert [len(found) for found in lines] == [1, 1], screens
    return [found[0] for found in lines]


def test_a_node_without_the_disk_of_the_run_directory_ends_both(nodes: TwoNodes, tmp_path: Path):
    typed = (*RUN, "run_name=apart")
    processes = [nodes.by_hand(node, *typed, f"paths.log_dir={tmp_path / str(node)}") for node in (0, 1)]
    first, second = leave_together(nodes, processes)
    assert first == second
    assert f"does not see {tmp_path / '1' / 'train' / 'apart'} of node 0" in first
    assert summary(tmp_path / "0" / "train" / "apart")["status"] == "failed"


def test_a_node_with_another_commit_ends_both(nodes: TwoNodes, tmp_path: Path):
    other = tmp_path / "other"
    for folder in ("src", "configs"):
        shutil.copytree(PROJECT_ROOT / folder, other / folder, ignore=shutil.ignore_patterns("__pycache__"))
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "other"]):
        subprocess.run(["git", *command], cwd=other, check=True)
    typed = (*RUN, "run_name=commits", f"paths.log_dir={tmp_path}")
    processes = [nodes.by_hand(0, *typed), nodes.by_hand(1, *typed, cwd=other)]
    first, second = leave_together(nodes, processes)
    assert first == second
    assert first.startswith("error: the commit is ")
    assert summary(tmp_path / "train" / "commits")["reason"] in first


def test_a_node_that_cannot_reach_the_first_one_ends_both_at_the_timeout(nodes: TwoNodes, tmp_path: Path):
    typed = (*RUN, "run_name=unreached", f"paths.log_dir={tmp_path}", TIMEOUT % 20)
    processes = [nodes.by_hand(0, *typed), nodes.by_hand(1, *typed, MASTER_ADDR="10.77.0.9")]
    first, second = leave_together(nodes, processes)
    assert first.startswith("error: trainer.num_nodes: node 1 has not come within 20 s")
    assert second.startswith("error: MASTER_ADDR=10.77.0.9 MASTER_PORT=29500: node 1")


@pytest.mark.soak
def test_when_the_cable_is_pulled_both_leave_after_the_timeout(nodes: TwoNodes, runs: WarmRuns):
    run, slow = runs.logs / "train" / "cable", "+callbacks.slow={_target_: interruptions.Slow, seconds: 0.3}"
    processes = nodes.torchrun(*RUN, "run_name=cable", f"paths.log_dir={runs.logs}", slow, TIMEOUT % 20)
    wait_for_save(nodes, run)
    try:
        subprocess.run(["ip", "-n", nodes.names[0], "link", "set", "eth0", "down"], check=True)
        start_s = time.monotonic()
        assert all(wait(processes, LEFT_S))  # neither 0 nor still running
        assert time.monotonic() - start_s < LEFT_S
    finally:
        subprocess.run(["ip", "-n", nodes.names[0], "link", "set", "eth0", "up"], check=True)
    for rank in (0, 1):
        assert nodes.text(f"rank{rank}/stderr").count("error: lost the connection to another process") == 1
    assert summary(run)["status"] == "failed"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] > 0
