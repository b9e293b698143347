"""Collect the command, code, packages and machine of a run, so that it can be explained and repeated later."""

import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imago.paths import PROJECT_ROOT

log = logging.getLogger(__name__)

_MAX_DIFF_CHARS = 100_000  # a larger diff, usually of a notebook with images, is cut; our own choice
_MAX_UNTRACKED = 200  # names of files; our own choice
_GIT_TIMEOUT_S = 20  # git on a slow network disk must not delay the run; our own choice
_PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy", "pillow")


def collect_provenance(overrides: Sequence[str], seed: int) -> dict[str, Any]:
    """Return the provenance as plain data for `provenance.json`; see `RunDirectory.open` for the arguments."""
    return {"overrides": list(overrides), "seed": seed, **describe_process()}


def describe_process() -> dict[str, Any]:
    """Return command, time, commit, packages and hardware of this process."""
    return {
        "command": shlex.join(sys.orig_argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git_state(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "num_cpus": os.cpu_count(),
    }


def _cpu_name() -> str:
    with suppress(OSError):
        if match := re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE):
            return match[1]
    return platform.processor() or platform.machine()


def _git_state() -> dict[str, Any]:
    """Return the commit and the uncommitted changes; an empty dict outside a git checkout."""
    commit, untracked = _git("rev-parse", "HEAD").strip(), _git("ls-files", "-o", "--exclude-standard")
    if not commit:
        return {}
    diff, names = _git("diff", "HEAD"), untracked.splitlines()
    if len(diff) > _MAX_DIFF_CHARS:
        log.warning("provenance.json has only the first part of your uncommitted changes; commit them to keep all")
        diff = f"{diff[:_MAX_DIFF_CHARS]}\n... cut here: {len(diff):,} characters in total\n"
    more = [f"... and {len(names) - _MAX_UNTRACKED:,} more"] if len(names) > _MAX_UNTRACKED else []
    return {"commit": commit, "diff": diff, "untracked": names[:_MAX_UNTRACKED] + more}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT_ROOT), *arguments]
    try:
        completed = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_GIT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return completed.stdout if completed.returncode == 0 else ""
