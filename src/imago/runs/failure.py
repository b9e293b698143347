"""Why a run of several processes failed: each rank that fails leaves a file, and whoever is left reads them."""

import errno
import json
import os
import platform
import re
import signal
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import Popen, TimeoutExpired

from imago.errors import DataError, StorageError, UserError
from imago.runs.rank import rank_name

# What the other ranks say when one is gone: never the reason itself.
_SECOND_HAND = re.compile(r"gloo|nccl|ProcessGroup|Connection (closed|reset|refused)|Broken pipe|TCPStore", re.I)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# A rank that has not come to handle them dies of these: nothing was wrong with it.
_ASKED_TO_LEAVE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True)
class Failure:
    """What one rank died of.

    Args:
        rank: as in the name of the file.
        when: seconds since 1970.
        text: one line.
        is_users: whether the user can mend it.
        host: name of the machine.
        pid: of the process.
        traceback: of a bug; empty where nobody could take one.
    """

    rank: str
    when: float
    text: str
    is_users: bool = False
    host: str = ""
    pid: int = 0
    traceback: str = ""

    @property
    def is_first_hand(self) -> bool:
        """Whether it tells what went wrong there, rather than that another rank is gone or that this one was killed."""
        return bool(self.traceback) and not _is_second_hand(self.text)


def words(error: BaseException) -> str:
    """Give an error's text as `summary.json` has it: with its kind, unless it is written for the user anyway."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def write_failure(folder: Path, error: BaseException) -> None:
    """Leave a file for this rank; the first one stays."""
    error = to_user_error(error)
    text = "".join(traceback.format_exception(error))
    is_users = isinstance(error, UserError)
    write_failure_file(
        folder, Failure(rank_name(), time.time(), words(error), is_users, platform.node(), os.getpid(), text)
    )


def write_failure_file(folder: Path, failure: Failure) -> None:
    """Write a failure down, unless that rank has left a file itself."""
    file = folder / f"failure_rank{failure.rank.replace(' ', '_')}.json"
    try:
        with file.open("x", encoding="utf-8") as out:
            json.dump(asdict(failure), out, indent=2, ensure_ascii=False)
    except OSError:  # it is there, or the disk is full: nothing more can be done for the reader
        return


def record_exit(folder: Path, rank: int, exit_code: int | None) -> None:
    """Write down that the system killed a rank: it could not do so itself.

    Args:
        folder: of the run.
        rank: of a process that this one has started.
        exit_code: a negative one is the signal that ended it; None while it lives.
    """
    if exit_code is not None and exit_code < 0 and -exit_code not in _ASKED_TO_LEAVE:
        write_failure_file(folder, Failure(str(rank), time.time(), f"killed by signal {-exit_code}; out of memory?"))


def record_lost_ranks(folder: Path, error: BaseException, processes: Sequence[Popen]) -> None:
    """Where a connection broke, give the other ranks a second to be gone, and write down which were killed.

    Args:
        folder: of the run.
        error: what came out of this process.
        processes: of the ranks from 1 on, which this one has started.
    """
    if _is_second_hand(words(error)):
        end = time.monotonic() + 1.0
        for rank, process in enumerate(processes, start=1):
            with suppress(TimeoutExpired):
                record_exit(folder, rank, process.wait(timeout=max(0.0, end - time.monotonic())))


def clear_failures(folder: Path) -> None:
    """Forget how an earlier attempt ended."""
    for file in folder.glob("failure_rank*.json"):
        file.unlink(missing_ok=True)


def first_failure(folder: Path) -> Failure | None:
    """Give the failure that the others follow from: the earliest that is not about a lost connection."""
    found = []
    for file in folder.glob("failure_rank*.json"):
        try:
            found.append(Failure(**json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):  # half written by a process that was killed
            continue
    return min(found, key=lambda failure: (_is_second_hand(failure.text), failure.when), default=None)


def _is_second_hand(text: str) -> bool:
    return _SECOND_HAND.search(text) is not None


def to_user_error(error: BaseException) -> BaseException:
    """Say what a full disk and torch's errors about its loader processes ask for; any other error as it is."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return error
    for full in (error, error.__cause__):  # TensorBoard's logger wraps it
        if isinstance(full, OSError) and full.errno in _NO_ROOM:
            place = full.filename or "the run directory"
            return StorageError(f"{place} cannot be written ({full.strerror}); make room, then go on with resume=RUN.")
    if not isinstance(error, (RuntimeError, OSError)):
        return error
    if found := re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (.*)", text):
        if "Bus error" in text or "shared memory" in text:
            return DataError(_shared_memory(text))
        return DataError(
            f"a process that prepares batches (pid {found[1].strip()}) {found[2].split('. ')[0].rstrip('.')}; probably "
            "out of memory: data.num_workers=0 takes none, and a smaller data.batch_size takes less."
        )
    if "shared memory" in text or "shm_open" in text:
        return DataError(_shared_memory(text))
    if found := re.search(r"DataLoader timed out after ([\d.]+) seconds", text):
        return DataError(
            f"no batch came for {found[1]} s: a process that prepares them hangs, or the disk does; "
            "data.num_workers=0 shows where."
        )
    return error


def _shared_memory(text: str) -> str:
    text = text[max(0, text.rfind("unable to ")) :]  # what a worker raises comes with its traceback
    return (
        f"/dev/shm is too small for the batches that other processes prepare ({text[:120]}); data.num_workers=0 needs "
        "none of it, in Docker --shm-size=1g makes it larger."
    )
