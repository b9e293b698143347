"""Runs of `train.py` without the seconds that imports take: each is forked from a process that has imported everything.

A run is a process of its own in all other ways: its own session, settings, environment and exit code.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from imago.paths import PROJECT_ROOT

# 3 epochs of 5 batches, of which 2 make a step: the last step of an epoch has 1. Pictures are mixed and recoloured, and
# the learning rate follows a schedule in steps.
TINY = (
    *("data=shapes", "data.batch_size=32", "model.hidden_features=16", "model.dropout=0.1"),
    *("trainer.max_epochs=3", "trainer.limit_train_batches=5", "trainer.limit_val_batches=2"),
    *("trainer.limit_test_batches=1", "trainer.log_every_n_steps=1", "trainer.accumulate_grad_batches=2"),
    *("augment.mixup_alpha=0.2", "augment.brightness=0.2", "extra_targets=[interruptions.*]"),
)
TWO = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp_fork")

_SERVER = """
import json, os, sys
sys.path[:0] = [{src!r}, {tests!r}]
import imago.run.fit, imago.run.train, hydra.main, torch.utils.tensorboard
from hydra.core.hydra_config import HydraConfig
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        break
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
os.setsid()
out = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(out, 1), os.dup2(out, 2)
os.environ.update(job["environment"])
sys.argv = ["src/train.py", *job["arguments"]]
from imago.run.entry import run_command
run_command("train")
"""


class WarmRun:
    """A run that has been started; `text` is what it has written to the screen so far."""

    def __init__(self, runs: "WarmRuns", pid: int, screen: Path) -> None:
        self.runs, self.pid, self.screen = runs, pid, screen

    @property
    def text(self) -> str:
        return self.screen.read_text(errors="replace")

    def wait(self, timeout_s: float = 200) -> int:
        """Give the exit code; a negative one is the number of the signal that killed it."""
        if not select.select([self.runs.process.stdout], [], [], timeout_s)[0]:
            os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {timeout_s} s:\n{self.text[-3000:]}")
        return int(self.runs.read())

    def wait_for(self, text: str, timeout_s: float = 200) -> None:
        """Wait until the screen shows `text`."""
        end = time.monotonic() + timeout_s
        while text not in self.text:
            assert time.monotonic() < end, self.text[-3000:]
            assert is_alive(self.pid), self.text[-3000:]
            time.sleep(0.02)


class WarmRuns:
    """Starts runs whose folders lie below `logs`, one after the other."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        server = _SERVER.format(src=str(PROJECT_ROOT / "src"), tests=str(PROJECT_ROOT / "tests"))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT / "tests")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", server],
            cwd=PROJECT_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def start(self, *arguments: str, **environment: str) -> WarmRun:
        """Start `train.py` with these settings."""
        screen = self.logs / f"screen{time.monotonic_ns()}.txt"
        typed = [*arguments, f"paths.log_dir={self.logs}"]
        job = {"arguments": typed, "environment": environment, "out": str(screen)}
        assert self.process.stdin is not None
        screen.touch()
        self.process.stdin.write((json.dumps(job) + "\n").encode())
        return WarmRun(self, int(self.read()), screen)

    def run(self, *arguments: str, expect: int = 0, **environment: str) -> WarmRun:
        """Run `train.py` to its end, which must have the exit code `expect`."""
        run = self.start(*arguments, **environment)
        exit_code = run.wait()
        assert exit_code == expect, f"exit code {exit_code}\n{run.text[-5000:]}"
        return run

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def alive_in_session(session: int) -> list[int]:
    """Processes that a run has started and that still live."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if folder.name.isdigit() and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def left_over(run: WarmRun) -> list[int]:
    """Processes of the run that do not end within a few seconds, as those that prepare batches do."""
    for _ in range(100):
        if not alive_in_session(run.pid):
            return []
        time.sleep(0.1)
    return alive_in_session(run.pid)
