"""Which files the setting `input` of predict.py means."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from imago.errors import ConfigError, DataError
from imago.images import SUFFIXES
from imago.text import printable

_WAY_OUT = "give an image, a folder, a list of paths in a .txt file, or a pattern in quotes such as 'photos/*.jpg'"


def find_images(text: str) -> list[Path]:
    """Give the images that `input` means: in the order of a list, else in the order of their names.

    An existing file is that file, whatever its name looks like, and whatever its suffix; only a `.txt` file is a list,
    a path on each line, as if it had been typed. A folder is searched with all below it, hidden ones left out. Anything
    else is a pattern, with `**` for folders of any depth.

    Raises:
        ConfigError: if there are none.
        DataError: if a list or a folder cannot be read.
    """
    if os.path.isfile(text):
        if text.lower().endswith(".csv"):
            raise ConfigError(f"input={printable(text)} is a table; {_WAY_OUT}.")
        return _read_list(Path(text)) if text.lower().endswith(".txt") else [Path(text)]
    is_folder = os.path.isdir(text)
    places = [text] if is_folder else sorted(glob.glob(text, recursive=True)) if text else []
    found = sorted({Path(image) for place in places for image in _images_in(place)})
    if not found:
        kinds = " ".join(sorted(SUFFIXES))
        fault = f"holds no image ({kinds})" if places else "matches nothing"
        raise ConfigError(f"input={printable(text)} {fault}; {_WAY_OUT}.")
    return found


def _read_list(file: Path) -> list[Path]:
    """Whether the images are there is seen when they are read: one that is gone does not stop the others."""
    try:
        # `surrogateescape` keeps a file name that is no UTF-8 as it is on the disk; -sig drops what Windows puts first.
        lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except OSError as error:
        raise DataError(f"{printable(file)} cannot be read: {error.strerror}.") from error
    names = [line.rstrip("\r") for line in lines if line.strip()]
    if not names:
        raise ConfigError(f"input={printable(file)} is an empty list; write the path of an image on each line.")
    return [Path(name).expanduser() for name in names]


def _images_in(place: str) -> Iterator[str]:
    """The place itself if it is an image, or all images below it if it is a folder."""
    if not os.path.isdir(place):
        if _is_image(place):
            yield place
        return
    for folder, below, names in os.walk(place, onerror=_refuse_folder):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in names if not name.startswith(".") and _is_image(name))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{printable(error.filename)} cannot be read: {error.strerror}.") from error
