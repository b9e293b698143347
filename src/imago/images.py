"""From bytes to the square the network sees: the one decoder and the one evaluation-time resize of the whole project.

Validation, test, prediction, export checks and the service all come through here, so they agree to the last bit.
Pillow and numpy only: importing this file never loads torch.
"""

import contextlib
import io
import logging
import struct
import threading
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from imago.errors import DataError

log = logging.getLogger(__name__)

# EPS, PDF and the like run interpreters and are left out on purpose. Cameras' several-image JPEG is a JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_PIXELS = 50_000_000  # 150 MB once decoded; checked before decoding, where a 12 KB file can ask for 500 MB

# How files of these formats begin, for telling a damaged image from something else.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")

# What Pillow raises of damaged files.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
_FILTERS = threading.Lock()
# Pillow keeps this many blocks of up to 16 MB for the next images. Given back to the system, they would come again as
# page faults, which can cost more than decoding: 8 ms instead of 3 for an image of 1000 x 750 pixels.
Image.core.set_blocks_max(2)
# Up to this size images stay as they are, and the network's first layer is fitted to them: one made for 224 px would
# leave 2 x 2 places of them.
SMALL_PX = 64
# How an image is scaled, always antialiased: what published weights were evaluated with.
INTERPOLATIONS = ("bilinear", "bicubic")
TTA = ("none", "flip", "flip_shift")  # test-time augmentation, see `imago.task.tta`
_ANIMATED = ("GIF", "WEBP", "PNG")  # TIFF and JPEG hold pages and previews instead
_has_told_of_animation = False  # once in a process
_ORIENTATION = 0x0112  # EXIF 2.3, section 4.6.4: how the stored rows and columns stand to the scene
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Preprocess:
    """What evaluation does to an image before the network sees it.

    Attributes:
        size: side of the square given to the network, in pixels.
        resize: what the shorter side is scaled to before the middle is cut out, in pixels, at least `size`.
        crop: "center" cuts the middle square; "squash" scales both sides to `size` and cuts nothing.
        mean: per channel (red, green, blue), of pixels scaled to [0, 1].
        std: per channel, likewise.
        interpolation: one of `INTERPOLATIONS`; records from before there was a choice have none.
    """

    size: int
    resize: int
    crop: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"

    def to_dict(self) -> dict:
        """Give plain lists and numbers, as checkpoints and JSON want them."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def describe(self) -> str:
        """Describe the record in one line for the start table."""
        cut = f"squash to {self.size} px" if self.crop == "squash" else f"{self.size} px"
        if self.crop == "center" and self.resize != self.size:
            cut = f"shorter side to {self.resize} px, middle {self.size} px"
        mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (self.mean, self.std))
        by = "" if self.interpolation == "bilinear" else f" ({self.interpolation})"
        return f"{cut}{by}, mean {mean}, std {std}"

    @classmethod
    def from_dict(cls, record: dict) -> "Preprocess":
        """Read back what `to_dict` wrote."""
        return cls(**(record | {"mean": tuple(record["mean"]), "std": tuple(record["std"])}))


def read_image(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image to RGB, upright as its EXIF tag says.

    Transparency is laid on white, 16-bit gray is scaled (not clipped), of an animation the first frame counts.

    Args:
        source: a file, or the bytes of one.
        max_pixels: larger images are refused before any pixel is decoded.

    Returns:
        uint8 array (H, W, 3).

    Raises:
        DataError: naming the file, when it is missing, empty, no image, damaged, too large or of floating point.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else _read_bytes(source)
    if not data:
        raise DataError(f"{name} is empty (0 bytes); delete it or copy it again.")
    try:
        with _open(data) as image:
            _refuse_size(image, name, max_pixels)
            image.load()
            pixels = np.asarray(_to_rgb(_upright(image), name))
            _tell_of_animation(image, name)
            return pixels
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} has more than {max_pixels:,} pixels; scale it down first.") from error
    except UnidentifiedImageError:
        raise DataError(f"{name} {_fault_of_header(data)}") from None
    except _DECODER_ERRORS as error:
        fault = "it is cut short" if _is_cut_short(data, error) else str(error)
        raise DataError(f"{name} is damaged: {fault}; delete it or copy it again.") from error


def resize_and_crop(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Scale and cut an image to the square that `preprocess` describes.

    Args:
        pixels: uint8 (H, W, 3).
        preprocess: mean and std are not read here; normalization happens on the device.

    Returns:
        uint8 (size, size, 3).
    """
    height, width = pixels.shape[:2]
    size = preprocess.size
    if preprocess.crop == "squash":
        target = (size, size)
    else:
        scale = preprocess.resize / min(height, width)
        target = (max(size, round(width * scale)), max(size, round(height * scale)))
    left, top = (target[0] - size) // 2, (target[1] - size) // 2
    if (width, height) == target:
        return pixels[top : top + size, left : left + size]
    # Only the part that is kept is computed: a 1 x 4000 image would otherwise be blown up to gigabytes.
    box = (
        left * width / target[0],
        top * height / target[1],
        (left + size) * width / target[0],
        (top + size) * height / target[1],
    )
    filter_ = Image.Resampling[preprocess.interpolation.upper()]
    return np.asarray(Image.fromarray(pixels).resize((size, size), filter_, box=box))


def _open(data: bytes) -> Image.Image:
    # Pillow only warns of what is refused here. The filters are global, and images are decoded in several threads.
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _tell_of_animation(image: Image.Image, name: str) -> None:
    global _has_told_of_animation
    if _has_told_of_animation or image.format not in _ANIMATED:
        return
    with contextlib.suppress(*_DECODER_ERRORS):  # GIF looks for a second frame: if it is damaged, nobody needs it
        if getattr(image, "is_animated", False):
            _has_told_of_animation = True
            log.warning("%s is an animation; of such images the first frame is used (told once)", name)


def _fault_of_header(data: bytes) -> str:
    if data.startswith(_SIGNATURES):
        return "is damaged: its header cannot be read; delete it or copy it again."
    return f"is not an image (starts with {data[:12]!r}); expected JPEG, PNG, WebP, BMP, GIF or TIFF."


def _is_cut_short(data: bytes, error: Exception) -> bool:
    # WebP's decoder does not say; its container gives the number of bytes that follow the first 8 (RFC 9649, 2.4).
    is_short_webp = data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")
    return is_short_webp or "truncated" in str(error).lower()


def _upright(image: Image.Image) -> Image.Image:
    """Turn as the EXIF tag says; Pillow's own function also rewrites the tags, and fails where one of them is odd."""
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _refuse_size(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise DataError(
            f"{name} is {image.width}x{image.height}, more than {max_pixels:,} pixels; scale it down first."
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("F", "I"):
        raise DataError(
            f"{name} holds floating-point or 32-bit pixels, whose range is unknown; save it as 8-bit or 16-bit."
        )
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit gray to 255 when asked for RGB; 65535 / 257 = 255 keeps the whole range instead.
        scaled = np.asarray(image).astype(np.int64) // 257
        image = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy
