"""Read and write CSV lists of images (path, label and optionally split), and compare class names.

The files are UTF-8, with or without a byte order mark. File names that are not valid UTF-8 are written byte by byte.
"""

import csv
import difflib
import logging
import os
import posixpath
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import numpy as np

from imago.data.dataset import LabeledFiles, Samples, concatenate
from imago.errors import DataError
from imago.files import open_text, write_csv
from imago.text import join_names, printable

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "split")
_HEADER = "a first line path,label or path,label,split"

ImagesT = TypeVar("ImagesT", bound=Samples)


def plain_name(name: str) -> str:
    """Return the form in which class names are compared: composed accents, lower case, no surrounding blanks."""
    return unicodedata.normalize("NFC", name.casefold()).strip()


def check_class_names(names: Iterable[str], what: str) -> None:
    """Check names that will be class names.

    Args:
        names: each once.
        what: start of the error message, as in "DIR: the class folders".

    Raises:
        DataError: if two names look the same, or one is not UTF-8.
    """
    seen: dict[str, str] = {}
    for name in names:
        if any("\ud800" <= char <= "\udfff" for char in name):  # Python's stand-ins for bytes that are not UTF-8
            raise DataError(f"{what}: {ascii(name)} is not UTF-8; rename it.")
        other = seen.setdefault(plain_name(name), name)
        if other != name:
            raise DataError(f"{what} {ascii(other)} and {ascii(name)} look the same; merge or rename them.")


def nearest_class(name: str, class_names: Sequence[str]) -> str:
    """Return the end of an error message: the class that an unknown name may mean, or the existing ones."""
    close = difflib.get_close_matches(name, class_names, n=1)
    return f"is it {close[0]!r}?" if close else f"the classes are {join_names(class_names)}."


class ListedImage(NamedTuple):
    """One row of a list.

    Attributes:
        name: path of the file relative to the root of the data set, with slashes.
        label: name of its class.
        split: train, val or test; "" in a list without that column.
        file: the list.
        line: line number in the list, from 1.
    """

    name: str
    label: str
    split: str
    file: Path
    line: int

    @property
    def location(self) -> str:
        """File and line, for error messages."""
        return f"{printable(self.file)}, line {self.line}"


def read_list(path: Path) -> list[ListedImage]:
    """Read a list; blank lines, and blanks around labels and splits, are ignored.

    Raises:
        DataError: naming the line, if the file is no such list, has no images, or names one twice or outside of the
            root.
    """
    try:
        with open_text(path) as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if "".join(cells).strip()]
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror}; use a CSV with {_HEADER}.") from error
    except csv.Error as error:
        raise DataError(f"{printable(path)}, line {reader.line_num} is not CSV: {error}.") from error
    columns = _parse_header(path, lines[0][1] if lines else [])
    rows = [_parse_row(path, line, cells, columns) for line, cells in lines[1:]]
    if not rows:
        raise DataError(f"{printable(path)} has no images below its first line.")
    first_line: dict[str, int] = {}
    for row in rows:
        if (line := first_line.setdefault(row.name, row.line)) != row.line:
            raise DataError(f"{row.location}: {printable(row.name)} is listed twice, first in line {line}.")
    check_class_names(dict.fromkeys(row.label for row in rows), f"{printable(path)}: the labels")
    return rows


def files_from_list(
    root: Path, rows: Sequence[ListedImage], class_names: Sequence[str] | None = None
) -> dict[str, LabeledFiles]:
    """Find the files of a list, in its order.

    Args:
        root: the directory that the names of the list are relative to.
        rows: of the list; without splits, all are train.
        class_names: the index of a name is its label; None takes the labels of the list, sorted.

    Returns:
        The images by split, always with "train".

    Raises:
        DataError: naming the line, if a file is missing, a label is no class, or there is no training image.
    """
    labels_N = _labels(rows, sorted({row.label for row in rows}) if class_names is None else class_names)
    columns = []
    first: dict[tuple[int, int], ListedImage] = {}
    for row in rows:
        status = _stat(root, row)
        other = first.setdefault((status.st_dev, status.st_ino), row)
        if other is not row:
            fault = f"{printable(row.name)} is another name of the file {printable(other.name)} in line {other.line}"
            raise DataError(f"{row.location}: {fault}; list it once.")
        columns.append((status.st_size, status.st_mtime_ns))
    num_bytes_N, mtime_ns_N = np.array(columns, np.int64).T.copy()
    files = LabeledFiles(root, tuple(row.name for row in rows), num_bytes_N, mtime_ns_N, labels_N)
    return _group_by_split(files, rows, np.arange(len(rows)))


