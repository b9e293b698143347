"""List image files in folders named after their classes: the splits, the classes and the images of each."""

import errno
import logging
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from imago.data.csv_list import check_class_names, find_labels
from imago.data.dataset import LabeledFiles
from imago.errors import DataError
from imago.images import HEIC_SUFFIXES, SUFFIXES
from imago.text import counted, join_names, printable

log = logging.getLogger(__name__)

EXPECTED_TREE = (
    "ROOT/train/CLASS/image.jpg (and ROOT/val/..., ROOT/test/... if you have them) or ROOT/CLASS/image.jpg, "
    "without links to folders"
)
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
IgnoredEntries = list[tuple[str, str]]  # name relative to the root of the dataset, and reason
_FirstNames = dict[tuple[int, int], str]  # first name of each listed file, by device and inode
_DANGLING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # the target is missing, below a file, or the link itself


def list_image_folder(
    root: Path, needs_train: bool = True
) -> tuple[tuple[str, ...], dict[str, LabeledFiles], IgnoredEntries]:
    """List the images of a dataset, and log what is ignored.

    Only regular files are listed, each once, however many names it has. Links to folders are not followed: a loop
    would list an image many times. Nested folders belong to the class above them.

    Returns:
        The class names, which are those of the training images, sorted; the files by split, with "train" if
        `needs_train`; and the ignored files and folders, each with the reason.

    Raises:
        DataError: if the folders do not form a dataset; the message names the expected structure.
    """
    folders = find_splits(root, needs_train)
    first = folders.get("train", next(iter(folders.values())))
    class_names = _training_classes(root, first)
    ignored: IgnoredEntries = []
    if first:
        others = [entry for entry in _entries(root) if entry.name not in folders.values()]
        ignored += [(entry.name, _reason_to_ignore(entry) or "outside the split folders") for entry in others]
    first_names: _FirstNames = {}
    files: dict[str, LabeledFiles] = {}
    # Test first: a test file that has a second name among the training images stays a test image.
    for split in (split for split in ("test", "val", "train") if split in folders):
        files[split] = _list_split(root, folders[split], class_names, first_names, ignored)
    if not any(map(len, files.values())):
        raise DataError(f"{printable(root)} has no images: {_count_reasons(sorted(ignored)) or 'no files'}.")
    if ignored:
        log.info("ignored %s: %s", counted(len(ignored), "entry", "entries"), _count_reasons(sorted(ignored)))
    return class_names, files, sorted(ignored)


def find_splits(root: Path, needs_train: bool = True) -> dict[str, str]:
    """Return the folder names of train, val and test; for `ROOT/CLASS` only "train", with the name "".

    Raises:
        DataError: if there is no such folder, two folders mean one split, or there are splits without a needed train.
    """
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"data.root={printable(root)} {problem}; expected {EXPECTED_TREE}.")
    folders: dict[str, str] = {}
    names = _folder_names(root)
    for name in names:
        split = SPLIT_FOLDERS.get(name.casefold())
        if split in folders:
            raise DataError(f"data.root={printable(root)}: {folders[split]}/ and {name}/ are both {split}; keep one.")
        if split:
            folders[split] = name
    # A dataset of vehicles may have a class "train": that folder holds images, and there are other folders.
    has_others = len(folders) < len(names)
    if not folders or (has_others and not any(_folder_names(root / name) for name in folders.values())):
        if folders:
            existing = ", ".join(f"{name}/" for name in folders.values())
            log.warning("read as classes, not as splits, because there are other folders: %s", existing)
        return {"train": ""}
    if needs_train and "train" not in folders:
        existing = " and ".join(f"{name}/" for name in folders.values())
        raise DataError(f"data.root={printable(root)} has {existing} but no train/; expected {EXPECTED_TREE}.")
    return folders


def _training_classes(root: Path, folder: str) -> tuple[str, ...]:
    """Return the classes of the dataset; a single one is refused, as it is usually a folder around the dataset."""
    names = _class_names(root / folder)
    if len(names) < 2:
        inner = root / names[0]
        is_wrapper = not folder and (len(_folder_names(inner)) > 1 or _folder_names(inner) == ["train"])
        hint = f" Did you mean data.root={printable(inner)}?" if is_wrapper else ""
        raise DataError(
            f"{printable(root / folder)} has only one class folder, {names[0]!r}; "
            f"a classifier needs at least 2. Expected {EXPECTED_TREE}.{hint}"
        )
    return names


