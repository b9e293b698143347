"""Let the nodes of a run meet before they train: all there, with one run directory, code, data and settings."""

import hashlib
import json
import os
import platform
import socket
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import DictConfig
from torch.distributed import DistError, TCPStore

from imago.data.datamodule import ImageDataModule
from imago.errors import ConfigError
from imago.inference.run_split import sampled_digest
from imago.instantiate import to_plain
from imago.runs.failure import first_failure
from imago.runs.provenance import describe_process
from imago.runs.run_directory import RunDirectory
from imago.settings import PATH_SETTINGS, flatten

_MEET_S = 300.0  # nodes start and read their data at different speeds; our own choice
_SHARED_S = 30.0  # a network file system may show a new file that late; our own choice
_POLL_S = 0.2
_CONNECT_S = 5.0  # of one try to connect; our own choice
# Settings that may differ: nodes may have other paths and cores.
_OWN_DATA_KEYS = ("num_workers", "loader", "cache", *PATH_SETTINGS)
_OWN_KEYS = tuple(f"{key}." for key in ("paths", "threads", *(f"data.{name}" for name in _OWN_DATA_KEYS)))


def check_nodes(cfg: DictConfig, data: ImageDataModule, trainer: Trainer, directory: RunDirectory) -> None:
    """Compare the run directory, code, data and settings of each node with those of node 0, in its first process.

    Raises:
        ConfigError: on all nodes, if one does not come within 300 s or a shorter `timeout` of the strategy, or differs.
    """
    environment: Any = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes == 1 or environment.local_rank() != 0:
        return
    if isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
        fault = "this process was not started by torchrun or SLURM, and MASTER_ADDR is not set"
        remedy = "start every node as docs/cluster.md shows, or type trainer.num_nodes=1"
        raise ConfigError(f"trainer.num_nodes={trainer.num_nodes}: {fault}; {remedy}.")
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        fault = "nodes count their restarts separately and would not meet; start torchrun without it, with resume=auto"
        raise ConfigError(f"torchrun --max-restarts={os.environ['TORCHELASTIC_MAX_RESTARTS']}: {fault}.")
    node = environment.node_rank()
    name, facts = f"node {node} ({platform.node()})", _facts(cfg, data, trainer)
    try:
        store = _connect(trainer.strategy, node)
        mine = {"name": name, "facts": facts, "run": {key: directory.summary.get(key) for key in ("pid", "started")}}
        [first] = _exchange(store, directory, "facts", node, mine, 1)
        problem = _problem(name, facts, first, directory)
        problems = _exchange(store, directory, "problem", node, problem, trainer.num_nodes)
    except DistError as error:
        at = f"MASTER_ADDR={environment.main_address} MASTER_PORT={environment.main_port}"
        lost = f"{name} has no connection to node 0 ({str(error).partition('. ')[0]})"
        raise ConfigError(f"{at}: {lost}; if all nodes can reach it there, its output says why.") from error
    if any(problems):
        time.sleep(10 * _POLL_S if node == 0 else 0)  # the others read it from this process
        raise ConfigError(next(filter(None, problems)))


def _connect(strategy: Any, node: int) -> Any:
    """Return the store that connects the ranks later; torchrun is its server, or else the first process of node 0."""
    timeout = min(getattr(strategy, "_timeout", None) or timedelta.max, timedelta(seconds=_MEET_S))
    is_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # then it is connected already
    is_server = node == 0 and not is_torchrun
    address = (strategy.cluster_environment.main_address, strategy.cluster_environment.main_port)
    if not is_torchrun and not is_server:
        _wait_for(address, timeout)
    options: dict[str, Any] = {"wait_for_workers": False, "multi_tenant": is_server}
    strategy.store = TCPStore(*address, is_master=is_server, timeout=timeout, **options)  # torch's shares the server
    return strategy.store


def _wait_for(address: tuple[str, int], timeout: timedelta) -> None:
    """Wait until an address accepts connections: torch's store would try twice as long, and print its frames."""
    end = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            return socket.create_connection(address, _CONNECT_S).close()
        except OSError as error:
            if time.monotonic() > end:
                raise DistError(str(error)) from error
        time.sleep(_POLL_S)


def _exchange(store: Any, directory: RunDirectory, topic: str, node: int, value: Any, num_nodes: int) -> list[Any]:
    """Post a value for the other nodes; return those of the first `num_nodes` nodes when they are there."""
    keys = [f"imago/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}/{topic}/{other}" for other in range(num_nodes)]
    store.set(f"{keys[0][:-1]}{node}", json.dumps(value))
    end = time.monotonic() + store.timeout.total_seconds()
    while missing := [other for other, key in enumerate(keys) if not store.check([key])]:
        if directory.is_main_process and (failure := first_failure(directory.path)):
            raise ConfigError(f"rank {failure.rank}: {failure.text}")
        if time.monotonic() > end:
            late = f"node {missing[0]} has not come within {store.timeout.total_seconds():.0f} s"
            raise ConfigError(f"trainer.num_nodes: {late}; start it with the same command, or see its output.")
        time.sleep(_POLL_S)
    return [json.loads(store.get(key)) for key in keys]


def _facts(cfg: DictConfig, data: ImageDataModule, trainer: Trainer) -> dict[str, Any]:
    """Return what must be the same on all nodes, by the name for a message, as JSON has it."""
    process, settings = describe_process(), flatten(to_plain(cfg, resolve=False))
    facts = {
        "the commit": process["git"].get("commit"),
        "the hash of uncommitted changes": hashlib.sha256(process["git"].get("diff", "").encode()).hexdigest()[:16],
        **{f"the version of {name}": version for name, version in process["packages"].items()},
        "the fingerprint of the data": data.fingerprint(),
        "the hash of the images": sampled_digest(data.splits)[:16],
        **{key: value for key, value in settings.items() if not f"{key}.".startswith(_OWN_KEYS)},
        "trainer.precision": trainer.precision,  # "auto" depends on the hardware
        "the kind of device": trainer.strategy.root_device.type,
    }
    return json.loads(json.dumps(facts, default=str))


def _problem(name: str, facts: dict[str, Any], first: dict[str, Any], directory: RunDirectory) -> str:
    """Return what differs here from node 0, if anything; its summary may come late through a network."""
    for key in first["facts"] | facts:
        here, there = facts.get(key), first["facts"].get(key)
        if here != there:
            both = f"{here} on {name}, and {there} on {first['name']}"
            return f"{key} is {both}: all nodes need the same code, packages, data and settings."
    end = time.monotonic() + _SHARED_S
    while not first["run"].items() <= directory.summary.items():
        if time.monotonic() > end:
            unseen = f"{name} does not see {directory.path} of {first['name']}"
            return f"paths.log_dir={directory.log_dir}: {unseen}; it must lie on a disk that all nodes share."
        time.sleep(_POLL_S)
    return ""