def assign_splits(
    found: Mapping[str, ImagesT], rows: Sequence[ListedImage], class_names: Sequence[str]
) -> dict[str, ImagesT]:
    """Split the images of a data set as a list says, and log how many images it leaves out.

    The images keep the order of the data set, whatever the order of the list.

    Args:
        found: the images by their present split.
        rows: of the list.
        class_names: the index of a name is its label.

    Returns:
        The images by split, always with "train".

    Raises:
        DataError: naming the line, if an image is not in the data set, or is of another class there.
    """
    if not rows[0].split:
        raise DataError(f"{rows[0].location}: a list that assigns splits needs the column split: train, val or test.")
    images = cast(ImagesT, concatenate(list(found.values())))
    index_by_name = {name: index for index, name in enumerate(images.names)}
    indices_N = np.empty(len(rows), np.int64)
    for number, (row, listed) in enumerate(zip(rows, _labels(rows, class_names), strict=True)):
        if row.name not in index_by_name:
            raise DataError(f"{row.location}: {printable(row.name)} is not among the images of the data set.")
        indices_N[number] = index_by_name.pop(row.name)
        label = images.labels[indices_N[number]]
        if listed != label:
            fault = f"{printable(row.name)} is listed as {row.label!r}, in the data set it is {class_names[label]!r}"
            raise DataError(f"{row.location}: {fault}.")
    if index_by_name:
        example = printable(next(iter(index_by_name)))
        log.info("the list leaves out %d of %d images, e.g. %s", len(index_by_name), len(images), example)
    return _group_by_split(images, rows, indices_N)


def write_list(path: Path, class_names: Sequence[str], parts: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> None:
    """Write a list with splits atomically.

    Args:
        path: of the CSV.
        class_names: the index of a name is its label.
        parts: by split, the names of the images and their labels, int64 (N,).

    Raises:
        DataError: if it cannot be written.
    """
    rows = [
        (name, class_names[label], split)
        for split, (names, labels) in parts.items()
        for name, label in zip(names, labels, strict=True)
    ]
    try:
        write_csv(path, [COLUMNS, *rows])
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be written: {error.strerror}.") from error


def _parse_header(path: Path, header: Sequence[str]) -> list[str]:
    """Return the column names; unknown ones are refused, as they may be misspelled."""
    columns = [cell.strip().casefold() for cell in header]
    if sorted(columns) not in (sorted(COLUMNS), sorted(COLUMNS[:2])):
        got = printable(",".join(header)) if header else "nothing"
        raise DataError(f"{printable(path)}, line 1: expected {_HEADER}, got {got}.")
    return columns


def _parse_row(path: Path, line: int, cells: Sequence[str], columns: Sequence[str]) -> ListedImage:
    location = f"{printable(path)}, line {line}"
    if len(cells) != len(columns):
        fault = f"expected {len(columns)} columns, got {len(cells)}; put names with commas in quotes"
        raise DataError(f"{location}: {fault}.")
    cell = dict(zip(columns, cells, strict=True))
    name, label, split = cell["path"], cell["label"].strip(), cell.get("split", "").strip()
    if not label:
        raise DataError(f"{location}: the label is empty.")
    if "split" in cell and split not in SPLITS:
        raise DataError(f"{location}: split={printable(split)} is not one of {', '.join(SPLITS)}.")
    if not name.strip() or "\0" in name:
        raise DataError(f"{location}: {name!r} is not a file name.")
    if posixpath.isabs(name) or os.path.isabs(name) or ".." in name.split("/"):  # lists may come from strangers
        fault = f"{printable(name)} is outside of data.root; write a path relative to it, without .."
        raise DataError(f"{location}: {fault}")
    return ListedImage(posixpath.normpath(name), label, split, path, line)


def _labels(rows: Sequence[ListedImage], class_names: Sequence[str]) -> np.ndarray:
    """Return the label of each row, int64 (N,)."""
    label_by_name = {plain_name(name): label for label, name in enumerate(class_names)}
    for row in rows:
        if plain_name(row.label) not in label_by_name:
            hint = nearest_class(row.label, class_names)
            raise DataError(f"{row.location}: there is no class {row.label!r}; {hint}")
    return np.array([label_by_name[plain_name(row.label)] for row in rows], np.int64)


def _stat(root: Path, row: ListedImage) -> os.stat_result:
    try:
        status = os.stat(f"{root}/{row.name}")
    except OSError as error:
        raise DataError(f"{row.location}: {printable(root / row.name)} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{row.location}: {printable(root / row.name)} is not a regular file.")
    return status


def _group_by_split(images: ImagesT, rows: Sequence[ListedImage], indices_N: np.ndarray) -> dict[str, ImagesT]:
    """Put the image at `indices_N[i]` into the split of `rows[i]`."""
    splits = np.array([row.split or "train" for row in rows])
    if "train" not in splits:
        raise DataError(f"{printable(rows[0].file)} has no images of the split train.")
    return {
        split: cast(ImagesT, images.take(np.sort(indices_N[splits == split]))) for split in SPLITS if split in splits
    }
