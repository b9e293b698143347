"""Collect the command, code, packages and machine of a run, so that it can be explained and repeated later."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from imago.paths import PROJECT_ROOT

_PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy", "pillow")
_MAX_DIFF_CHARS = 1_000_000  # a larger diff, usually of a notebook with images, is cut


def collect(overrides: Sequence[str], seed: int) -> dict[str, Any]:
    """Return the provenance as plain data for `provenance.json`.

    Args:
        overrides: the settings as typed, which `resume=` starts from.
        seed: of the run.
    """
    return {
        "command": shlex.join(sys.orig_argv),
        "overrides": list(overrides),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git_state(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count(),
    }


def cpu_name() -> str:
    """Return the name of the processor."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _git_state() -> dict[str, Any]:
    """Return the commit and the uncommitted changes; an empty dict outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    diff = _git("diff", "HEAD")
    if len(diff) > _MAX_DIFF_CHARS:
        diff = diff[:_MAX_DIFF_CHARS] + f"\n... cut here: {len(diff):,} characters in total\n"
    return {
        "commit": commit.strip(),
        "diff": diff,
        "untracked": _git("ls-files", "-o", "--exclude-standard").split("\n")[:-1],
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT_ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
