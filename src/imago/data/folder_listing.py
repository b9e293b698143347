"""List image files in folders named after their classes: the splits, the classes and the images of each."""

import errno
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from imago.data.csv_list import check_class_names, nearest_class, plain_name
from imago.data.dataset import LabeledFiles
from imago.errors import DataError
from imago.images import SUFFIXES
from imago.text import printable

log = logging.getLogger(__name__)

EXPECTED_TREE = "ROOT/train/CLASS/image.jpg (and ROOT/val/..., ROOT/test/... if you have them) or ROOT/CLASS/image.jpg"
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MAX_REASONS = 8  # in the log message
_SAME_FILE = "same file as "  # prefix of the reason of a second name


@dataclass
class Ignored:
    """Entries that a scan leaves out, with the reasons.

    Attributes:
        entries: name relative to the root of the data set, and reason.
        outside: names of images that are links to files outside of the data set; they are listed all the same.
        listed: name of every listed file, by device and inode: another name of it is not another image.
    """

    entries: list[tuple[str, str]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    listed: dict[tuple[int, int], str] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> None:
        """Record one file or folder."""
        self.entries.append((name, reason))

    def summary(self) -> str:
        """Return one line for the log: counts by reason, most frequent first, with an example each; "" if empty."""
        names: dict[str, list[str]] = {}
        for name, reason in self.entries:
            # Second names of files are counted together.
            kind = "another name of a listed file" if reason.startswith(_SAME_FILE) else reason
            names.setdefault(kind, []).append(name)
        ranked = sorted(names.items(), key=lambda item: -len(item[1]))
        parts = [
            f"{len(found):,} x {printable(kind)} (e.g. {printable(found[0])})" for kind, found in ranked[:_MAX_REASONS]
        ]
        if len(ranked) > _MAX_REASONS:
            parts.append(f"{sum(len(found) for _, found in ranked[_MAX_REASONS:]):,} for other reasons")
        notes = [f"ignored {len(self.entries):,} entries: {', '.join(parts)}"] if parts else []
        if self.outside:
            links = f"followed {len(self.outside):,} x link to an image outside of the data set"
            notes.append(f"{links} (e.g. {printable(self.outside[0])})")
        return "; ".join(notes)


def find_splits(root: Path, ignored: Ignored) -> dict[str, Path]:
    """Find the folders of train, val and test.

    Args:
        root: the value of `data.root`.
        ignored: receives the entries that are no split folders.

    Returns:
        The folders by split, always with "train". For `ROOT/CLASS`, "train" is the root itself and the only split.

    Raises:
        DataError: if there is no such folder, two folders mean one split, or there are splits without train.
    """
    if not root.is_dir():
        fault = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"data.root={printable(root)} {fault}; expected {EXPECTED_TREE}.")
    found: dict[str, Path] = {}
    names = _folders(root)
    for name in names:
        split = SPLIT_FOLDERS.get(name.casefold())
        if split in found:
            fault = f"{found[split].name}/ and {name}/ are both {split}; keep one"
            raise DataError(f"data.root={printable(root)}: {fault}.")
        if split:
            found[split] = root / name
    # A data set of vehicles may have a class "train": that folder holds images, and there are other folders.
    if not found or (len(found) < len(names) and not any(_folders(folder) for folder in found.values())):
        if found:
            names_found = ", ".join(f"{folder.name}/" for folder in found.values())
            log.warning("read as classes, not as splits, because there are other folders: %s", names_found)
        return {"train": root}
    if "train" not in found:
        existing = " and ".join(f"{folder.name}/" for folder in found.values())
        fault = f"has {existing} but no train/{_note_on_links(root)}"
        raise DataError(f"data.root={printable(root)} {fault}; expected {EXPECTED_TREE}.")
    for entry in _entries(root):
        if root / entry.name not in found.values():
            ignored.add(entry.name, _reason_outside(entry, "the split folders"))
    return found


