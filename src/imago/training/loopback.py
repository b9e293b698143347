"""Let the processes of a run on one machine connect through its loopback address only."""

import os
import socket
import sys
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.distributed import TCPStore, is_initialized


def bind_to_loopback(trainer: Trainer) -> None:
    """Let the store of `torch.distributed`, gloo and NCCL listen on the loopback address, not on all addresses.

    Ranks that torchrun or SLURM started, or several machines, are left as they are.
    """
    strategy: Any = trainer.strategy
    environment = getattr(strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 or not isinstance(environment, LightningEnvironment):
        return
    connect = strategy.setup_distributed

    def connect_by_loopback() -> None:
        address = (environment.main_address, environment.main_port)
        if address[0] == "127.0.0.1" and not is_initialized():
            for backend in ("GLOO", "NCCL"):
                os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
            if strategy.local_rank == 0:  # Lightning's store of the same address shares this one's server
                server: dict[str, Any] = {
                    "multi_tenant": True,
                    "master_listen_fd": socket.create_server(address).detach(),
                }
                strategy.store = TCPStore(*address, is_master=True, wait_for_workers=False, **server)
        connect()

    strategy.setup_distributed = connect_by_loopback
