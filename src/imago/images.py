"""Decode images and prepare them for evaluation.

This is the only decoder and the only evaluation-time resize of the project: validation, test, prediction and export
checks use it, so their pixels are identical. It needs Pillow and numpy only, and never imports torch.
"""

import contextlib
import io
import logging
import math
import struct
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from imago import tiff
from imago.errors import DataError, EmptyImageError, ImageError, LargeImageError, UnsupportedImageError
from imago.files import atomic_write

log = logging.getLogger(__name__)

# EPS and PDF are left out on purpose: Pillow runs an interpreter for them. MPO files of cameras count as JPEG.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
HEIC_SUFFIXES = {".heic", ".heif"}
with contextlib.suppress(ImportError):
    import pillow_heif  # type: ignore[import-not-found]  # an extra

    pillow_heif.register_heif_opener()
    FORMATS = (*FORMATS, "HEIF")
    SUFFIXES |= HEIC_SUFFIXES
# 180 MB once decoded, enough for a phone of 50 megapixels (8160x6144); checked before decoding, because a file of 12 KB
# may need 500 MB; our own choice.
MAX_PIXELS = 60_000_000
# Images up to this size are not resized: the first layer of a network is adapted to them instead; our own choice.
MAX_SMALL_PX = 64
SPLITS = ("train", "val", "test")  # of a dataset, in the order in which they are shown
CROPS = ("center", "squash", "squash_center")
INTERPOLATIONS = ("bilinear", "bicubic")  # both antialiased, as in the evaluation of published weights
TTA_MODES = ("none", "flip", "flip_shift", "flip_shift_unsure")  # test-time augmentation, see `imago.task.tta`
EXIF_ORIENTATION = 0x0112  # EXIF 2.3, section 4.6.4
_PNG_SCALES = {"L;2": 85, "L;4": 17}  # of gray values, by raw mode; Pillow does not apply them to the transparent one
_SAVE_AGAIN = "save it as 8-bit or 16-bit unsigned integers"

# The first bytes of these formats, to distinguish a damaged image from another kind of file.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_ISO_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")  # HEIC and AVIF
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)  # raised for damaged files
ANIMATED_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")  # the frames of TIFF and JPEG are pages and previews instead
_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_has_warned_of_animation = False  # once per process

# Pillow keeps this many blocks of 16 MB for the next images: the page faults of new ones can take longer than decoding.
Image.core.set_blocks_max(2)
# Pillow warns of some sizes above MAX_PIXELS, which `read_image` refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Its other warnings, such as of a corrupt EXIF tag, do not name the file; a filter, unlike catching, works in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of an image at evaluation.

    Attributes:
        size: side of the square network input, in pixels.
        resize: length that the shorter side is scaled to before the center is cropped, in pixels, at least `size`.
        crop: one of `CROPS`. "center" crops the center square; "squash" scales both sides to `size` and crops nothing;
            "squash_center" scales both sides to `resize`, and then crops the center square.
        mean: per channel (red, green, blue), of pixels scaled to [0, 1].
        std: per channel, of pixels scaled to [0, 1].
        interpolation: one of `INTERPOLATIONS`; records written before this field existed do not have it.
    """

    size: int
    resize: int
    crop: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"

    def to_dict(self) -> dict:
        """Return plain lists and numbers, for checkpoints and JSON."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def describe(self) -> str:
        """Describe the record in one line."""
        geometry = f"squash to {self.size} px" if self.crop == "squash" else f"{self.size} px"
        if self.crop != "squash" and self.resize != self.size:
            scaled = "shorter side" if self.crop == "center" else "squash"
            geometry = f"{scaled} to {self.resize} px, middle {self.size} px"
        mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (self.mean, self.std))
        method = "" if self.interpolation == "bilinear" else f" ({self.interpolation})"
        return f"{geometry}{method}, mean {mean}, std {std}"

    @classmethod
    def from_dict(cls, record: dict) -> "Preprocess":
        """Read a record that `to_dict` returned, from a file that may be damaged or untrusted.

        Raises:
            KeyError, TypeError, ValueError: if a field is missing, unknown or of another type, or has no valid value.
        """
        found = cls(**(record | {"mean": tuple(record["mean"]), "std": tuple(record["std"])}))
        is_square = type(found.size) is type(found.resize) is int and 0 < found.size <= found.resize <= MAX_PIXELS**0.5
        is_known = found.crop in CROPS and found.interpolation in INTERPOLATIONS
        colors = [value for value in (*found.mean, *found.std) if type(value) in (int, float) and math.isfinite(value)]
        if not is_square or not is_known or len(found.mean) != 3 or len(colors) != 6 or min(found.std) <= 0:
            raise ValueError(f"preprocess is {found}")
        return found

    def check_batch(self, images: Any) -> None:
        """Raise a ValueError unless `images`, an array or a tensor, are a batch of inputs: uint8 (N, 3, size, size)."""
        if not hasattr(images, "dtype"):
            raise ValueError(f"expected images as an array or tensor, got {type(images).__name__}.")
        dtype, shape = str(images.dtype).removeprefix("torch."), tuple(images.shape)
        inputs = (3, self.size, self.size)
        if dtype == "uint8" and len(shape) == 4 and shape[1:] == inputs:
            return
        remedy = "imago.images.read_image and resize_and_crop prepare an image file"
        if dtype != "uint8":
            remedy = "cast values in 0 .. 255 to uint8; multiply values in 0 .. 1 by 255 and round them first"
        elif shape == inputs:
            remedy = "add the batch axis with images[None]"
        elif shape[-3:] == (*inputs[1:], 3):
            remedy = "the channels come before height and width"
        elif len(shape) == 4 and shape[1] == 1:
            remedy = "repeat a gray channel three times"
        raise ValueError(f"expected images of uint8 (N, 3, {self.size}, {self.size}), got {dtype} {shape}; {remedy}.")


