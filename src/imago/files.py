"""Write and read files: atomically, and with file names that are not valid UTF-8 preserved.

Python decodes such a name with the error handler `surrogateescape`; the functions here encode it back the same way.
"""

import codecs
import csv
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, TextIO

from imago.errors import DataError
from imago.system import IS_POSIX, replace
from imago.text import printable

# The start of text that a spreadsheet would take for a formula and execute; a number is none.
_FORMULA = re.compile(r"'*[=+\-@\t\r](?![\d.]+(e[+-]?\d+)?$)", re.DOTALL)
PARTIAL_SUFFIX = ".part"  # of a file that is being written

# Contents of a run directory and of one beside a single checkpoint, see `refuse_links`; loggers may add others.
RUN_SUBDIRECTORIES = ("checkpoints", "tensorboard", "figures", "eval", "export", "model", "predictions")
_RUN_FILES = ("config.yaml", "provenance.json", "summary.json", "train.log", "metrics.csv", "split.csv", ".lock")
# Names of the columns of a CSV list of images; of several that a list has, the first one counts.
COLUMN_NAMES = {
    "path": ("path", "filename", "file", "file_name", "filepath", "file_path", "image", "image_path", "img_path"),
    "label": ("label", "class", "class_name", "category"),
    "split": ("split", "subset", "partition"),
}


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
    part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}{PARTIAL_SUFFIX}")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    try:
        part.unlink(missing_ok=True)
        with part.open(mode.replace("w", "x"), **text) as file:  # x: never through a link of that name
            yield file
            file.flush()
            os.fsync(file.fileno())  # without it a power failure can leave the new name on an empty file
        replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            error.filename = str(path)  # a failed write names no file
        raise


def fsync_directory(directory: Path) -> None:
    """Flush the entries of a directory to disk, so that a rename survives a power failure; not possible in Windows."""
    if not IS_POSIX:
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial_files(directory: Path, name: str = "") -> None:
    """Remove what was being written in a directory, if it exists, as NAME* when its process was killed."""
    for file in directory.iterdir() if directory.is_dir() else ():
        if file.name.startswith(name) and file.name.endswith(PARTIAL_SUFFIX):
            with suppress(OSError):
                shutil.rmtree(file) if file.is_dir() else file.unlink()


def move_to(part: Path, target: Path) -> None:
    """Flush a file, or a directory of files, to disk, and rename it to `target`, which it replaces.

    Both are on the same file system. Until the rename, `target` is as it was; a directory is renamed away first.
    """
    for file in part.iterdir() if part.is_dir() else (part,):
        with file.open("rb+") as content:  # Windows flushes only what is opened for writing
            os.fsync(content.fileno())
    if target.is_dir():
        target.rename(part.with_name(f"{part.name}.old"))
    replace(part, target)
    fsync_directory(target.parent)


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
    """Write a CSV file atomically; the first row is the header.

    An apostrophe before text that a spreadsheet would execute makes it text; `cell_text` removes it.
    """
    rows = [[f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell for cell in row] for row in rows]
    # The csv module quotes a cell that holds a line feed, but not one that holds a carriage return.
    has_returns = any("\r" in cell for row in rows for cell in row if isinstance(cell, str))
    with atomic_write(path) as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL if has_returns else csv.QUOTE_MINIMAL, lineterminator="\n")
        writer.writerows(rows)


def cell_text(cell: str) -> str:
    """Return the text of a cell of a file of `write_csv`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def open_text(path: Path) -> TextIO:
    """Open a UTF-8 file, or one of UTF-16 with a byte order mark, for reading without newline translation."""
    with path.open("rb") as file:
        is_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return path.open(encoding="utf-16" if is_utf16 else "utf-8-sig", errors="surrogateescape", newline="")


def read_csv_lines(file: Path, wanted: str) -> list[tuple[int, list[str]]]:
    """Read a CSV as `open_text` does, separated by commas, semicolons or tabs: the number and the cells of each line.

    Blank lines are left out.

    Raises:
        DataError: if it cannot be read; it names the content that is `wanted`.
    """
    try:
        with open_text(file) as opened:
            delimiter = max(",;\t", key=opened.readline().count)  # Excel writes all three
            opened.seek(0)
            reader = csv.reader(opened, delimiter=delimiter, strict=True)
            return [(reader.line_num, [*map(cell_text, cells)]) for cells in reader if "".join(cells).strip()]
    except OSError as error:
        raise DataError(f"{printable(file)} cannot be read: {error.strerror}; use a CSV with {wanted}.") from error
    except csv.Error as error:
        location = f"{printable(file)}, line {reader.line_num}"
        raise DataError(f"{location} is not CSV: {error}; check its quotation marks.") from error
    except UnicodeError as error:
        raise DataError(f"{printable(file)} is damaged UTF-16 text ({error}); save it as UTF-8.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty dict if the file is missing, damaged or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def encode_names(names: Iterable[str]) -> bytes:
    """Join file names with zero bytes, which no file name contains."""
    return "\0".join(names).encode(errors="surrogateescape")


def decode_names(data: bytes) -> tuple[str, ...]:
    """Return the file names, at least one, that `encode_names` joined."""
    return tuple(data.decode(errors="surrogateescape").split("\0"))


def refuse_links(run_dir: Path) -> None:
    """Check that nothing that a run directory contains is a link; the directory itself may be one, as `logs/latest` is.

    A directory from elsewhere could have results written, or private files read, where its links point.

    Raises:
        DataError: naming the first link.
    """
    files = [run_dir / name for name in (*_RUN_FILES, *RUN_SUBDIRECTORIES)]
    for subdirectory in RUN_SUBDIRECTORIES:
        for parent, directories, names in os.walk(run_dir / subdirectory):
            files += [Path(parent, name) for name in (*directories, *names)]
    if link := next(filter(Path.is_symlink, files), None):
        raise DataError(
            f"{printable(link)} is a link, which a run directory must not contain: remove it, or replace it by a copy "
            "of what it points to if you trust that."
        )


def make_writable(directory: Path, setting: str) -> None:
    """Create a directory and write a temporary file in it, to find a missing permission before the computation.

    Raises:
        DataError: if nothing can be written there; it names the `setting` that chooses another directory, as typed.
    """
    with report_unwritable(directory, f"; choose another directory with {setting}"):
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass


@contextmanager
def report_unwritable(path: Path, remedy: str = "") -> Iterator[None]:
    """Raise a `DataError` that names `path` and ends with `remedy` if the block cannot write it (`OSError`)."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be written: {error.strerror}{remedy}.") from error
