"""Find the image files that the setting `input` of predict.py, or `ood` of eval.py, selects."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from imago.errors import ConfigError, DataError
from imago.files import COLUMN_NAMES, read_csv_lines
from imago.images import SUFFIXES, is_image
from imago.text import printable

# Images that Pillow could read, in formats that `imago.images` leaves out.
_OTHER_SUFFIXES = (
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx"),
    *(".ico", ".icns", ".tga", ".dds", ".psd", ".pcx"),
)
_REMEDY = (
    "type an image, a folder, a list of paths in a .txt or .csv file, or a pattern in quotes such as 'photos/*.jpg'"
)


def find_images(text: str, setting: str = "input") -> list[Path]:
    """Return the images that `text`, the value of the setting, selects: in the order of a list, else sorted by name.

    An existing file is that file, whatever its name and suffix. Two kinds are lists: a `.txt` file with one path per
    line as it would be typed, and a `.csv` file with a column `path`, relative to its directory as for data.list_file.
    A folder is searched with its subfolders, without hidden files and folders. Anything else is a glob pattern, with
    `**` for folders of any depth. Links are followed, each folder once. Of a folder or pattern, files are images by
    their suffix or content; for the others see `left_out_files`.

    Raises:
        ConfigError: if there are none.
        DataError: if a list or a folder cannot be read.
    """
    if os.path.isfile(text):
        readers = {".txt": _read_list, ".csv": _read_table}
        return readers.get(Path(text).suffix.lower(), lambda file, _: [file])(Path(text), setting)
    files = _selected_files(text)
    images = list(filter(_is_image, files))
    if not images:
        special = [char for char in "*?[" if char in text and not files]
        what = f"the character{'s' * (len(special) > 1)} {' and '.join(special)} make{'s' * (len(special) == 1)}"
        hint = f"; {what} it a pattern" if special else ""
        reason = f"has no image ({' '.join(sorted(SUFFIXES))})" if files or os.path.isdir(text) else "matches nothing"
        raise ConfigError(f"{setting}={printable(text)} {reason}; {_REMEDY}{hint}.")
    return images


def left_out_files(text: str, images: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return the files that `input` selects besides `images`, each with the reason."""
    others = [] if os.path.isfile(text) else sorted(set(_selected_files(text, hidden=True)) - set(images))
    return [(file, _reason_to_leave_out(file)) for file in others]


def _reason_to_leave_out(file: Path) -> str:
    if not file.is_file():
        return "not a regular file"
    if file.name.startswith("."):
        return "hidden"
    if file.suffix.lower() in _OTHER_SUFFIXES:
        return "a format that is not read; convert it to PNG or JPEG"
    return "not an image"


def _selected_files(text: str, hidden: bool = False) -> list[Path]:
    paths = [text] if os.path.isdir(text) else glob.glob(text, recursive=True) if text else []
    return sorted({Path(file) for path in paths for file in _list_files(path, hidden)})


def _read_list(file: Path, setting: str) -> list[Path]:
    """Return the paths of a list, also of missing images, which are reported when they are read."""
    try:
        lines = os.fsdecode(file.read_bytes()).removeprefix("\ufeff").split("\n")  # the byte order mark of Windows
    except OSError as error:
        raise DataError(f"{printable(file)} cannot be read: {error.strerror}.") from error
    names = [line.rstrip("\r") for line in lines if line.strip()]
    if not names:
        raise ConfigError(f"{setting}={printable(file)} is an empty list; write the path of an image on each line.")
    return [Path(name).expanduser() for name in names]


def _read_table(file: Path, setting: str) -> list[Path]:
    """Return the paths in a list of images as data.list_file reads it."""
    lines = [cells for _, cells in read_csv_lines(file, "a column path")]
    if not lines:
        raise ConfigError(f"{setting}={printable(file)} is empty; write a first line path, and an image on each line.")
    header, *rows = lines
    names = [name.strip().casefold() for name in header]
    column = next((names.index(name) for name in COLUMN_NAMES["path"] if name in names), None)
    if column is None:
        raise ConfigError(f"{setting}={printable(file)} has none of the columns {', '.join(COLUMN_NAMES['path'])}.")
    if not rows:
        raise ConfigError(f"{setting}={printable(file)} has no images below its first line.")
    return [file.parent / cells[column] for cells in rows if len(cells) > column]


def _list_files(path: str, hidden: bool) -> Iterator[str]:
    """Yield the path itself if it is not a folder, else the files in it and its subfolders; `hidden` ones on request.

    Hidden subfolders are never searched.
    """
    if not os.path.isdir(path):
        yield path
        return

    def refuse(error: OSError) -> None:
        raise DataError(f"{printable(error.filename)} cannot be read: {error.strerror}.") from error

    found = {os.path.realpath(path)}
    for folder, subfolders, names in os.walk(path, onerror=refuse, followlinks=True):
        new: dict[str, str] = {}  # by real path, so that loops of links end; a folder is preferred to a link to it
        for name in sorted(subfolders, key=lambda name: (os.path.islink(os.path.join(folder, name)), name)):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and real not in found:
                new.setdefault(real, name)
        found |= new.keys()
        subfolders[:] = new.values()
        yield from (os.path.join(folder, name) for name in names if hidden or not name.startswith("."))


def _is_image(path: Path) -> bool:
    """Return whether a file is an image by its suffix or content, or may be one, which is reported when it is read."""
    if not path.is_file():
        return path.suffix.lower() in SUFFIXES and not path.exists()  # a broken link
    try:
        with path.open("rb") as file:
            return path.suffix.lower() in SUFFIXES or is_image(file.read(12))
    except OSError:
        return True
