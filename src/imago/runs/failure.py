"""Collect the failure reason of each rank, and determine why a run ended."""

import errno
import json
import re
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

from imago.errors import DataError, Stopped, StorageError, UserError
from imago.runs.signals import STOP_SIGNALS, rank_name, stopped_by

# Lost-connection errors of the other ranks when one has ended; they are not the cause.
_LOST_CONNECTION = re.compile(
    r"^(?!\S+ cannot be downloaded).*(gloo|nccl|ProcessGroup|Connection (closed|reset|refused)|Broken pipe|TCPStore)",
    re.I | re.S,
)
_UNWRITABLE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Errors of training and loader workers as torch words them, and the messages for the user with what matched.
_KNOWN_ERRORS = {
    r"((?:unable to [^:]*shared memory|shm_open|DataLoader worker [^:]*: Bus error).{,90})": (
        "/dev/shm is too small for the batches of the loader workers ({}); data.num_workers=0 does not use it, and in "
        "Docker --shm-size=1g makes it larger."
    ),
    r"DataLoader worker (\(pid\(?s?\)? [\d, ]+\) [^.]*)": (
        "a loader worker {}; probably out of memory: data.num_workers=0 uses none, and a smaller data.batch_size needs "
        "less memory."
    ),
    r"((?:CUDA out of|DefaultCPUAllocator|(?:Cannot|Unable to) allocate|MemoryError|failed to map segment).{,90})": (
        "too little memory ({}): a smaller data.batch_size or preprocess.size, or data.num_workers=0, needs less."
    ),
    "(Too many open files)": "{}: `ulimit -n 4096` in the shell allows more, and data.num_workers=0 needs fewer.",
    r"DataLoader timed out after ([\d.]+) seconds": (
        "no batch came for {} s: a loader worker or the disk hangs; data.num_workers=0 shows where."
    ),
    r"Expected (more than 1 value) per channel when training": (
        "data.batch_size: BatchNorm needs {} per channel, and a process trains on one image at a time; use 2 or more "
        "images per process, or an architecture without BatchNorm."
    ),
    r"(?:gloo/transport\S*\] |(?=ncclRemoteError))(.{,90}?(?=\. |$)|.{,90})": (
        "lost the connection to another process of this run (gloo or nccl: {}): it or its machine has ended, and its "
        "output says why; resume=RUN continues from the last save."
    ),
}


@dataclass(frozen=True)
class Failure:
    """The reason why one rank ended, as stored in `failure_rankN.json`."""

    rank: str  # see `rank_name`
    text: str  # the error message, with the type of the error unless it is written for the user
    is_user_error: bool  # whether the user can correct it
    traceback: str  # empty if the rank was killed
    time_s: float  # seconds since 1970


def explain_exit(error: BaseException, run_dir: Path, received_signal: int | None) -> tuple[str, str, BaseException]:
    """Determine why a run ended: by the error and the first signal in this process, and by the failures of the ranks.

    Returns:
        Status and reason for `summary.json`, and the error to exit with.
    """
    first = first_failure(run_dir)
    is_cause_known = first is not None and first.traceback and not _LOST_CONNECTION.search(first.text)
    stop = _find_stop(error, received_signal)
    if stop is not None and not is_cause_known:  # torchrun sends SIGTERM to the others if one rank fails
        return "stopped", stop.reason, KeyboardInterrupt() if stop.code == 130 else stop
    if isinstance(error, SystemExit) and stop is None:
        return "stopped", f"exit code {error.code}", error
    user_error = to_user_error(error)
    text = _describe(user_error)
    if first is None or first.text == text:
        return "failed", text, user_error
    reason = f"rank {first.rank}: {first.text}"
    if first.is_user_error or not first.traceback:
        return "failed", reason, UserError(reason)
    return "failed", reason, error if user_error is error else RuntimeError(reason)  # a bug, whatever followed from it


