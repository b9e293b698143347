"""Find the image files that the setting `input` of predict.py selects."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from imago.errors import ConfigError, DataError
from imago.images import SUFFIXES
from imago.text import printable

_REMEDY = "type an image, a folder, a list of paths in a .txt file, or a pattern in quotes such as 'photos/*.jpg'"


def find_images(text: str) -> list[Path]:
    """Return the images that `input` selects: in the order of a list, else sorted by name.

    An existing file is that file, whatever its name and suffix; only a `.txt` file is a list, with one path per line
    as it would be typed. A folder is searched with its subfolders, without hidden files and folders. Anything else is
    a glob pattern, with `**` for folders of any depth. Links are followed; pipes and devices are left out.

    Raises:
        ConfigError: if there are none.
        DataError: if a list or a folder cannot be read.
    """
    if os.path.isfile(text):
        return _read_list(Path(text)) if text.lower().endswith(".txt") else [Path(text)]
    paths = [text] if os.path.isdir(text) else glob.glob(text, recursive=True) if text else []
    images = sorted({Path(file) for path in paths for file in _list_files(path) if _is_image(file)})
    if not images:
        reason = f"has no image ({' '.join(sorted(SUFFIXES))})" if paths else "matches nothing"
        raise ConfigError(f"input={printable(text)} {reason}; {_REMEDY}.")
    return images


def _read_list(file: Path) -> list[Path]:
    """Return the paths of a list, also of missing images, which are reported when they are read."""
    try:
        lines = os.fsdecode(file.read_bytes()).removeprefix("\ufeff").split("\n")  # the byte order mark of Windows
    except OSError as error:
        raise DataError(f"{printable(file)} cannot be read: {error.strerror}.") from error
    names = [line.rstrip("\r") for line in lines if line.strip()]
    if not names:
        raise ConfigError(f"input={printable(file)} is an empty list; write the path of an image on each line.")
    return [Path(name).expanduser() for name in names]


def _list_files(path: str) -> Iterator[str]:
    """Yield the path itself if it is not a folder, else the files in it and its subfolders without the hidden ones."""
    if not os.path.isdir(path):
        yield path
        return

    def refuse(error: OSError) -> None:
        raise DataError(f"{printable(error.filename)} cannot be read: {error.strerror}.") from error

    for folder, subfolders, names in os.walk(path, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))


def _is_image(path: str) -> bool:
    """Return whether it is an image by its suffix, and a file or a broken link, which is reported when it is read."""
    return Path(path).suffix.lower() in SUFFIXES and (os.path.isfile(path) or not os.path.exists(path))
