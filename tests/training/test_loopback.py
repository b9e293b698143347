"""The processes of a run on one machine cannot be reached from others."""

import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch.distributed import TCPStore

from imago.training.loopback import bind_to_loopback


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "STANDALONE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def accepts_connections(address: str, port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(2)
        return client.connect_ex((address, port)) == 0


def test_the_store_of_the_ranks_listens_on_the_loopback_address_only():
    environment, stores = LightningEnvironment(), []

    def connect() -> None:  # as torch does for the ranks of Lightning
        stores.append(TCPStore("127.0.0.1", environment.main_port, 1, is_master=True, multi_tenant=True))

    strategy = SimpleNamespace(cluster_environment=environment, local_rank=0, setup_distributed=connect)
    trainer: Any = SimpleNamespace(num_nodes=1, strategy=strategy)
    bind_to_loopback(trainer)
    strategy.setup_distributed()
    stores[0].set("key", "value")
    assert stores[0].get("key") == b"value"
    # The other addresses of this machine, of which 127.0.0.2 stands for those in the network.
    assert [accepts_connections(f"127.0.0.{n}", environment.main_port) for n in (1, 2)] == [True, False]


@pytest.mark.parametrize(
    ("num_nodes", "environment", "variables"),
    [
        (2, LightningEnvironment, {}),
        (1, TorchElasticEnvironment, {"MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "2"}),
        (1, LightningEnvironment, {"MASTER_ADDR": "node1"}),
    ],
)
def test_ranks_on_several_machines_or_of_another_launcher_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, num_nodes: int, environment: Any, variables: dict[str, str]
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    strategy = SimpleNamespace(cluster_environment=environment(), local_rank=0, setup_distributed=lambda: None)
    trainer: Any = SimpleNamespace(num_nodes=num_nodes, strategy=strategy)
    bind_to_loopback(trainer)
    strategy.setup_distributed()
    assert not hasattr(strategy, "store")
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "lo")
