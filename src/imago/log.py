"""Print imago's messages to stdout, and write them to a file together with those of Lightning and all warnings."""

import errno
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from imago.system import IS_POSIX
from imago.text import printable_lines


@contextmanager
def log_to(file: Path | None = None) -> Iterator[None]:
    """Print imago's messages from level INFO to stdout, and write them, from level DEBUG, to `file`.

    The handlers are removed afterwards: the next job of a sweep logs to another directory.

    `file` also gets the messages of Lightning and all warnings; without one they are left as they are.

    Raises:
        OSError: if the file cannot be opened.
    """
    imago = logging.getLogger("imago")
    screen = logging.StreamHandler(sys.stdout)
    screen.setLevel(logging.INFO)
    screen.setFormatter(_Printable())
    handlers: list[tuple[logging.Logger, logging.Handler]] = [(imago, screen)]
    if file:
        log_file = _LogFile(file, encoding="utf-8", errors="backslashreplace")
        log_file.setFormatter(_Printable("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers += [(logging.getLogger(name), log_file) for name in ("imago", "lightning.pytorch", "py.warnings")]
        logging.captureWarnings(True)
    for logger, handler in handlers:
        logger.setLevel(logging.DEBUG if logger is imago else logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, handler in handlers:
            logger.removeHandler(handler)
            if handler is not screen:
                handler.close()


def ignore_closed_pipes() -> None:
    """Let a command run to its end, without output, when the reader of its output ends first, as `head` does."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        is_own = old is not None and old is getattr(sys, f"__{name}__")
        if is_own and (IS_POSIX or not old.isatty()):  # a terminal of Windows is no file
            buffer = io.BufferedWriter(_Pipe(old.fileno(), "w", closefd=False))
            # Pipes and files of Windows would get the code page of the system, which lacks most characters.
            options = (old.encoding if IS_POSIX else "utf-8", old.errors, None, old.line_buffering, old.write_through)
            setattr(sys, name, io.TextIOWrapper(buffer, *options))


class _Pipe(io.FileIO):
    """An output that drops what is written after its reader has ended."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EPIPE and (IS_POSIX or error.errno != errno.EINVAL):
                raise
            return len(data)


class _Printable(logging.Formatter):
    """Escape control characters, which names of files, classes and run directories may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class _LogFile(logging.FileHandler):
    """A log file that drops lines when the disk is full: the error is reported once, at the end."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()
