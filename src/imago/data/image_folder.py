"""Pictures in folders named after their classes: `ROOT/train|val|test/CLASS/picture.png`."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imago.data.dataset import LabelledArray
from imago.errors import DataError
from imago.images import SUFFIXES, read_image

EXPECTED_TREE = "ROOT/train/CLASS/picture.jpg, ROOT/val/CLASS/... and ROOT/test/CLASS/..."


@dataclass(frozen=True)
class Listing:
    """The pictures of one split: `paths` in sorted order, `labels` int64 (N,)."""

    paths: tuple[Path, ...]
    labels: np.ndarray


def list_classes(folder: Path) -> tuple[str, ...]:
    """Give the names of the class folders, sorted; names that start with a dot or two underscores are none.

    Raises:
        DataError: if the folder is missing or has no class folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; expected {EXPECTED_TREE}.")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _is_hidden(entry.name))
    if not names:
        raise DataError(f"{folder} has no class folders; expected {EXPECTED_TREE}.")
    return tuple(names)


def list_pictures(folder: Path, class_names: tuple[str, ...]) -> Listing:
    """List the pictures of every class; nested folders belong to the class above them."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        paths += found
        labels += [label] * len(found)
    return Listing(tuple(paths), np.array(labels, np.int64))


def read_listing(listing: Listing, name: str) -> LabelledArray:
    """Decode pictures of one common size into memory, with a progress bar called `name`.

    Raises:
        DataError: naming the file that is damaged or of another size.
    """
    images = [read_image(path) for path in tqdm(listing.paths, desc=f"reading {name}", leave=False, disable=None)]
    for path, image in zip(listing.paths, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(f"{path} is {image.shape[1]}x{image.shape[0]}, other pictures of {name} are not.")
    return LabelledArray(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)), listing.labels)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))
