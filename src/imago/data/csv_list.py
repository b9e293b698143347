"""Read CSV lists of images: path, label and optionally split.

The files are UTF-8, or UTF-16 with a byte order mark, separated by commas, semicolons or tabs. File names that are not
valid UTF-8 are kept byte by byte.
"""

import logging
import os
import posixpath
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imago.data.dataset import LabeledFiles, Samples, concatenate
from imago.errors import DataError
from imago.files import COLUMN_NAMES, read_csv_lines
from imago.images import SPLITS
from imago.text import join_names, printable

log = logging.getLogger(__name__)

COLUMNS = ("path", "label", "split")
_FIRST_LINE = "a first line path,label or path,label,split"


def class_key(name: str) -> str:
    """Return the form in which class names are compared: composed accents, no surrounding blanks."""
    return unicodedata.normalize("NFC", name).strip()


def find_labels(names: Iterable[str], class_names: Sequence[str]) -> list[int | None]:
    """Return the label of each name: of that class, or of the only one that is equal to it but for case; else None."""
    exact = {class_key(name): label for label, name in enumerate(class_names)}
    folded: dict[str, int | None] = {}
    for key, label in exact.items():
        folded[key.casefold()] = None if key.casefold() in folded else label
    return [exact.get(key, folded.get(key.casefold())) for key in map(class_key, names)]


def check_class_names(names: Iterable[str], source: str) -> None:
    """Raise a DataError that starts with `source` if two class names look the same, or one is not UTF-8.

    Names that differ in case are two classes, as Cardigan, a dog, and cardigan in ImageNet; a warning names them.
    """
    seen: dict[str, str] = {}
    names = list(names)
    folded = {name.casefold(): name for name in names}
    if twins := [name for name in names if folded[name.casefold()] != name]:
        log.warning("%s %s differ from others in case only; each is a class of its own", source, join_names(twins))
    for name in names:
        if any("\ud800" <= char <= "\udfff" for char in name):  # surrogates, which stand for bytes that are not UTF-8
            raise DataError(f"{source}: {ascii(name)} is not UTF-8; rename it.")
        if (key := class_key(name)) in seen:
            raise DataError(f"{source} {ascii(seen[key])} and {ascii(name)} look the same; merge or rename them.")
        seen[key] = name


class ListedImage(NamedTuple):
    """One row of a list."""

    name: str  # path of the file, absolute or relative to the root of the dataset, with slashes
    label: str  # name of its class, as written in the list
    split: str  # train, val or test; "" in a list without that column
    file: Path  # CSV that contains the row
    line: int  # from 1
    group: str = ""  # cell of the column that defines groups

    @property
    def location(self) -> str:
        """The file and line, for error messages."""
        return f"{printable(self.file)}, line {self.line}"


def read_list(file: Path, group_by: str = "") -> list[ListedImage]:
    """Read a list; blank lines, and blanks around labels, splits and groups, are ignored.

    `group_by` is the name of the column that defines groups; "" for none.

    Raises:
        DataError: naming the line, if the file is not such a list, has no images, or lists one twice.
    """
    lines = read_csv_lines(file, _FIRST_LINE)
    columns = _find_columns(file, [cells for _, cells in lines], group_by)
    rows = [_parse_row(file, line, cells, columns) for line, cells in lines[1:]]
    if not rows:
        raise DataError(f"{printable(file)} has no images below its first line; add one line for each.")
    first_line: dict[str, int] = {}
    for row in rows:
        if (line := first_line.setdefault(row.name, row.line)) != row.line:
            raise DataError(f"{row.location}: {printable(row.name)} is listed twice, first in line {line}; delete one.")
    check_class_names(dict.fromkeys(row.label for row in rows), f"{printable(file)}: the labels")
    return rows


def files_from_list(root: Path, rows: Sequence[ListedImage], class_names: Sequence[str]) -> dict[str, LabeledFiles]:
    """Return the files of a list below `root` by split, in its order; without splits, all are train.

    Raises:
        DataError: naming the line, if a file is missing or a label is not a class.
    """
    labels = _labels(rows, class_names)
    statuses = [_stat(root, row) for row in rows]
    first_rows: dict[tuple[int, int], ListedImage] = {}
    for row, status in zip(rows, statuses, strict=True):
        if (first := first_rows.setdefault((status.st_dev, status.st_ino), row)) is not row:
            fault = f"{printable(row.name)} is another name of the file {printable(first.name)} in line {first.line}"
            raise DataError(f"{row.location}: {fault}; list it once.")
    num_bytes, mtime_ns = np.array([(status.st_size, status.st_mtime_ns) for status in statuses], np.int64).T.copy()
    groups = np.array([row.group for row in rows]) if rows[0].group else None
    files = LabeledFiles(root, tuple(row.name for row in rows), num_bytes, mtime_ns, labels, groups=groups)
    return {split: files.take(indices) for split, indices in _group_by_split(rows, np.arange(len(rows))).items()}


def rows_by_dataset_name(rows: Iterable[ListedImage], root: Path, names: Iterable[str]) -> list[ListedImage]:
    """Return rows with the names of the dataset below `root`; both may be absolute or relative."""
    own_names = {os.path.abspath(os.path.join(root, name)): name for name in names}
    return [row._replace(name=own_names.get(os.path.abspath(os.path.join(root, row.name)), row.name)) for row in rows]


