"""One process writes to a run directory: a second one, started or resumed by mistake, would spoil both runs."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imago.errors import ConfigError

_NAME = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder while the run writes to it; the system lets go of it when the process ends, however that is.

    The lock is POSIX's: processes that this one forks do not have it, and it works between machines where their file
    system has locks at all; where it has none, nothing is checked.

    Args:
        folder: of the run; can be written.

    Raises:
        ConfigError: if another process holds it.
    """
    file = folder / _NAME
    handle = _lock(file)
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        os.close(handle)


def _lock(file: Path) -> int:
    """Give the open file; one that a run has just taken away at its end is made anew."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(handle)
                raise ConfigError(
                    f"{file.parent} belongs to a run that is still going on; wait for it, stop it, or take another "
                    "run_name."
                ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                return handle
        os.close(handle)
