"""CSV lists of images: path, label and, if known, split. A run writes its split down as one, and takes one back.

UTF-8, with or without a byte order mark. Bytes of a file name that are not UTF-8 are written as they are on the disk.
"""

import csv
import logging
import os
import posixpath
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import numpy as np

from imago.data.class_names import nearest_class, plain_name, refuse_unclear_names
from imago.data.dataset import LabeledFiles, Samples, concatenate
from imago.errors import DataError
from imago.text import printable

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "split")
_HEADER = "a first line path,label or path,label,split"

ImagesT = TypeVar("ImagesT", bound=Samples)


class ListedImage(NamedTuple):
    """One line of a list.

    Attributes:
        name: of the file, with slashes, from the root of the data set.
        label: name of its class.
        split: train, val or test; "" in a list without that column.
        file: the list.
        line: in it, from 1.
    """

    name: str
    label: str
    split: str
    file: Path
    line: int

    @property
    def place(self) -> str:
        """File and line, for the text of errors."""
        return _place(self.file, self.line)


def read_list(path: Path) -> list[ListedImage]:
    """Read a list; blank lines and blanks around labels and splits do not count.

    Raises:
        DataError: naming the line, for what is no list, has no images, or names one twice or outside of the root.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if "".join(cells).strip()]
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror}; give a CSV with {_HEADER}.") from error
    except csv.Error as error:
        raise DataError(f"{_place(path, reader.line_num)} is not CSV: {error}.") from error
    columns = _columns(path, lines[0][1] if lines else [])
    rows = [_row(path, line, cells, columns) for line, cells in lines[1:]]
    if not rows:
        raise DataError(f"{printable(path)} has no images below its first line.")
    _refuse_repetition(rows)
    refuse_unclear_names(dict.fromkeys(row.label for row in rows), f"{printable(path)}: the labels")
    return rows


def files_from_list(
    root: Path, rows: Sequence[ListedImage], class_names: Sequence[str] | None = None
) -> dict[str, LabeledFiles]:
    """Find the files of a list, in its order.

    Args:
        root: the folder that the names of the list start from.
        rows: of the list; without splits all are train.
        class_names: the place of a name is its label; None takes the labels of the list, sorted.

    Returns:
        The images by split, always with "train".

    Raises:
        DataError: naming the line, for a file that is missing or a label that is no class, or without train.
    """
    class_names = sorted({row.label for row in rows}) if class_names is None else class_names
    label_by_name = {plain_name(name): label for label, name in enumerate(class_names)}
    columns = []
    first: dict[tuple[int, int], ListedImage] = {}
    for row in rows:
        found = _stat(root, row)
        other = first.setdefault((found.st_dev, found.st_ino), row)
        if other is not row:
            fault = f"{printable(row.name)} is another name of the file {printable(other.name)} in line {other.line}"
            raise DataError(f"{row.place}: {fault}; list it once.")
        columns.append((found.st_size, found.st_mtime_ns, _label(row, label_by_name, class_names)))
    num_bytes_N, mtime_ns_N, labels_N = np.array(columns, np.int64).T.copy()
    files = LabeledFiles(root, tuple(row.name for row in rows), num_bytes_N, mtime_ns_N, labels_N)
    return _by_split(files, rows, np.arange(len(rows)))


def assign_splits(
    found: Mapping[str, ImagesT], rows: Sequence[ListedImage], class_names: Sequence[str]
) -> dict[str, ImagesT]:
    """Move the images of a data set to the splits that a list gives them, and say how many it leaves out.

    The order of the images is that of the data set, whatever that of the list.

    Args:
        found: the images by split, as the data set has them.
        rows: of the list.
        class_names: the place of a name is its label.

    Returns:
        The images by split, always with "train".

    Raises:
        DataError: naming the line, for an image that is not in the data set or of another class there.
    """
    if not rows[0].split:
        raise DataError(f"{rows[0].place}: a list that assigns splits needs the column split: train, val or test.")
    images = cast(ImagesT, concatenate(list(found.values())))
    place_of = {name: place for place, name in enumerate(images.names)}
    label_by_name = {plain_name(name): label for label, name in enumerate(class_names)}
    places = np.empty(len(rows), np.int64)
    for number, row in enumerate(rows):
        if row.name not in place_of:
            raise DataError(f"{row.place}: {printable(row.name)} is not among the images of the data set.")
        places[number] = place_of.pop(row.name)
        label = images.labels[places[number]]
        if _label(row, label_by_name, class_names) != label:
            fault = f"{printable(row.name)} is listed as {row.label!r}, in the data set it is {class_names[label]!r}"
            raise DataError(f"{row.place}: {fault}.")
    if place_of:
        example = printable(next(iter(place_of)))
        log.info("the list leaves out %d of %d images, e.g. %s", len(place_of), len(images), example)
    return _by_split(images, rows, places)


def write_list(path: Path, class_names: Sequence[str], parts: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> None:
    """Write a list with splits, whole or not at all.

    Args:
        path: of the CSV.
        class_names: the place of a name is its label.
        parts: by split, the names of the images and their labels, int64 (N,).

    Raises:
        DataError: if it cannot be written.
    """
    rows = [
        (name, class_names[label], split)
        for split, (names, labels) in parts.items()
        for name, label in zip(names, labels, strict=True)
    ]
    # The csv module puts a name in quotes for a line feed in it, but not for a carriage return.
    has_returns = any("\r" in name for name, _, _ in rows)
    part_file = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part_file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL if has_returns else csv.QUOTE_MINIMAL, lineterminator="\n")
            writer.writerows([COLUMNS, *rows])
        part_file.replace(path)
    except OSError as error:
        with suppress(OSError):
            part_file.unlink()
        raise DataError(f"{printable(path)} cannot be written: {error.strerror}.") from error


def _place(path: Path, line: int) -> str:
    return f"{printable(path)}, line {line}"


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    """Check the first line and give the names in it; a column that nobody knows may be a misspelt one."""
    columns = [cell.strip().casefold() for cell in header]
    if sorted(columns) not in (sorted(COLUMNS), sorted(COLUMNS[:2])):
        got = printable(",".join(header)) if header else "nothing"
        raise DataError(f"{printable(path)}, line 1: expected {_HEADER}, got {got}.")
    return columns


def _row(path: Path, line: int, cells: Sequence[str], columns: Sequence[str]) -> ListedImage:
    place = _place(path, line)
    if len(cells) != len(columns):
        raise DataError(f"{place}: expected {len(columns)} columns, got {len(cells)}; put names with commas in quotes.")
    cell = dict(zip(columns, cells, strict=True))
    label, split = cell["label"].strip(), cell.get("split", "").strip()
    if not label:
        raise DataError(f"{place}: the label is empty.")
    if "split" in cell and split not in SPLITS:
        raise DataError(f"{place}: split={printable(split)} is not one of {', '.join(SPLITS)}.")
    return ListedImage(_name(cell["path"], place), label, split, path, line)


def _name(path: str, place: str) -> str:
    """Refuse paths that lead out of the data set, whoever wrote the list."""
    if not path.strip() or "\0" in path:
        raise DataError(f"{place}: {path!r} is not the name of a file.")
    if posixpath.isabs(path) or os.path.isabs(path) or ".." in path.split("/"):
        raise DataError(f"{place}: {printable(path)} leads out of data.root; give a path from there on, without ..")
    return posixpath.normpath(path)


def _refuse_repetition(rows: Iterable[ListedImage]) -> None:
    seen: dict[str, int] = {}
    for row in rows:
        first = seen.setdefault(row.name, row.line)
        if first != row.line:
            raise DataError(f"{row.place}: {printable(row.name)} is listed twice, first in line {first}.")


def _label(row: ListedImage, label_by_name: Mapping[str, int], class_names: Sequence[str]) -> int:
    label = label_by_name.get(plain_name(row.label))
    if label is None:
        raise DataError(f"{row.place}: there is no class {row.label!r}; {nearest_class(row.label, class_names)}")
    return label


def _stat(root: Path, row: ListedImage) -> os.stat_result:
    try:
        found = os.stat(f"{root}/{row.name}")
    except OSError as error:
        raise DataError(f"{row.place}: {printable(root / row.name)} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{row.place}: {printable(root / row.name)} is not a regular file.")
    return found


def _by_split(images: ImagesT, rows: Sequence[ListedImage], places: np.ndarray) -> dict[str, ImagesT]:
    """Take the image at `places[i]` to the split of `rows[i]`."""
    splits = np.array([row.split or "train" for row in rows])
    if "train" not in splits:
        raise DataError(f"{printable(rows[0].file)} has no images of the split train.")
    there = [split for split in SPLITS if split in splits]
    return {split: cast(ImagesT, images.take(np.sort(places[splits == split]))) for split in there}
