"""Collect the failure reason of each rank, and determine why a run ended."""

import errno
import json
import os
import re
import signal
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

from imago.errors import DataError, Stopped, StorageError, UserError
from imago.runs.signals import stopped_by

# Lost-connection errors of the other ranks when one has ended; they are not the cause.
_LOST_CONNECTION = re.compile(r"gloo|nccl|ProcessGroup|Connection (closed|reset|refused)|Broken pipe|TCPStore", re.I)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# A rank that is asked to stop before it has installed its handlers is killed by one of these: no failure.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True)
class Failure:
    """Why one rank ended, as in `failure_rankN.json`.

    Args:
        rank: global rank, or "LOCAL_RANK of node NODE_RANK".
        text: the error message.
        is_user_error: whether the user can correct it.
        traceback: empty if the rank was killed.
        time_s: seconds since 1970.
    """

    rank: str
    text: str
    is_user_error: bool
    traceback: str
    time_s: float


@dataclass(frozen=True)
class ExitStatus:
    """Status and reason for `summary.json`, and the error to exit with."""

    status: str
    reason: str
    error: BaseException


def exit_status(error: BaseException, directory: Path, received: int | None) -> ExitStatus:
    """Determine why a run ended.

    Args:
        error: what was raised in this process.
        directory: of the run, with the failure files of the ranks.
        received: the signal that this process received, if any.
    """
    first = first_failure(directory)
    is_cause_known = first is not None and first.traceback and not _LOST_CONNECTION.search(first.text)
    stop = _find_stop(error, received)
    if stop is not None and not is_cause_known:  # torchrun sends SIGTERM to the others if one rank fails
        return ExitStatus("stopped", stop.reason, KeyboardInterrupt() if stop.code == 130 else stop)
    if isinstance(error, SystemExit) and stop is None:
        return ExitStatus("stopped", f"exit code {error.code}", error)
    error = to_user_error(error)
    if first is None or first.text == _describe(error):
        return ExitStatus("failed", _describe(error), error)
    reason = f"rank {first.rank}: {first.text}"
    return ExitStatus("failed", reason, UserError(reason) if first.is_user_error else error)


def _find_stop(error: BaseException, received: int | None) -> Stopped | None:
    """Return the stop that caused an error, if any: Lightning and torch wrap it, and more may fail during exit."""
    if isinstance(error, Stopped):
        return error
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return Stopped("Ctrl-C", 130)
    if received is not None and not isinstance(error, UserError):
        return stopped_by(received)
    if type(error).__name__ == "SIGTERMException":  # by name: importing it would load torch
        return Stopped("SIGTERM", 143)
    exit_code = getattr(error, "exit_code", None)  # torch's, if only a forked rank received the signal
    return Stopped("Ctrl-C" if exit_code == 130 else "SIGTERM", exit_code) if exit_code in (130, 143) else None


def write_failure(directory: Path, error: BaseException) -> None:
    """Write the failure file of this rank; an existing one is kept."""
    error = to_user_error(error)
    text = "".join(traceback.format_exception(error))
    _write(directory, _rank_name(), _describe(error), isinstance(error, UserError), text)


def write_killed(directory: Path, rank: int, exit_code: int | None) -> None:
    """Write the failure file of a rank that the system killed.

    Args:
        directory: of the run.
        rank: of a process that this one started.
        exit_code: a negative one is the signal that ended it; None while it runs.
    """
    if exit_code is not None and exit_code < 0 and -exit_code not in _STOP_SIGNALS:
        _write(directory, str(rank), f"killed by signal {-exit_code}; out of memory?")


def write_killed_ranks(directory: Path, error: BaseException, processes: Mapping[int, Any]) -> None:
    """Write the failure files of killed ranks if a connection was lost or a forked rank ended.

    Args:
        directory: of the run.
        error: what was raised in this process.
        processes: the ranks that this process started; they get one second to end.
    """
    if _LOST_CONNECTION.search(_describe(error)) or type(error).__module__.startswith("torch.multiprocessing"):
        end_s = time.monotonic() + 1.0
        for rank, process in processes.items():
            write_killed(directory, rank, _exit_code(process, max(0.0, end_s - time.monotonic())))


def _exit_code(process: Any, timeout_s: float) -> int | None:
    if isinstance(process, Popen):
        with suppress(TimeoutExpired):
            return process.wait(timeout_s)
        return None
    process.join(timeout_s)
    return process.exitcode


def _write(directory: Path, rank: str, text: str, is_user_error: bool = False, traceback: str = "") -> None:
    failure = Failure(rank, text, is_user_error, traceback, time.time())
    # The file may exist, or the disk may be full: then nothing more can be reported.
    with suppress(OSError), (directory / f"failure_rank{rank.replace(' ', '_')}.json").open("x") as file:
        json.dump(asdict(failure), file, indent=2)


def _rank_name() -> str:
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name]
    node, local = os.environ.get("NODE_RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    return local if node == "0" else f"{local} of node {node}"


def _describe(error: BaseException) -> str:
    """Return the message, with the type of the error unless it is written for the user."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def clear_failures(directory: Path) -> None:
    """Remove the failure files of an earlier attempt."""
    for file in directory.glob("failure_rank*.json"):
        file.unlink(missing_ok=True)


def first_failure(directory: Path) -> Failure | None:
    """Return the earliest failure that is not a lost connection; if there is none, the earliest lost connection."""
    found = []
    for file in directory.glob("failure_rank*.json"):
        with suppress(OSError, ValueError, TypeError):  # half written by a process that was killed
            found.append(Failure(**json.loads(file.read_text(encoding="utf-8"))))
    return min(found, key=lambda failure: (bool(_LOST_CONNECTION.search(failure.text)), failure.time_s), default=None)


def to_user_error(error: BaseException) -> BaseException:
    """Return a one-line error with the way out for a full disk and for failed loader workers; others unchanged."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return error
    for full in (error, error.__cause__):  # TensorBoard's logger wraps it
        if isinstance(full, OSError) and full.errno in _NO_SPACE:
            file = full.filename or "the run directory"
            return StorageError(
                f"{file} cannot be written ({full.strerror}); free some space, then continue with resume=RUN."
            )
    if not isinstance(error, (RuntimeError, OSError)):
        return error
    if "shared memory" in text or "shm_open" in text or ("DataLoader worker" in text and "Bus error" in text):
        text = text[max(0, text.rfind("unable to ")) :]  # a worker's error includes its traceback
        return DataError(
            f"/dev/shm is too small for the batches of the loader workers ({text[:120]}); data.num_workers=0 does not "
            "use it, and in Docker --shm-size=1g makes it larger."
        )
    if found := re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (.*)", text):
        return DataError(
            f"a loader worker (pid {found[1].strip()}) {found[2].split('. ')[0].rstrip('.')}; probably out of memory: "
            "data.num_workers=0 uses none, and a smaller data.batch_size needs less memory."
        )
    if found := re.search(r"DataLoader timed out after ([\d.]+) seconds", text):
        return DataError(
            f"no batch came for {found[1]} s: a loader worker or the disk hangs; data.num_workers=0 shows where."
        )
    return error
