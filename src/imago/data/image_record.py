"""Describe images by fixed-size records: size, format, content hash, channel statistics and a thumbnail."""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from imago.errors import DataError
from imago.images import EXIF_ORIENTATION, FORMATS, MAX_PIXELS, is_animated, read_image

THUMBNAIL_PX = 16  # side; the thresholds of imago.dataset_check.duplicates were chosen at this size
KINDS = ("gray", "palette", "16-bit", "CMYK", "transparent", "animated", "rotated by EXIF")

# width, height: px, of the upright image.
# format: index in FORMATS; -1 for images that are not read from a file.
# kinds: bit k is set for KINDS[k].
# content_hash: of the file's bytes; in a million files, the probability of equal hashes of two files is below 1e-7.
# mean, mean_square: per channel, of all pixels in [0, 1].
# thumbnail: the whole image, resized without keeping its aspect ratio.
IMAGE_RECORD_DTYPE = np.dtype(
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


def examine_file(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[np.void, str]:
    """Return the record of an image file and "", or an empty one and why the file cannot be decoded."""
    record = np.zeros(1, IMAGE_RECORD_DTYPE)[0]
    try:
        data = path.read_bytes()
        _describe_pixels(record, read_image(data, max_pixels))
    except OSError as error:
        return record, f"cannot be read: {error.strerror}."
    except DataError as error:
        return record, str(error).removeprefix("the file ")
    record["content_hash"] = _hash(data)
    _describe_header(record, data)
    return record, ""


def examine_pixels(images: Iterable[np.ndarray], num_images: int) -> np.ndarray:
    """Return records (N,) of `IMAGE_RECORD_DTYPE` of `num_images` images that are not files, each uint8 (H, W, 3)."""
    records = np.zeros(num_images, IMAGE_RECORD_DTYPE)
    records["format"] = -1
    progress = tqdm(images, desc="examining", total=num_images, unit="image", leave=False, disable=None)
    for record, image in zip(records, progress, strict=True):
        pixels = np.ascontiguousarray(image)
        record["content_hash"] = _hash(pixels.tobytes())
        _describe_pixels(record, pixels)
    return records


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _describe_pixels(record: np.void, pixels: np.ndarray) -> None:
    record["height"], record["width"] = pixels.shape[:2]
    image = Image.fromarray(pixels)
    shares = np.array(image.histogram(), np.float64).reshape(3, 256) / (pixels.shape[0] * pixels.shape[1])
    levels = np.arange(256) / 255
    record["mean"], record["mean_square"] = shares @ levels, shares @ levels**2
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    # `reducing_gap` first reduces a large image to at least 4 times the thumbnail, which is many times faster; every
    # pixel still counts.
    record["thumbnail"] = np.asarray(image.resize(size, Image.Resampling.BOX, reducing_gap=4.0))


def _describe_header(record: np.void, data: bytes) -> None:
    """Fill in format and kinds of an image that was decoded before, so that no error can occur."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        record["format"] = FORMATS.index("JPEG" if image.format == "MPO" else str(image.format))
        is_16_bit_gray = image.mode.startswith("I;16")
        is_of_kind = {
            "gray": is_16_bit_gray or image.mode in ("1", "L", "LA"),
            "palette": image.mode in ("P", "PA"),
            # The bit depth is a byte of the header chunk (PNG 3rd ed., 11.2.1).
            "16-bit": is_16_bit_gray or (image.format == "PNG" and data[24] == 16),
            "CMYK": image.mode == "CMYK",
            "transparent": image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
            "animated": is_animated(image),
            "rotated by EXIF": image.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9),
        }
    record["kinds"] = sum(1 << bit for bit, name in enumerate(KINDS) if is_of_kind[name])
