"""Provide what Linux, macOS and Windows do in different ways: locks, stop signals, processes and renaming."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:
    import msvcrt

IS_POSIX = "fcntl" in globals()  # Linux and macOS: also fork, and passing open files to other processes
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGBREAK")  # Windows has no SIGUSR1 and SIGHUP; others no SIGBREAK
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# Of loader workers. Only Linux can rely on fork, which takes milliseconds; from Python 3.14 on, it is no default.
START_METHOD = "fork" if IS_POSIX and sys.platform == "linux" else None

_POLL_S = 0.02  # between two attempts to lock or to rename a file; our own choice
_BUSY_S = 10.0  # virus scanners read a new file for less; our own choice
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h: free memory to return at, blocks of their own mapping
_LOCKED_BYTE = 2**30  # behind the end: Windows lets nobody else read a locked byte


def keep_freed_memory() -> bool:
    """Let the allocator keep freed memory for the next batch, and return whether it does: only glibc can.

    It returns large tensors to the system, which fills their pages with zeros when the next step asks for them again: 9
    to 21 % of the CPU time of training a convolutional network (`benchmarks/allocator.py`). The process then keeps the
    peak of its memory; the peak itself rises by up to a tenth, and more where arrays grow step by step.
    """
    libc: Any = ctypes.CDLL(None) if IS_POSIX else None
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return all([libc.mallopt(_M_MMAP_MAX, 0), libc.mallopt(_M_TRIM_THRESHOLD, -1)])  # 1: accepted


def try_lock(file: IO[Any], is_inherited: bool = True) -> bool:
    """Lock an open file until this process closes it or ends, however it ends; return False if another one has it.

    Args:
        file: opened for writing; a lock on one that is opened for reading can be shared. Windows has no such lock.
        is_inherited: whether processes that get the open file hold the lock too, where `IS_POSIX`. Otherwise it is a
            POSIX lock, of this process only, and works between machines if their file system supports locks.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        if not IS_POSIX:
            os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            os.lseek(file.fileno(), 0, os.SEEK_SET)
        else:
            mode = fcntl.LOCK_EX if file.writable() else fcntl.LOCK_SH
            (fcntl.flock if is_inherited else fcntl.lockf)(file, mode | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either of the two
        return False
    return True


def lock(file: IO[Any]) -> None:
    """Lock a file as `try_lock` does, when no other process has it any more."""
    while not try_lock(file):
        time.sleep(_POLL_S)


def own_session() -> dict[str, Any]:
    """Return the arguments of `Popen` for a process that gets no signal of this terminal, only those of `stop`."""
    group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", None)
    return {"start_new_session": True} if group is None else {"creationflags": group}


def stop(pid: int, number: int = signal.SIGTERM, with_children: bool = False) -> None:
    """Send a stop signal to a process of `own_session`; Windows knows only Ctrl-Break, which its children get too."""
    with suppress(ProcessLookupError if IS_POSIX else OSError):  # it has just exited
        if (ctrl_break := getattr(signal, "CTRL_BREAK_EVENT", None)) is not None:
            os.kill(pid, ctrl_break)
        else:
            (os.killpg if with_children else os.kill)(pid, number)


def is_parent(pid: int) -> bool:
    """Return whether a process that has started this one is alive; in Windows there may be a launcher in between."""
    if IS_POSIX:
        return os.getppid() == pid
    import psutil  # not above: a Python without the packages gets a message

    return psutil.pid_exists(pid)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another one; Windows refuses that while somebody reads the other: wait for some seconds."""
    end_s = time.monotonic() + _BUSY_S
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            if IS_POSIX or time.monotonic() > end_s:
                raise
        time.sleep(_POLL_S)
