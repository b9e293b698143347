"""Lock a run directory, so that only one run writes to it."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imago.errors import ConfigError


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Lock an existing directory; the system releases the lock when the process ends, however it ends.

    It is a POSIX lock: forked processes do not inherit it, and it works between machines if their file system supports
    locks. If not, nothing is checked.

    Raises:
        ConfigError: if another process holds the lock.
    """
    file = directory / ".lock"
    handle = _open_locked(file)
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        os.close(handle)


def _open_locked(file: Path) -> int:
    """Return the handle of the locked file; a file that another run has just deleted is created again."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(handle)
                raise ConfigError(
                    f"{file.parent} belongs to a run that is still running; wait for it, stop it, or choose another "
                    "run_name."
                ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                return handle
        os.close(handle)
