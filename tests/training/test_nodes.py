"""The nodes of a run compare what must be the same, here in threads."""

import json
import re
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment

from imago.errors import ConfigError, DataError
from imago.runs.failure import write_failure
from imago.training import nodes
from imago.training.nodes import check_nodes

STARTED = {"pid": 7, "started": "2026-01-01T00:00:00+00:00", "status": "running"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Node(threading.Thread):
    """One of two nodes; `error` is what `check_nodes` raised, `seconds` how long it took."""

    def __init__(
        self,
        number: int,
        cfg: Any,
        folder: Path,
        port: int,
        fingerprint: str = "a",
        seconds: int = 20,
        precision: str = "32-true",
    ):
        super().__init__()
        self.error: Exception | None = None
        environment = SimpleNamespace(local_rank=lambda: 0, node_rank=lambda: number, main_address="127.0.0.1")
        environment.main_port = port
        strategy = SimpleNamespace(cluster_environment=environment, _timeout=timedelta(seconds=seconds))
        strategy.root_device = SimpleNamespace(type="cpu")
        splits = SimpleNamespace(items=lambda: ())
        self.arguments: Any = (
            cfg,
            SimpleNamespace(fingerprint=lambda: fingerprint, splits=splits),
            SimpleNamespace(num_nodes=2, strategy=strategy, precision=precision),
            SimpleNamespace(path=folder, log_dir=folder.parent, is_main_process=number == 0),
        )
        file = folder / "summary.json"
        if number == 0:
            file.write_text(json.dumps(STARTED))
        self.arguments[3].summary = json.loads(file.read_text()) if file.exists() else {}
        self.start()

    def run(self) -> None:
        start_s = time.monotonic()
        try:
            check_nodes(*self.arguments)
        except ConfigError as error:
            self.error = error
        self.seconds = time.monotonic() - start_s


def meet(first: Node, second: Node) -> list[str]:
    for node in (first, second):
        node.join()
    return [str(node.error) for node in (first, second)]


@pytest.fixture(autouse=True)
def _not_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(nodes, "describe_process", lambda: {"git": {"commit": "c0ffee"}, "packages": {"torch": "2"}})
    monkeypatch.setattr(nodes, "_SHARED_S", 0.5)
    monkeypatch.setattr(nodes, "_POLL_S", 0.05)


def test_nodes_whose_hardware_chooses_another_precision_are_refused(compose, tmp_path: Path):
    port = free_port()
    first = Node(0, compose(), tmp_path, port)
    texts = meet(first, Node(1, compose(), tmp_path, port, precision="bf16-mixed"))
    assert all(text.startswith("trainer.precision is bf16-mixed on node 1 ") for text in texts), texts


def test_restarts_of_torchrun_are_refused(compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    node = Node(0, compose(), tmp_path, free_port())
    node.join()
    assert str(node.error).startswith("torchrun --max-restarts=3: nodes count their restarts separately")


def test_nodes_that_differ_in_paths_and_threads_only_go_on(compose, tmp_path: Path):
    port = free_port()
    first = Node(0, compose("data.root=/a", "threads=2"), tmp_path, port)
    assert (
        meet(first, Node(1, compose("data.root=/b", "threads=3", "paths.log_dir=/c"), tmp_path, port)) == ["None"] * 2
    )


@pytest.mark.parametrize(
    ("settings", "fingerprint", "text"),
    [
        (
            ["optimizer.lr=0.5"],
            "a",
            r"optimizer\.lr is 0\.5 on node 1 \(.*\), and 0\.\d+ on node 0 \(.*\): all nodes need",
        ),
        (["+trainer.max_steps=5"], "a", r"trainer\.max_steps is 5 on node 1 \(.*\), and None on node 0"),
        ([], "b", r"the fingerprint of the data is b on node 1 \(.*\), and a on node 0"),
    ],
)
def test_another_setting_or_other_data_are_the_same_line_on_both_nodes(
    compose, tmp_path: Path, settings: list[str], fingerprint: str, text: str
):
    port = free_port()
    errors = meet(Node(0, compose(), tmp_path, port), Node(1, compose(*settings), tmp_path, port, fingerprint))
    assert errors[0] == errors[1]
    assert "\n" not in errors[0]
    assert re.match(text, errors[0]), errors[0]


def test_another_commit_is_named(compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    port, commits = free_port(), iter(("aaa", "bbb"))
    monkeypatch.setattr(nodes, "describe_process", lambda: {"git": {"commit": next(commits)}, "packages": {}})
    errors = meet(Node(0, compose(), tmp_path, port), Node(1, compose(), tmp_path, port))
    assert errors[0] == errors[1]
    assert errors[0].startswith("the commit is ")
    assert {"aaa", "bbb"} <= set(errors[0].replace(",", "").split())


def test_a_node_with_another_run_of_that_name_does_not_see_the_run_directory(compose, tmp_path: Path):
    port, (shared, own) = free_port(), (tmp_path / "shared", tmp_path / "own")
    for folder in (shared, own):
        folder.mkdir()
    (own / "summary.json").write_text(json.dumps(STARTED | {"started": "2025-01-01T00:00:00+00:00"}))
    errors = meet(Node(0, compose(), shared, port), Node(1, compose(), own, port))
    assert errors[0] == errors[1]
    assert f"paths.log_dir={tmp_path}: node 1 (" in errors[0]
    assert f"does not see {own} of node 0" in errors[0]


@pytest.mark.slow
def test_a_node_that_does_not_come_and_one_that_reaches_nobody_end_at_the_timeout(compose, tmp_path: Path):
    alone = Node(0, compose(), tmp_path, free_port(), seconds=2)
    unheard = Node(1, compose(), tmp_path, free_port(), seconds=2)
    errors = meet(alone, unheard)
    assert errors[0].startswith("trainer.num_nodes: node 1 has not come within 2 s; start it with the same command")
    assert "\n" not in errors[1]
    assert errors[1].startswith("MASTER_ADDR=127.0.0.1 MASTER_PORT=")
    assert "has no connection to node 0 (" in errors[1]
    assert alone.seconds < 10
    assert unheard.seconds < 10


def test_a_node_that_failed_before_is_not_waited_for(compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    write_failure(tmp_path, DataError("data.root=/nowhere does not exist."))
    node = Node(0, compose(), tmp_path, free_port())
    node.join()
    assert str(node.error) == "rank 1: data.root=/nowhere does not exist."
    assert node.seconds < 10


def test_one_node_and_the_other_processes_of_a_node_do_not_meet(compose, tmp_path: Path):
    environment = SimpleNamespace(local_rank=lambda: 1)
    for num_nodes in (1, 2):
        trainer: Any = SimpleNamespace(num_nodes=num_nodes, strategy=SimpleNamespace(cluster_environment=environment))
        check_nodes(compose(), None, trainer, None)  # type: ignore[arg-type]


def test_several_nodes_without_a_launcher_are_refused_at_once(compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    trainer: Any = SimpleNamespace(num_nodes=2, strategy=SimpleNamespace(cluster_environment=LightningEnvironment()))
    with pytest.raises(ConfigError, match=r"^trainer.num_nodes=2: .*MASTER_ADDR is not set; .*trainer.num_nodes=1\.$"):
        check_nodes(compose(), None, trainer, None)  # type: ignore[arg-type]
