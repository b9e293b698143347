"""SLURM: a job that is told its time is nearly up (`--signal=USR1@90`) saves, leaves and queues itself again."""

import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from imago.errors import Stopped
from imago.runs.rank import is_main_process

log = logging.getLogger(__name__)


@contextmanager
def requeueing() -> Iterator[None]:
    """Queue the job again when SIGUSR1 ended the run; the same command then needs `run_name=NAME resume=auto`."""
    try:
        yield
    except Stopped as stop:
        if stop.reason == signal.SIGUSR1.name and "SLURM_JOB_ID" in os.environ and is_main_process():
            _requeue(_job())
        raise


def _job() -> str:
    """Name the job, or this task of a job array, as `scontrol` wants it."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def _requeue(job: str) -> None:
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        failure = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure is not None:
        log.warning("job %s is not queued again: scontrol says %s", job, failure)
