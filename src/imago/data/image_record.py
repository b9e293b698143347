"""Decode image files to fixed-size records: size, format, content hash, channel statistics and a thumbnail."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imago.errors import DataError
from imago.images import EXIF_ORIENTATION, FORMATS, read_image

THUMBNAIL_PX = 16
KINDS = ("gray", "palette", "16-bit", "CMYK", "transparent", "animated", "turned by EXIF")
_MODES = {"1": "gray", "L": "gray", "LA": "gray", "P": "palette", "PA": "palette", "CMYK": "CMYK"}

# width, height: px, of the upright image.
# format: index in FORMATS; -1 of images that are not read from a file.
# kinds: bit k is set for KINDS[k].
# content_hash: of the file's bytes; in a million files, the probability of equal hashes of two files is below 1e-7.
# mean, mean_square: per channel, of all pixels in [0, 1].
# thumbnail: the whole image, squashed.
RECORD = np.dtype(
    [
        ("width", "<i4"),
        ("height", "<i4"),
        ("format", "i1"),
        ("kinds", "u1"),
        ("content_hash", "<u8"),
        ("mean", "<f4", 3),
        ("mean_square", "<f4", 3),
        ("thumbnail", "u1", (THUMBNAIL_PX, THUMBNAIL_PX, 3)),
    ]
)


def examine_files(paths: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Decode files.

    Returns:
        Records (N,) of `RECORD`, and the error message of each file, "" for a good one. The record of a bad file holds
        the content hash only.
    """
    records, errors = np.zeros(len(paths), RECORD), [""] * len(paths)
    for index, path in enumerate(paths):
        try:
            data = Path(path).read_bytes()
            records["content_hash"][index] = _hash(data)
            _describe_pixels(records, index, read_image(data))
            _describe_header(records, index, data)
        except OSError as error:
            errors[index] = f"cannot be read: {error.strerror}."
        except DataError as error:
            errors[index] = str(error).removeprefix("the image ")
    return records, errors


def examine_pixels(images: np.ndarray) -> np.ndarray:
    """Return records (N,) of `RECORD` of images in memory, uint8 (N, 3, H, W)."""
    records = np.zeros(len(images), RECORD)
    records["format"] = -1
    for index, image in enumerate(images):
        pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
        records["content_hash"][index] = _hash(pixels.tobytes())
        _describe_pixels(records, index, pixels)
    return records


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _describe_pixels(records: np.ndarray, index: int, pixels: np.ndarray) -> None:
    records["height"][index], records["width"][index] = pixels.shape[:2]
    image = Image.fromarray(pixels)
    counts = np.array(image.histogram(), np.float64).reshape(3, 256) / (pixels.shape[0] * pixels.shape[1])
    levels = np.arange(256) / 255
    records["mean"][index], records["mean_square"][index] = counts @ levels, counts @ levels**2
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    # `reducing_gap` first halves a large image a few times, which is many times faster; every pixel still counts.
    records["thumbnail"][index] = np.asarray(image.resize(size, Image.Resampling.BOX, reducing_gap=4.0))


def _describe_header(records: np.ndarray, index: int, data: bytes) -> None:
    """Fill in format and kinds of an image that was decoded before, so that no error can occur."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        records["format"][index] = FORMATS.index("JPEG" if image.format == "MPO" else str(image.format))
        is_16_bit_png = image.format == "PNG" and data[24] == 16  # byte of the header chunk, PNG 3rd ed., 11.2.1
        is_16_bit_gray = image.mode.startswith("I;16")
        kinds = {
            _MODES.get(image.mode, ""): True,
            "gray": is_16_bit_gray or _MODES.get(image.mode) == "gray",
            "16-bit": is_16_bit_gray or is_16_bit_png,
            "transparent": image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
            "animated": image.format in ("GIF", "PNG", "WEBP") and getattr(image, "is_animated", False),
            "turned by EXIF": image.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9),
        }
    records["kinds"][index] = sum(1 << bit for bit, name in enumerate(KINDS) if kinds.get(name))
