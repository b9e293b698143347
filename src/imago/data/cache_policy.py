"""Where decoded images are kept: as the user says if they fit, and without a word from the user where they do."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from imago.data.dataset import LabeledFiles
from imago.errors import ConfigError
from imago.images import FORMATS
from imago.resources import available_memory_bytes, free_disk_bytes

PLACES = ("none", "ram", "disk", "auto")
MAX_HEADERS = 500  # images whose size is looked at for an estimate
_SMALLER = "a lower data.decoded_px or preprocess.size makes them smaller"


def choose_store(
    where: str, estimated_bytes: int, folder: Path, num_processes: int, kept_bytes: int = 0
) -> tuple[str, str]:
    """Decide where decoded images are kept.

    Args:
        where: one of `PLACES`. "auto" is "disk" if they are all there already, else "ram" if they fit in half of the
            available memory, else "disk" if they fit in half of its free space, else "none".
        estimated_bytes: of all decoded images.
        folder: on the disk in question.
        num_processes: that will each keep their own in memory; on disk they share.
        kept_bytes: the part that an earlier run has left in `folder`.

    Returns:
        "none", "ram" or "disk", and the reason in words.

    Raises:
        ConfigError: if `where` is none of these, or the memory or disk that it asks for is too small.
    """
    if where not in PLACES:
        raise ConfigError(f"data.cache={where} is not one of {', '.join(PLACES)}.")
    if where == "none":
        return "none", "as typed"
    needs = {"ram": estimated_bytes * num_processes, "disk": estimated_bytes - kept_bytes}
    has = {"ram": available_memory_bytes() if hasattr(os, "memfd_create") else 0, "disk": free_disk_bytes(folder)}
    if where != "auto":
        _refuse(where, needs[where], has[where], folder)
        return where, f"{_in_words(estimated_bytes)}, as typed"
    if needs["disk"] <= 0:
        return "disk", f"{_in_words(estimated_bytes)}, kept in {folder} by an earlier run"
    for place in ("ram", "disk"):
        if needs[place] * 2 <= has[place]:
            return place, f"{_in_words(needs[place])} of {_in_words(has[place])} available"
    memory, disk = (_in_words(has[place]) for place in ("ram", "disk"))
    return "none", f"{_in_words(needs['ram'])} are over half of the {memory} of memory and {disk} of disk; {_SMALLER}"


def estimate_bytes(files: LabeledFiles, sides: Callable[[int, int], tuple[int, int]]) -> int:
    """Estimate the size of all images once they are decoded and prepared, from the headers of some of them.

    Args:
        files: the images; what cannot be read is passed over here.
        sides: gives height and width of a prepared image from those of the decoded one, in pixels.

    Returns:
        Bytes.
    """
    chosen = np.unique(np.linspace(0, len(files) - 1, MAX_HEADERS).astype(np.int64))
    found = [decoded for index in chosen if (decoded := _decoded_sides(files.root / files.names[index]))]
    if not found:
        return 0
    return round(np.mean([np.prod(sides(*decoded)) for decoded in found]) * 3 * len(files))


def _refuse(where: str, needed: int, available: int, folder: Path) -> None:
    if needed <= available:
        return
    if where == "ram":
        place, way_out = "memory", "data.cache=disk keeps them on disk"
    else:
        place, way_out = f"{folder}", "data.cache=none keeps none"
    raise ConfigError(
        f"data.cache={where}: the decoded images need {_in_words(needed)}, and {place} has {_in_words(available)} "
        f"available; {way_out}, {_SMALLER}."
    )


def _decoded_sides(path: Path) -> tuple[int, int] | None:
    """Read height and width from the header."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # told when it is decoded
        return None


def _in_words(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