def assign_splits(
    images_by_split: Mapping[str, Samples], rows: Sequence[ListedImage], class_names: Sequence[str]
) -> dict[str, Samples]:
    """Assign the images of a dataset to splits by a list, and log how many images it leaves out.

    The images of a split keep the order of the dataset.

    Raises:
        DataError: naming the line, if an image is listed twice, is not in the dataset, or is of another class there.
    """
    if not rows[0].split:
        raise DataError(f"{rows[0].location}: a list that assigns splits needs the column split: train, val or test.")
    images = concatenate(list(images_by_split.values()))
    index_by_name = {name: index for index, name in enumerate(images.names)}
    indices = []
    for row, label in zip(rows, _labels(rows, class_names), strict=True):
        if row.name not in index_by_name:
            fault = (
                "is listed in a line before" if row.name in images.names else "is not among the images of the dataset"
            )
            raise DataError(f"{row.location}: {printable(row.name)} {fault}; delete the line.")
        indices.append(index_by_name.pop(row.name))
        true_label = images.labels[indices[-1]]
        if label != true_label:
            fault = f"{printable(row.name)} is listed as {row.label!r}, in the dataset it is"
            raise DataError(f"{row.location}: {fault} {class_names[true_label]!r}; correct the label.")
    if index_by_name:
        example = printable(next(iter(index_by_name)))
        log.info("the list leaves out %d of %d images, e.g. %s", len(index_by_name), len(images), example)
    indices_by_split = _group_by_split(rows, np.array(indices))
    return {split: images.take(np.sort(members)) for split, members in indices_by_split.items()}


def _find_columns(file: Path, lines: Sequence[Sequence[str]], group_by: str) -> list[str]:
    """Return for each column of a list, whose first line is its header, its name in `COLUMNS`, group, or ""."""
    header = lines[0] if lines else []
    names = [cell.strip().casefold() for cell in header]
    used = {next((name for name in known if name in names), ""): column for column, known in COLUMN_NAMES.items()}
    if not {"path", "label"} <= {column for name, column in used.items() if name}:
        got = printable(",".join(header)) or "nothing"
        raise DataError(f"{printable(file)}, line 1: expected {_FIRST_LINE}, got {got}.")
    if group_by:
        group_column = group_by.strip().casefold()
        if group_column not in names or group_column in used:
            others = join_names(name for name in names if name not in used) or "no columns"
            fault = f"{printable(file)} has {others} besides path, label and split"
            raise DataError(f"data.group_by={group_by}: {fault}; name the column that holds the group of each image.")
        used[group_column] = "group"
    if doubled := [name for name in used if name and names.count(name) > 1]:
        raise DataError(f"{printable(file)}, line 1: there are two columns {doubled[0]}; rename one.")
    unused = [name for name in names if name not in used]
    for name in unused if "" in used else ():  # a misspelled split: test images would be trained on
        values = {line[names.index(name)].strip() for line in lines[1:] if len(line) == len(names)}
        if values and values <= {*SPLITS}:
            raise DataError(f"{printable(file)}, line 1: the column {printable(name)} holds splits; call it split.")
    if unused:
        log.info("%s: columns that are not used: %s", printable(file), join_names(unused))
    return [used.get(name, "") if name else "" for name in names]


def _parse_row(file: Path, line: int, cells: Sequence[str], columns: Sequence[str]) -> ListedImage:
    location = f"{printable(file)}, line {line}"
    if len(cells) != len(columns):
        wanted = f"expected {len(columns)} columns, got {len(cells)}"
        raise DataError(f"{location}: {wanted}; put names with commas in quotes.")
    cell = dict(zip(columns, cells, strict=True))
    name, label, split = cell["path"], cell["label"].strip(), cell.get("split", "").strip()
    if not label:
        raise DataError(f"{location}: the label is empty; write the class of the image.")
    if "split" in cell and split not in SPLITS:
        raise DataError(f"{location}: split={printable(split)} is not one of {', '.join(SPLITS)}.")
    if not name.strip() or "\0" in name:
        raise DataError(f"{location}: {name!r} is not a file name; write a path relative to data.root.")
    group = cell.get("group", "").strip()
    if "group" in cell and not group:
        raise DataError(f"{location}: the cell of data.group_by is empty; write the group of the image.")
    return ListedImage(posixpath.normpath(name.replace(os.sep, "/")), label, split, file, line, group)


def _labels(rows: Sequence[ListedImage], class_names: Sequence[str]) -> np.ndarray:
    """Return the label of each row, int64 (N,)."""
    labels = find_labels((row.label for row in rows), class_names)
    if None in labels:
        row = rows[labels.index(None)]
        existing = join_names(class_names)
        raise DataError(f"{row.location}: there is no class {row.label!r}; the classes are {existing}.")
    return np.array(labels, np.int64)


def _stat(root: Path, row: ListedImage) -> os.stat_result:
    """Return the status of a file, which must be a regular one: opening a pipe would block."""
    where = f"{row.location}: {printable(root / row.name)}"
    try:
        status = os.stat(os.path.join(root, row.name))
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}; correct the line.") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{where} is not a regular file; delete the line.")
    return status


def _group_by_split(rows: Sequence[ListedImage], indices: np.ndarray) -> dict[str, np.ndarray]:
    """Group `indices`, one of each row, by the split of the row."""
    splits = np.array([row.split or "train" for row in rows])
    return {split: indices[splits == split] for split in SPLITS if split in splits}