def _class_names(folder: Path) -> tuple[str, ...]:
    names = _folder_names(folder)
    if not names:
        fault = "has no class folders" if _entries(folder) else "is empty"
        if (folder / "index.json").is_file():
            fault = "has an index.json: if it is one of litdata, type data=litdata; it has no class folders"
        raise DataError(f"{printable(folder)} {fault}; expected {EXPECTED_TREE}.")
    check_class_names(names, f"{printable(folder)}: the class folders")
    return tuple(names)


def _list_split(
    root: Path, folder: str, class_names: Sequence[str], first_names: _FirstNames, ignored: IgnoredEntries
) -> LabeledFiles:
    """List the images of the split in `folder`, "" for the root; add entries to `first_names` or `ignored`."""
    _class_names(root / folder)
    names: list[str] = []
    columns: list[tuple[int, int, int]] = []
    links: list[str] = []
    entries = _entries(root / folder)
    for class_folder, label in zip(entries, find_labels([entry.name for entry in entries], class_names), strict=True):
        class_path = posixpath.join(folder, class_folder.name)
        if not _is_folder(class_folder):
            ignored.append((class_path, _reason_to_ignore(class_folder) or "outside the class folders"))
            continue
        if label is None:
            fault = f"has a class {class_folder.name!r} that the training images do not have"
            raise DataError(f"{printable(root / folder)} {fault}; the classes are {join_names(class_names)}.")
        for name, entry in _files_below(root, class_path):
            status = _stat_image(entry, name, first_names)
            if isinstance(status, str):
                ignored.append((name, status))
                continue
            names.append(name)
            columns.append((status.st_size, status.st_mtime_ns, label))
            links += [name] if entry.is_symlink() else []
    if links:
        log.info(
            "followed %s, e.g. %s", counted(len(links), "link to an image", "links to images"), printable(links[0])
        )
    num_bytes, mtime_ns, labels = np.array(columns, np.int64).reshape(-1, 3).T.copy()
    return LabeledFiles(root, tuple(names), num_bytes, mtime_ns, labels)


def _files_below(root: Path, folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every file below a folder, with its name relative to the root, in the order of the names."""
    stack = [(f"{folder}/{entry.name}", entry) for entry in reversed(_entries(root / folder))]
    while stack:  # not recursive: folders may be nested deeper than Python's recursion limit
        name, entry = stack.pop()
        if _is_folder(entry):
            stack += [(f"{name}/{inner.name}", inner) for inner in reversed(_entries(root / name))]
        else:
            yield name, entry


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{printable(folder)} cannot be read: {error.strerror}; check its permissions.") from error


def _folder_names(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder that may be a split, a class or a part of one."""
    return entry.is_dir(follow_symlinks=False) and not _reason_to_ignore(entry)


def _reason_to_ignore(entry: os.DirEntry[str]) -> str:
    """Return the reason why an entry is ignored in every folder; "" if there is none."""
    if entry.name.startswith((".", "__")):
        return "hidden name"
    # entry.is_dir() would raise for a link to itself.
    return "link to a folder (not followed)" if entry.is_symlink() and os.path.isdir(entry.path) else ""


def _stat_image(entry: os.DirEntry[str], name: str, first_names: _FirstNames) -> os.stat_result | str:
    """Return the status of an image that is listed by this name, or the reason why it is not listed."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if reason := _reason_to_ignore(entry):
        return reason
    if suffix not in SUFFIXES:
        remedy = ", which needs pip install pillow-heif, or a conversion to JPEG" if suffix in HEIC_SUFFIXES else ""
        return f"file extension {suffix}{remedy}" if suffix else "no file extension"
    try:
        status = entry.stat()
    except OSError as error:
        if entry.is_symlink() and error.errno in _DANGLING:
            return "dangling link"
        raise DataError(f"{printable(entry.path)} cannot be read: {error.strerror}; check its permissions.") from error
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    first = first_names.setdefault((status.st_dev, status.st_ino), name)
    return status if first == name else f"same file as {first}"


def _count_reasons(ignored: IgnoredEntries) -> str:
    """Return the number of entries for each reason, most frequent first, with an example each."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in ignored:
        kind = reason.partition(" as ")[0]  # one kind for all reasons "same file as NAME"
        names_by_reason.setdefault(kind, []).append(name)
    ranked = sorted(names_by_reason.items(), key=lambda item: -len(item[1]))
    return join_names(f"{len(names):,} x {kind} (e.g. {names[0]})" for kind, names in ranked)