def list_classes(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders, sorted, without those that start with a dot or two underscores.

    Raises:
        DataError: if the folder is missing or has no class folder, or two class names look the same.
    """
    if not folder.is_dir():
        raise DataError(f"{printable(folder)} does not exist; expected {EXPECTED_TREE}.")
    names = _folders(folder)
    if not names:
        fault = f"has no class folders{_note_on_links(folder)}" if _entries(folder) else "is empty"
        raise DataError(f"{printable(folder)} {fault}; expected {EXPECTED_TREE}.")
    check_class_names(names, f"{printable(folder)}: the class folders")
    return tuple(names)


def list_training_classes(root: Path, folder: Path) -> tuple[str, ...]:
    """Return the classes of the data set in `root`, whose training images are in `folder`.

    Raises:
        DataError: as `list_classes`, and for a single class, which is usually a folder around the data set.
    """
    names = list_classes(folder)
    if len(names) < 2:
        inner = root / names[0]
        is_wrapper = folder == root and (len(_folders(inner)) > 1 or _folders(inner) == ["train"])
        hint = f" Did you mean data.root={printable(inner)}?" if is_wrapper else ""
        raise DataError(
            f"{printable(folder)} has only one class folder, {names[0]!r}{_note_on_links(folder)}; "
            f"a classifier needs at least 2. Expected {EXPECTED_TREE}.{hint}"
        )
    return names


def list_images(root: Path, folder: Path, class_names: Sequence[str], ignored: Ignored) -> LabeledFiles:
    """List the images of every class; nested folders belong to the class above them.

    Only regular files are listed, each once, however many names it has. Links to folders are not followed: a loop
    would list an image many times.

    Args:
        root: of the data set; the names of the images are relative to it.
        folder: the root or a folder in it, with a folder for each class or for some of them.
        class_names: of the data set; the index of a name is its label.
        ignored: receives what is no image; it also holds the files listed before, of this split or another.

    Raises:
        DataError: if the name of a class folder is not among `class_names`.
    """
    list_classes(folder)
    label_by_name = {plain_name(name): label for label, name in enumerate(class_names)}
    prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    real_root = os.path.realpath(root)
    names: list[str] = []
    columns: list[tuple[int, int, int]] = []
    for class_folder in _entries(folder):
        if not _is_class_folder(class_folder):
            ignored.add(prefix + class_folder.name, _reason_outside(class_folder, "the class folders"))
            continue
        label = label_by_name.get(plain_name(class_folder.name))
        if label is None:
            fault = f"has a class {class_folder.name!r} that the training images do not have"
            raise DataError(f"{printable(folder)} {fault}; {nearest_class(class_folder.name, class_names)}")
        for name, entry, status in _images(class_folder, prefix, ignored):
            names.append(name)
            columns.append((status.st_size, status.st_mtime_ns, label))
            if entry.is_symlink() and os.path.commonpath([real_root, os.path.realpath(entry.path)]) != real_root:
                ignored.outside.append(name)
    num_bytes_N, mtime_ns_N, labels_N = np.array(columns, np.int64).reshape(-1, 3).T.copy()
    return LabeledFiles(root, tuple(names), num_bytes_N, mtime_ns_N, labels_N)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{printable(folder)} cannot be read: {error.strerror}.") from error


def _folders(folder: Path) -> list[str]:
    """Return the names of the folders that may be splits or classes, sorted."""
    return [entry.name for entry in _entries(folder) if _is_class_folder(entry)]


def _is_class_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) and not _is_hidden(entry)


def _is_hidden(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith((".", "__"))


def _is_link_to_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and os.path.isdir(entry.path)  # entry.is_dir() raises for a link to itself


def _note_on_links(folder: Path) -> str:
    return " (links to folders are not followed)" if any(map(_is_link_to_folder, _entries(folder))) else ""


def _reason_outside(entry: os.DirEntry[str], what: str) -> str:
    if _is_hidden(entry):
        return "hidden name"
    return "link to a folder (not followed)" if _is_link_to_folder(entry) else f"outside {what}"


def _images(
    folder: os.DirEntry[str], prefix: str, ignored: Ignored
) -> Iterator[tuple[str, os.DirEntry[str], os.stat_result]]:
    """Yield every image below a folder that was not listed before, in the order of the names."""
    waiting = [(prefix + folder.name, folder)]
    while waiting:  # not recursive: folders may be nested deeper than Python's recursion limit
        name, entry = waiting.pop()
        if _is_class_folder(entry):
            waiting += [(f"{name}/{inner.name}", inner) for inner in reversed(_entries(entry.path))]
            continue
        status = _stat_image(entry)
        if isinstance(status, str):
            ignored.add(name, status)
            continue
        other = ignored.listed.setdefault((status.st_dev, status.st_ino), name)
        if other == name:
            yield name, entry, status
        else:
            ignored.add(name, f"{_SAME_FILE}{other}")


def _stat_image(entry: os.DirEntry[str]) -> os.stat_result | str:
    """Return size, time and identity of an image, or the reason why it is none."""
    suffix = os.path.splitext(entry.name)[1].lower()
    wrong_suffix = "" if suffix in SUFFIXES else f"ending {suffix}" if suffix else "no ending"
    if _is_hidden(entry):
        return "hidden name"
    if wrong_suffix and not entry.is_symlink():
        return wrong_suffix
    try:
        status = entry.stat()
    except OSError as error:
        if entry.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return "dangling link"
        raise DataError(f"{printable(entry.path)} cannot be read: {error.strerror}.") from error
    if stat.S_ISDIR(status.st_mode):
        return "link to a folder (not followed)"
    if wrong_suffix:
        return wrong_suffix
    return status if stat.S_ISREG(status.st_mode) else "not a regular file"
