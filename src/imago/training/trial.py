"""A trial of a sweep that needs several processes runs as a command of its own.

Lightning starts the other ranks by repeating the command line. Repeating a sweep's would start sweeps inside sweeps,
and a trial that fails on one rank would leave the others waiting in the next trial for ever.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from imago.errors import UserError
from imago.files import write_json
from imago.paths import PROJECT_ROOT, quote_for_hydra

# What torch.distributed leaves in the environment: a child must not take itself for somebody's rank.
_RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RUN_ID")


class TrialError(Exception):
    """The process of a trial ended with an error; what it was stands on the screen and in the trial's train.log."""


def run_trial(overrides: Sequence[str], folder: Path) -> float:
    """Run one trial in its folder and give its best validation accuracy.

    Ctrl-C and SIGTERM are passed on, and this process leaves after the child has saved.

    Raises:
        UserError: if the child ends with 2, the exit code of a mistake in the settings.
        TrialError: if it ends with anything else but 0.
    """
    typed = [argument for argument in overrides if not argument.startswith("run_name=")]
    command = [
        sys.executable,
        str(PROJECT_ROOT / "src" / "train.py"),
        *typed,
        f"hydra.run.dir={quote_for_hydra(str(folder))}",
    ]
    environment = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    return_code = _wait(child)
    summary_file = folder / "summary.json"
    summary = json.loads(summary_file.read_text(encoding="utf-8")) if summary_file.exists() else {}
    if return_code:
        reason = f"the process of this trial ended with exit code {return_code}"
        if summary.get("status") == "running":  # killed, so it could not say so itself
            write_json(summary_file, summary | {"status": "failed", "reason": reason})
        kind = UserError if return_code == 2 else TrialError  # the child has said itself what the user mistyped
        raise kind(f"{reason}; see {folder / 'train.log'}")
    return float(summary.get("val", {}).get("acc", "nan"))


def _wait(child: subprocess.Popen) -> int:
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # The child has a session of its own: Lightning's ranks belong to it and get the signal too.
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(child.pid, number)

    passed_on = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    old = {number: signal.signal(number, pass_on) for number in passed_on}
    try:
        return_code = child.wait()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if received:
        raise SystemExit(143)
    return return_code
