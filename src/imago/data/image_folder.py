"""Pictures in folders named after their classes: which folders are the splits, the classes, and what is in them."""

import difflib
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imago.data.dataset import LabelledArray, LabelledFiles, printable
from imago.errors import DataError
from imago.images import SUFFIXES, read_image

EXPECTED_TREE = (
    "ROOT/train/CLASS/picture.jpg (and ROOT/val/..., ROOT/test/... if you have them) or ROOT/CLASS/picture.jpg"
)
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass
class Skipped:
    """Counts what lies in the folders and is no picture of a class; `example` is the first of them."""

    count: int = 0
    example: str = ""

    def add(self, path: str) -> None:
        """Count one file or folder."""
        self.example = self.example or path
        self.count += 1


def find_splits(root: Path, skipped: Skipped) -> dict[str, Path]:
    """Tell which folders hold train, val and test.

    Args:
        root: what the user named.
        skipped: told of folders beside the splits.

    Returns:
        The folders by split, always with "train". In `ROOT/CLASS`, "train" is the root itself and stands alone.

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
            raise DataError(
                f"data.root={printable(root)}: {found[split].name}/ and {name}/ are both {split}; keep one."
            )
        if split:
            found[split] = root / name
    # A set of vehicles may have a class "train": then that folder holds pictures, and there are others beside it.
    if not found or (len(found) < len(names) and not any(_folders(folder) for folder in found.values())):
        return {"train": root}
    if "train" not in found:
        there = " and ".join(f"{folder.name}/" for folder in found.values())
        fault = f"has {there} but no train/{_note_on_links(root)}"
        raise DataError(f"data.root={printable(root)} {fault}; expected {EXPECTED_TREE}.")
    for entry in _entries(root):
        if root / entry.name not in found.values():
            skipped.add(entry.path)
    return found


def list_classes(folder: Path) -> tuple[str, ...]:
    """Give the names of the class folders, sorted; names that start with a dot or two underscores are none.

    Raises:
        DataError: if the folder is missing or has no class folder, or two names of classes look the same.
    """
    if not folder.is_dir():
        raise DataError(f"{printable(folder)} does not exist; expected {EXPECTED_TREE}.")
    names = _folders(folder)
    if not names:
        fault = f"has no class folders{_note_on_links(folder)}" if _entries(folder) else "is empty"
        raise DataError(f"{printable(folder)} {fault}; expected {EXPECTED_TREE}.")
    seen: dict[str, str] = {}
    for name in names:
        if not _is_text(name):
            raise DataError(f"{printable(folder)}: the name of the class folder {ascii(name)} is not UTF-8; rename it.")
        other = seen.setdefault(_plain(name), name)
        if other != name:
            raise DataError(
                f"{printable(folder)}: the class folders {ascii(other)} and {ascii(name)} look the same; "
                "merge or rename them."
            )
    return tuple(names)


def list_training_classes(root: Path, folder: Path) -> tuple[str, ...]:
    """Give the classes of the data set in `root`, whose training pictures are in `folder`.

    Raises:
        DataError: as `list_classes`, and for a single class, which is mostly a folder around the data set.
    """
    names = list_classes(folder)
    if len(names) < 2:
        inner = root / names[0]
        hint = f" Did you mean data.root={printable(inner)}?" if folder == root and len(_folders(inner)) > 1 else ""
        raise DataError(
            f"{printable(folder)} has only one class folder, {names[0]!r}{_note_on_links(folder)}; "
            f"a classifier needs at least 2. Expected {EXPECTED_TREE}.{hint}"
        )
    return names


def list_pictures(folder: Path, class_names: tuple[str, ...], skipped: Skipped | None = None) -> LabelledFiles:
    """List the pictures of every class; nested folders belong to the class above them.

    Only regular files count, and links to folders are not followed: a loop would list a picture many times.

    Args:
        folder: holds a folder for each class, or for some of them.
        class_names: of the data set; the place of a name is its label.
        skipped: told of what is no picture.

    Raises:
        DataError: if a class folder has a name that is not among `class_names`.
    """
    skipped = Skipped() if skipped is None else skipped
    labels = {_plain(name): label for label, name in enumerate(class_names)}
    found: list[tuple[str, int, int]] = []
    list_classes(folder)
    for entry in _entries(folder):
        if not _is_class_folder(entry):
            skipped.add(entry.path)
            continue
        label = labels.get(_plain(entry.name))
        if label is None:
            raise DataError(_unknown_class(folder, entry.name, class_names))
        found += [(name, num_bytes, label) for name, num_bytes in _walk(entry, entry.name, skipped)]
    names, num_bytes_N, labels_N = zip(*found, strict=True) if found else ((), (), ())
    return LabelledFiles(folder, tuple(names), np.array(num_bytes_N, np.int64), np.array(labels_N, np.int64))


def read_listing(listing: LabelledFiles, name: str) -> LabelledArray:
    """Decode pictures of one common size into memory, with a progress bar called `name`.

    Raises:
        DataError: naming the file that is damaged or of another size.
    """
    images = [read_image(path) for path in tqdm(listing.paths, desc=f"reading {name}", leave=False, disable=None)]
    for path, image in zip(listing.paths, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(f"{path} is {image.shape[1]}x{image.shape[0]}, other pictures of {name} are not.")
    return LabelledArray(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)), listing.labels)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{printable(folder)} cannot be read: {error.strerror}.") from error


def _folders(folder: Path) -> list[str]:
    """Names of the folders that may be splits or classes, sorted."""
    return [entry.name for entry in _entries(folder) if _is_class_folder(entry)]


def _is_class_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) and not _is_hidden(entry.name)


def _note_on_links(folder: Path) -> str:
    is_linked = any(entry.is_symlink() and entry.is_dir() for entry in _entries(folder))
    return " (links to folders are not followed)" if is_linked else ""


def _walk(folder: os.DirEntry[str], prefix: str, skipped: Skipped) -> Iterator[tuple[str, int]]:
    """Yield name and size in bytes of every picture below a folder, in the order of their names."""
    for entry in _entries(folder.path):
        name = f"{prefix}/{entry.name}"
        if _is_class_folder(entry):
            yield from _walk(entry, name, skipped)
        elif _is_picture(entry):
            yield name, entry.stat().st_size
        else:
            skipped.add(entry.path)


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file() and not _is_hidden(entry.name)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)  # how Python stands in for bytes it cannot read


def _plain(name: str) -> str:
    """What a reader sees of a name: composed accents, no capitals, no blanks around it."""
    return unicodedata.normalize("NFC", name.casefold()).strip()


def _unknown_class(folder: Path, name: str, class_names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, class_names, n=1)
    hint = f"is it {close[0]!r}?" if close else f"train has {', '.join(class_names[:10])}."
    return f"{printable(folder)} has a class {name!r} that the training pictures have not; {hint}"
