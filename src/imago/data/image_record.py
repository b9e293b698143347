"""What is kept of one image after it was decoded once: a fixed-size record, so that 100,000 of them are one array."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imago.errors import DataError
from imago.images import FORMATS, read_image

THUMBNAIL_PX = 16
KINDS = ("gray", "palette", "16-bit", "CMYK", "transparent", "animated", "turned by EXIF")
_MODES = {"1": "gray", "L": "gray", "LA": "gray", "P": "palette", "PA": "palette", "CMYK": "CMYK"}
_ORIENTATION = 0x0112  # EXIF 2.3, section 4.6.4

# width, height: px, as the image is used, so after turning.
# format: place in FORMATS; -1 of images that never were a file.
# kinds: bit k is set for KINDS[k].
# content_hash: of the file's bytes. 64 bits: with a million files two different ones agree with a chance below 1e-7.
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
        Records (N,) of `RECORD`, and what is wrong with each file, "" for a good one. Of a bad file only the content
        hash is filled in.
    """
    records, errors = np.zeros(len(paths), RECORD), [""] * len(paths)
    for place, path in enumerate(paths):
        try:
            data = Path(path).read_bytes()
            records["content_hash"][place] = _hash(data)
            _describe_pixels(records, place, read_image(data))
            _describe_header(records, place, data)
        except OSError as error:
            errors[place] = f"cannot be read: {error.strerror}."
        except DataError as error:
            errors[place] = str(error).removeprefix("the image ")
    return records, errors


def examine_pixels(images: np.ndarray) -> np.ndarray:
    """Describe images in memory, uint8 (N, 3, H, W), by records (N,) of `RECORD`."""
    records = np.zeros(len(images), RECORD)
    records["format"] = -1
    for place, image in enumerate(images):
        pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
        records["content_hash"][place] = _hash(pixels.tobytes())
        _describe_pixels(records, place, pixels)
    return records


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _describe_pixels(records: np.ndarray, place: int, pixels: np.ndarray) -> None:
    records["height"][place], records["width"][place] = pixels.shape[:2]
    sample = Image.fromarray(pixels)
    counts = np.array(sample.histogram(), np.float64).reshape(3, 256) / (pixels.shape[0] * pixels.shape[1])
    levels = np.arange(256) / 255
    records["mean"][place], records["mean_square"][place] = counts @ levels, counts @ levels**2
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    # Every pixel counts; the gap lets a large image be halved a few times first, which is many times faster.
    records["thumbnail"][place] = np.asarray(sample.resize(size, Image.Resampling.BOX, reducing_gap=4.0))


def _describe_header(records: np.ndarray, place: int, data: bytes) -> None:
    """Tell format and kinds; the image is known to be a good one, so nothing can fail here."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as sample:
        records["format"][place] = FORMATS.index("JPEG" if sample.format == "MPO" else str(sample.format))
        is_16_bit_png = sample.format == "PNG" and data[24] == 16  # byte of the header chunk, PNG 3rd ed., 11.2.1
        flags = {
            "16-bit": sample.mode.startswith("I;16") or is_16_bit_png,
            "transparent": sample.mode in ("RGBA", "LA", "PA") or "transparency" in sample.info,
            "animated": sample.format in ("GIF", "PNG", "WEBP") and getattr(sample, "is_animated", False),
            "turned by EXIF": sample.getexif().get(_ORIENTATION, 1) in range(2, 9),
        }
        names = {_MODES.get(sample.mode, ""), *(name for name, is_set in flags.items() if is_set)}
        if sample.mode.startswith("I;16"):
            names.add("gray")
    records["kinds"][place] = sum(1 << bit for bit, name in enumerate(KINDS) if name in names)
