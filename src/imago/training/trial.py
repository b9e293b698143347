"""Run a trial of a sweep that needs several processes as a command of its own.

Lightning starts the other ranks by repeating the command line. Repeating that of a sweep would start sweeps inside
sweeps, and a trial that fails on one rank would leave the others waiting in the next trial.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from imago.errors import UserError
from imago.files import read_json, write_json
from imago.paths import PROJECT_ROOT, quote_for_hydra
from imago.runs.signals import RANK_VARIABLES, STOP_SIGNALS
from imago.system import own_session, stop


def run_trial(overrides: Sequence[str], run_dir: Path) -> None:
    """Run one trial in its directory.

    Stop signals are forwarded, and this process exits after the child has saved.

    Raises:
        UserError: if the child exits with 2, an invalid setting.
        RuntimeError: if it exits with another code than 0; the error itself is in the train.log of the trial.
    """
    typed = [argument for argument in overrides if not argument.startswith("run_name=")]
    command = [sys.executable, str(PROJECT_ROOT / "src" / "train.py"), *typed]
    command.append(f"hydra.run.dir={quote_for_hydra(str(run_dir))}")
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    exit_code = _wait_and_forward_signals(subprocess.Popen(command, env=environment, **own_session()))
    for text in read_json(run_dir / "provenance.json").get("overrides", ()):
        if text.startswith("threads="):  # chosen by the first trial, and handed on to the next ones
            os.environ.setdefault("OMP_NUM_THREADS", text.removeprefix("threads="))
    summary = read_json(run_dir / "summary.json")
    if exit_code:
        reason = f"the process of this trial ended with exit code {exit_code}"
        if summary.get("status") == "running":  # it was killed
            write_json(run_dir / "summary.json", summary | {"status": "failed", "reason": reason})
        error_type = UserError if exit_code == 2 else RuntimeError  # the child has printed the error
        raise error_type(f"{reason}; see {run_dir / 'train.log'}")


def _wait_and_forward_signals(child: subprocess.Popen) -> int:
    """Forward stop signals to a child process until it exits; return its exit code."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        stop(child.pid, number, with_children=True)  # Lightning's ranks

    old_handlers = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        exit_code = child.wait()
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if received:
        raise SystemExit(143)
    return exit_code