def read_image(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image to RGB, upright as its EXIF tag says.

    Transparency is composited on white, 16-bit gray is scaled and not clipped. Only the first frame of an animation is
    read. `source` is a file or its bytes; images of more than `max_pixels` are refused before any pixel is decoded.

    Returns:
        uint8 array (H, W, 3).

    Raises:
        DataError: naming the file, if it cannot be read.
        ImageError: naming it, if it is empty, damaged, too large, not an image, or of another kind; each has a class.
    """
    name = "the file" if isinstance(source, bytes) else str(source)
    try:
        if not isinstance(source, bytes) and not S_ISREG(source.stat().st_mode):  # a pipe might never end
            raise DataError(f"{name} cannot be read: it is not a regular file.")
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}; check the path and its permissions.") from error
    if not data:
        raise EmptyImageError(f"{name} is empty (0 bytes); delete it or copy it again.")
    fault = f"more than {max_pixels:,} pixels; scale it down, or raise max_pixels."
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)  # Pillow's own limit is twice that
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise LargeImageError(f"{name} is {image.width}x{image.height}, {fault}")
            if image.tile and isinstance(image.info.get("transparency"), int):
                image.info["transparency"] *= _PNG_SCALES.get(str(image.tile[0].args), 1)
            image.load()
            pixels = to_pixels(image, name)
            _warn_of_animation(image, name)
            return pixels
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LargeImageError(f"{name} has {fault}") from error
    except UnidentifiedImageError:
        raise _explain_unidentified(data, name) from None
    except _DECODER_ERRORS as error:
        fault = "it is truncated" if "truncated" in str(error).lower() else str(error)
        raise ImageError(f"{name} is damaged: {fault}; delete it or copy it again.") from error


def _explain_unidentified(data: bytes, name: str) -> ImageError:
    """Return the error for bytes that no decoder of Pillow accepts."""
    if data[4:8] == b"ftyp" and is_image(data) and "HEIF" not in FORMATS:
        remedy = "which needs another package: pip install pillow-heif, or convert it to JPEG"
        return UnsupportedImageError(f"{name} is a HEIC image, {remedy}.")
    if tags := tiff.read_tags(data):
        kind = f"a TIFF of {tiff.kind_of_pixels(tags)} pixels, which is not supported in this form"
        return UnsupportedImageError(f"{name} is {kind}, or damaged; {_SAVE_AGAIN}.")
    if data.startswith(_SIGNATURES):
        return ImageError(f"{name} is damaged: its header cannot be read; delete it or copy it again.")
    expected = "expected JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF"
    return UnsupportedImageError(f"{name} is not an image (starts with {data[:12]!r}); {expected}.")


def is_image(start: bytes) -> bool:
    """Return whether the first 12 bytes of a file are those of an image, except for BMP, which has two letters only."""
    is_iso = start[4:8] == b"ftyp" and start[8:12] in _ISO_BRANDS
    return is_iso or start.startswith(_SIGNATURES) or start[8:12] == b"WEBP"


def to_pixels(image: Image.Image, name: str) -> np.ndarray:
    """Convert an image of any mode to RGB, upright: uint8 (H, W, 3).

    Raises:
        UnsupportedImageError: naming the image, if its pixels are floating-point or 32-bit, or Pillow misreads them.
    """
    tags = getattr(image, "tag_v2", {})  # of TIFF
    if tiff.is_misread(tags):
        kind = "an uncompressed planar TIFF of over 8 bits"
        raise UnsupportedImageError(f"{name} is {kind}, which is not supported; compress it.")
    kind = tiff.kind_of_pixels(tags)
    if not kind.endswith("unsigned") or kind.startswith("32"):
        raise UnsupportedImageError(f"{name} holds {kind} pixels, whose range is unknown; {_SAVE_AGAIN}.")
    # Not ImageOps.exif_transpose: it also rewrites the tags, and fails if one of them has an invalid type.
    method = _TRANSPOSE_BY_ORIENTATION.get(image.getexif().get(EXIF_ORIENTATION, 1))
    if method is not None:
        image = image.transpose(method)
    if image.mode in ("F", "I"):
        kind = "floating-point or 32-bit"
        raise UnsupportedImageError(f"{name} holds {kind} pixels, whose range is unknown; {_SAVE_AGAIN}.")
    if image.mode.startswith("I;16"):
        # Converted to RGB by Pillow, 16-bit gray is clipped to 255, and stays a negative if 0 means white.
        values, transparent = np.asarray(image), image.info.get("transparency")
        gray = (values.astype(np.uint32) * 255 // tiff.largest_value(tags)).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(255 - gray if tiff.is_white_zero(tags) else gray)
        if transparent is not None:  # of PNG
            image.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # convert would copy an RGB image


def resize_and_crop(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Scale and crop an image, uint8 (H, W, 3), to the square that `preprocess` describes: uint8 (size, size, 3).

    Its mean and std are not used; normalization happens on the device.
    """
    height, width = pixels.shape[:2]
    size, (new_width, new_height) = preprocess.size, resized_sides(width, height, preprocess)
    # Python's round, with halves to even, as in torchvision's CenterCrop
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    if (width, height) == (new_width, new_height):
        return pixels[top : top + size, left : left + size]
    image, resample = Image.fromarray(pixels), Image.Resampling[preprocess.interpolation.upper()]
    square = (left, top, left + size, top + size)
    if new_width * new_height <= MAX_PIXELS:
        return np.asarray(image.resize((new_width, new_height), resample).crop(square))
    # Scaled as a whole, a 1 x 4000 image would take gigabytes. Only the cropped part is computed, with the same filter
    # up to the rounding of its weights: a pixel may differ by 1 or 2.
    scales = (width / new_width, height / new_height) * 2
    box = tuple(side * scale for side, scale in zip(square, scales, strict=True))
    return np.asarray(image.resize((size, size), resample, box=box))


def resized_sides(width: int, height: int, preprocess: Preprocess) -> tuple[int, int]:
    """Return the width and height of an image after scaling and before cropping, in pixels.

    Source: torchvision's Resize, which truncates the longer side; timm uses it as well.
    """
    if preprocess.crop != "center":
        side = preprocess.resize if preprocess.crop == "squash_center" else preprocess.size
        return side, side
    shorter = min(width, height)
    return int(preprocess.resize * width / shorter), int(preprocess.resize * height / shorter)


def write_png(file: Path, pixels: np.ndarray) -> None:
    """Write an image, uint8 (H, W, 3), as a PNG file, atomically."""
    with atomic_write(file, "wb") as content:
        Image.fromarray(pixels).save(content, "PNG")


def _warn_of_animation(image: Image.Image, name: str) -> None:
    global _has_warned_of_animation
    if not _has_warned_of_animation and is_animated(image):
        _has_warned_of_animation = True
        log.warning("%s is an animation; only the first frame of such images is used (logged once)", name)


def is_animated(image: Image.Image) -> bool:
    """Return whether an image has further frames; one that is damaged behind the first frame has none."""
    with contextlib.suppress(*_DECODER_ERRORS):
        return image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False)
    return False