def _find_stop(error: BaseException, received_signal: int | None) -> Stopped | None:
    """Return the stop that caused an error, if any: Lightning and torch wrap it, and more may fail during exit."""
    if isinstance(error, Stopped):
        return error
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return Stopped("Ctrl-C", 130)
    if received_signal is not None and not isinstance(error, UserError):
        return stopped_by(received_signal)
    if type(error).__name__ == "SIGTERMException":  # by name: importing it would load torch
        return Stopped("SIGTERM", 143)
    exit_code = getattr(error, "exit_code", None)  # torch's, if only a forked rank received the signal
    return Stopped("Ctrl-C" if exit_code == 130 else "SIGTERM", exit_code) if exit_code in (130, 143) else None


def write_failure(run_dir: Path, error: BaseException) -> None:
    """Write the failure file of this rank; an existing one is kept."""
    error = to_user_error(error)
    trace = "".join(traceback.format_exception(error))
    _write(run_dir, Failure(rank_name(), _describe(error), isinstance(error, UserError), trace, time.time()))


def write_killed_failure(run_dir: Path, rank: int, exit_code: int | None) -> None:
    """Write the failure file of a rank if the system killed it: if its exit code is a signal, as a negative number."""
    # A rank that is asked to stop before it has installed its handlers is killed by one of these: no failure.
    if exit_code is not None and exit_code < 0 and -exit_code not in STOP_SIGNALS:
        text = f"killed by signal {-exit_code}, possibly out of memory: try a smaller data.batch_size"
        _write(run_dir, Failure(str(rank), text, is_user_error=False, traceback="", time_s=time.time()))


def write_killed_failures(run_dir: Path, error: BaseException, processes: Mapping[int, Any]) -> None:
    """Write the failure files of killed ranks if a lost connection or an ended rank has raised `error` here.

    The ranks that this process started, `processes`, get one second to end; our own choice.
    """
    if not _LOST_CONNECTION.search(_describe(error)) and not type(error).__module__.startswith("torch.multiprocessing"):
        return
    end_s = time.monotonic() + 1.0
    for rank, process in processes.items():
        is_command = isinstance(process, Popen)
        with suppress(TimeoutExpired):
            (process.wait if is_command else process.join)(max(0.0, end_s - time.monotonic()))
        write_killed_failure(run_dir, rank, process.returncode if is_command else process.exitcode)


def _write(run_dir: Path, failure: Failure) -> None:
    file = run_dir / f"failure_rank{failure.rank.replace(' ', '_')}.json"
    # The file may exist, or the disk may be full: then nothing more can be reported.
    with suppress(OSError), file.open("x", encoding="utf-8") as content:
        json.dump(asdict(failure), content, indent=2)


def _describe(error: BaseException) -> str:
    """Return the message, with the type of the error unless it is written for the user."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def clear_failures(run_dir: Path) -> None:
    """Remove the failure files of an earlier attempt."""
    for file in run_dir.glob("failure_rank*.json"):
        file.unlink(missing_ok=True)


def first_failure(run_dir: Path) -> Failure | None:
    """Return the earliest failure that is not a lost connection; if there is none, the earliest lost connection."""
    failures = []
    for file in run_dir.glob("failure_rank*.json"):
        with suppress(OSError, ValueError, TypeError):  # half written by a process that was killed
            failures.append(Failure(**json.loads(file.read_text(encoding="utf-8"))))
    return min(failures, key=lambda item: (bool(_LOST_CONNECTION.search(item.text)), item.time_s), default=None)


def to_user_error(error: BaseException) -> Any:
    """Return a one-line error with the way out for a full disk and for `_KNOWN_ERRORS`; others unchanged."""
    if isinstance(error, UserError):
        return error
    for cause in (error, error.__cause__):  # TensorBoard's logger wraps it
        if isinstance(cause, OSError) and cause.errno in _UNWRITABLE_ERRNOS:
            file = cause.filename or "the run directory"
            return StorageError(
                f"{file} cannot be written ({cause.strerror}); free some space. A run that has saved a checkpoint "
                "continues with resume=RUN."
            )
    if isinstance(error, RuntimeError | OSError | ValueError | MemoryError | ImportError):
        text = " ".join(str(error).split()) or type(error).__name__
        for pattern, message in _KNOWN_ERRORS.items():
            if match := re.search(pattern, text):
                return DataError(message.format(match[1]))
    return error
