"""Read the tags of TIFF files that say what their pixels are, where Pillow does not; keep libtiff from printing.

Source: TIFF 6.0, sections 8 and 19. libtiff's lines do not name the file, and `imago.images` reports damaged files.
"""

import contextlib
import ctypes
import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL
from PIL import TiffImagePlugin

_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _SAMPLES_PER_PIXEL, _PLANAR, _SAMPLE_FORMAT = 258, 259, 262, 277, 284, 339
# Pillow does not know this combination of byte order and meaning of 0.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))


def _silence_libtiff() -> None:
    """Turn its messages off; a Pillow that was not installed from a wheel uses that of the system, which is left."""
    for file in Path(PIL.__file__).parents[1].glob("pillow.libs/libtiff*.so*"):
        library = ctypes.CDLL(str(file))  # the one that Pillow uses
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


_silence_libtiff()


def kind_of_pixels(tags: Mapping[int, Any]) -> str:
    """Return what the numbers of a TIFF are, e.g. "16-bit signed"; without tags those of an ordinary image."""
    kinds = {1: "unsigned", 2: "signed", 3: "floating-point"}
    kind = kinds.get(_first_number(tags, _SAMPLE_FORMAT, 1), "undefined")
    return f"{_first_number(tags, _BITS_PER_SAMPLE, 1)}-bit {kind}"


def is_misread(tags: Mapping[int, Any]) -> bool:
    """Return whether Pillow reads planes of 16-bit values as if they were of 8 bits: those that are not compressed."""
    is_planar = _first_number(tags, _PLANAR, 1) == 2 and _first_number(tags, _SAMPLES_PER_PIXEL, 1) > 1
    return is_planar and _first_number(tags, _BITS_PER_SAMPLE, 1) > 8 and _first_number(tags, _COMPRESSION, 1) == 1


def largest_value(tags: Mapping[int, Any]) -> int:
    """Return the largest value of a gray image, which is white or black; that of 16 bits without tags."""
    return 2 ** _first_number(tags, _BITS_PER_SAMPLE, 16) - 1


def is_white_zero(tags: Mapping[int, Any]) -> bool:
    """Return whether 0 is white."""
    return bool(tags) and _first_number(tags, _PHOTOMETRIC, 0) == 0


def read_tags(data: bytes) -> Mapping[int, Any]:
    """Return the tags of a TIFF that Pillow does not identify; an empty mapping if the data are something else."""
    with contextlib.suppress(OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error):
        file, tags = io.BytesIO(data), TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file.seek(tags.next)
        tags.load(file)
        return tags if _BITS_PER_SAMPLE in tags else {}
    return {}


def _first_number(tags: Mapping[int, Any], tag: int, default: int) -> int:
    """Return the value of a tag, or the first of its values, which are one for each channel."""
    value = tags.get(tag, default)
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else default
