"""Two nodes on one machine: network namespaces that a veth pair joins, made with the program `ip` as root."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from imago.paths import PROJECT_ROOT

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29500  # each pair of namespaces has its own ports


class TwoNodes:
    """Two nodes with the addresses `ADDRESSES`; their processes write to `node0.out`, `node0.err` and so on.

    Args:
        folder: receives the output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"imago-{os.getpid()}-{node}" for node in (0, 1)]

    def start(self, node: int, *command: str, cwd: Path = PROJECT_ROOT, **environment: str) -> subprocess.Popen:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        variables |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT / "tests"), "GLOO_SOCKET_IFNAME": "eth0"}
        with (self.folder / f"node{node}.out").open("wb") as out, (self.folder / f"node{node}.err").open("wb") as err:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.names[node], sys.executable, *command],
                cwd=cwd,
                env=variables | environment,
                stdout=out,
                stderr=err,
            )

    def torchrun(self, *settings: str) -> list[subprocess.Popen]:
        """Start one rank on each node by torchrun; the output of a rank is below `rank0` or `rank1`."""
        launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--master-addr={ADDRESSES[0]}"]
        launcher += [f"--master-port={PORT}", "--redirects=3"]
        typed = ["src/train.py", "trainer.num_nodes=2", "trainer.devices=1", "trainer.accelerator=cpu", *settings]
        for node in (0, 1):
            shutil.rmtree(self.folder / f"rank{node}", ignore_errors=True)
        return [
            self.start(node, *launcher, f"--node-rank={node}", f"--log-dir={self.folder / f'rank{node}'}", *typed)
            for node in (0, 1)
        ]

    def by_hand(self, node: int, *settings: str, cwd: Path = PROJECT_ROOT, **environment: str) -> subprocess.Popen:
        """Start one rank on a node by the variables that Lightning reads, so that its exit code is seen."""
        variables = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(PORT), "NODE_RANK": str(node)} | environment
        typed = ("trainer.num_nodes=2", "trainer.devices=1", "trainer.accelerator=cpu", *settings)
        return self.start(node, "src/train.py", *typed, cwd=cwd, **variables)

    def text(self, name: str) -> str:
        """Return the content of `node0.err`, or of the `stderr` of the first process below `rank0`."""
        file = self.folder / name
        if file.parent != self.folder:
            file = next(file.parent.glob(f"*/attempt_0/0/{file.name}.log"), file)
        return file.read_text("utf-8", errors="replace") if file.exists() else ""

    def kill(self, node: int) -> None:
        """Send SIGKILL to all processes of a node at once."""
        found = subprocess.run(["ip", "netns", "pids", self.names[node]], capture_output=True, text=True, check=True)
        for pid in found.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@contextmanager
def two_nodes(folder: Path) -> Iterator[TwoNodes]:
    """Make the namespaces, and remove them and what runs in them at the end; skip where that is not allowed."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the program ip (package iproute2)")
    nodes = TwoNodes(folder)
    first, second = nodes.names
    commands = [f"netns add {first}", f"netns add {second}"]
    commands += [f"link add eth0 netns {first} type veth peer name eth0 netns {second}"]
    for name, address in zip(nodes.names, ADDRESSES, strict=True):
        commands += [f"-n {name} addr add {address}/24 dev eth0", f"-n {name} link set eth0 up"]
        commands += [f"-n {name} link set lo up"]
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"ip {command}: {done.stderr.strip()}")
        yield nodes
    finally:
        for node, name in enumerate(nodes.names):
            if Path(f"/run/netns/{name}").exists():
                nodes.kill(node)
                subprocess.run(["ip", "netns", "delete", name], check=True)
