"""Write and read files: atomically, and with file names that are not valid UTF-8 kept as they are.

Python decodes such a name with the error handler `surrogateescape`; the functions here encode it back the same way.
"""

import csv
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from imago.errors import DataError
from imago.text import printable

_PARTIAL = ".part"  # suffix of a file that is being written


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file in the same directory; on success fsync it and rename it to `path`.

    A reader sees the old content or the new one. If the block raises, `path` is unchanged and the temporary file is
    removed.

    Args:
        path: the file to replace; its directory must exist.
        mode: "w" for UTF-8 text without newline translation, "wb" for bytes.

    Raises:
        OSError: if the file cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}{_PARTIAL}")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    try:
        with part.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # without it a power failure can leave the new name on an empty file
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def fsync_directory(directory: Path) -> None:
    """Flush the entries of a directory to disk, so that a rename survives a power failure."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial_files(directory: Path, name: str = "") -> None:
    """Remove what `atomic_write` left in a directory when its process was killed; of one file, if `name` is given."""
    for file in directory.iterdir() if directory.is_dir() else ():
        if file.name.startswith(name) and file.name.endswith(_PARTIAL):
            with suppress(OSError):
                file.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically.

    Text that is valid UTF-8 is written as it is; a file that holds other names is written in ASCII with escapes.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(content, indent=2) + "\n"
    write_text(path, text)


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically; the first row is the header."""
    with atomic_write(path) as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty dict if the file is missing, damaged or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def make_writable(directory: Path, setting: str) -> None:
    """Create a directory and write a temporary file in it, so that a missing permission is found before the work.

    Args:
        directory: where results will be written.
        setting: the setting that chooses another directory, as typed.

    Raises:
        DataError: if nothing can be written there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise DataError(
            f"{printable(directory)} cannot be written: {error.strerror}; choose another directory with {setting}."
        ) from error
