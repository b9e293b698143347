"""An image set that needs no download: ten outlines, 32x32 RGB, the same pixels on every machine.

Drawing uses integers only (fixed point, a literal sine table, keyed random bits), so no rounding mode, vector unit or
library release can move a pixel. Color, shade, place, size, turn and noise are drawn without knowing the class, and
the outlines cover about the same area: only the outline tells the classes apart.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, auto
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from imago.seeding import random_bits, random_integers

# N images, C channels, H/W pixels, S sub-pixels along one side of an image
SPLIT_SIZES = {"train": 5000, "val": 1000, "test": 1000}
MEAN = (0.3255, 0.3287, 0.3325)  # of the train pixels in [0, 1]; tests/data/test_shapes.py recomputes both
STD = (0.2240, 0.2223, 0.2220)

_SEED = 2026  # of the set, not of a run: another value is another data set
_PIXELS = 32  # along one side of an image
_SUBPIXELS = 3  # along one side of a pixel: a pixel is covered to 0 .. 9 ninths
_CHUNK = 50  # images drawn at once; their sub-pixels fill 2 MB, which stays in the processor's cache

# Fixed-point units. Sub-pixel coordinates stay below 2**12 and a sine is at most 2**14, so int32 holds every product.
_PLACE = 2 * _SUBPIXELS  # places per pixel: the centers of sub-pixels are the odd places
_SIZE = 16  # sizes per pixel
_UNIT = 1024  # an outline's own coordinates: the size of a shape is this many
_SINE_BITS = 14
_ZOOM_BITS = 8
_TURN = 120  # steps of a full turn, divisible by 3, 4 and 5

# round(2**14 * sin(3 degrees * k)) for k = 0 .. 30, mirrored below to the full turn
_QUARTER = [0, 857, 1713, 2563, 3406, 4240, 5063, 5872, 6664, 7438, 8192, 8923, 9630, 10311, 10963, 11585, 12176]
_QUARTER += [12733, 13255, 13741, 14189, 14598, 14968, 15296, 15582, 15826, 16026, 16182, 16294, 16362, 16384]
_HALF = np.array(_QUARTER[:-1] + _QUARTER[:0:-1], np.int64)
_SINE = np.concatenate([_HALF, -_HALF])

# From coordinates u and v, int32, to whether the point lies inside, bool, same shape.
_Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]


class _Draw(IntEnum):
    """What a random number is for. The value is part of its key, so renumbering changes the data."""

    TURN = auto()
    SIZE = auto()
    X = auto()
    Y = auto()
    BACKGROUND = auto()
    SHAPE = auto()
    SHADE = auto()
    NOISE_LEVEL = auto()
    NOISE = auto()


@dataclass(frozen=True)
class _Samples:
    """Some samples of one split; each of their random numbers is a function of set, split, index and purpose."""

    split_number: int
    index_N: np.ndarray

    def integers(self, low: int, high: int, draw: _Draw, count: int = 1) -> np.ndarray:
        """Draw integers in [low, high): int64, shape (N, count)."""
        return random_integers(low, high, _SEED, self.split_number, self.index_N[:, None], draw, np.arange(count))

    def words(self, count: int, draw: _Draw) -> np.ndarray:
        """Draw 64-bit words: uint64, shape (N, count)."""
        return random_bits(_SEED, self.split_number, self.index_N[:, None], draw, np.arange(count))


def draw_split(split: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Draw a split, or the first `count` samples of it.

    Args:
        split: a key of `SPLIT_SIZES`.
        count: samples to draw; the whole split if None. Sample i is the same whatever the count.

    Returns:
        Samples, shape (N, 3, 32, 32), uint8, and labels, shape (N,), int64: indices into `CLASS_NAMES`, taking
        turns from 0, so that every run of ten samples holds each class once.

    Raises:
        ValueError: if there is no such split.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLIT_SIZES)}.")
    split_number = list(SPLIT_SIZES).index(split)
    index_N = np.arange(SPLIT_SIZES[split] if count is None else count)
    labels_N = index_N % len(CLASS_NAMES)
    images_NCHW = np.empty((len(index_N), 3, _PIXELS, _PIXELS), np.uint8)
    for label, name in enumerate(CLASS_NAMES):
        members = index_N[labels_N == label]
        for start in range(0, len(members), _CHUNK):
            samples = _Samples(split_number, members[start : start + _CHUNK])
            images_NCHW[samples.index_N] = _paint(_coverage(_OUTLINES[name], samples), samples)
    return images_NCHW, labels_N


def write_shapes(root: Path, sizes: Mapping[str, int] = SPLIT_SIZES) -> None:
    """Write the set as an image folder, `root/<split>/<class>/<index in the split>.png`, lossless.

    Everything is written to a folder beside it first and renamed at the end, so `root` exists only when it is complete.
    Two processes may draw at once: the first to finish counts, and the images are the same. What an interrupted call
    left beside `root` is removed.

    Args:
        root: folder to make; its parents are made too.
        sizes: number of samples to write of each split.

    Raises:
        FileExistsError: if `root` exists.
    """
    if root.exists():
        raise FileExistsError(f"{root} exists already; delete it to have the shapes drawn again.")
    for left_over in root.parent.glob(f"{root.name}.*.part"):
        if (pid := int(left_over.suffixes[-2][1:])) == os.getpid() or not _is_alive(pid):
            shutil.rmtree(left_over)
    part = root.with_name(f"{root.name}.{os.getpid()}.part")
    with tqdm(total=sum(sizes.values()), desc="Drawing shapes", unit="image", disable=None) as progress:
        for split, size in sizes.items():
            images_NCHW, labels_N = draw_split(split, size)
            for name in CLASS_NAMES:
                (part / split / name).mkdir(parents=True)
            for index, (image_HWC, label) in enumerate(zip(images_NCHW.transpose(0, 2, 3, 1), labels_N, strict=True)):
                Image.fromarray(image_HWC).save(part / split / CLASS_NAMES[label] / f"{index:04d}.png")
                progress.update()
    try:
        part.rename(root)
    except OSError:  # somebody else was faster
        if not root.is_dir():
            raise
        shutil.rmtree(part)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 asks without touching
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, as somebody else's
        return True
    return True


def _coverage(outline: _Outline, samples: _Samples) -> np.ndarray:
    """Count the sub-pixels of each pixel that lie inside the outline: int32 in 0 .. 9, shape (N, H, W)."""
    turn = samples.integers(0, _TURN, _Draw.TURN)
    size = samples.integers(15 * _SIZE // 2, 10 * _SIZE + 1, _Draw.SIZE)  # 7.5 to 10 pixels
    # Up to 3 pixels off the middle: with a reach of 1.3 sizes, even the farthest tip stays inside the image.
    x, y = (samples.integers(13 * _PLACE, 19 * _PLACE + 1, draw) for draw in (_Draw.X, _Draw.Y))
    zoom = (_UNIT * _SIZE << _ZOOM_BITS) // (size * _PLACE)
    along, across = zoom * _SINE[(turn + _TURN // 4) % _TURN], zoom * _SINE[turn]
    centers_S = np.arange(1, _PLACE * _PIXELS, 2)
    dx, dy = centers_S - x, centers_S - y
    # Each coordinate is one part per column plus one part per row: only their sum is as large as the image.
    u_column, u_row, v_column, v_row = (
        (product_NS >> (_ZOOM_BITS + _SINE_BITS)).astype(np.int32)
        for product_NS in (dx * along, dy * across, -dx * across, dy * along)
    )
    inside_NSS = outline(u_column[:, None, :] + u_row[:, :, None], v_column[:, None, :] + v_row[:, :, None])
    blocks = inside_NSS.reshape(-1, _PIXELS, _SUBPIXELS, _PIXELS, _SUBPIXELS)
    return blocks.sum(axis=(2, 4), dtype=np.int32)


def _paint(coverage_NHW: np.ndarray, samples: _Samples) -> np.ndarray:
    """Blend a light shape into a darker background, then add shade and noise: uint8, shape (N, 3, H, W)."""
    background_NC = samples.integers(0, 136, _Draw.BACKGROUND, 3).astype(np.int32)
    shape_NC = samples.integers(120, 256, _Draw.SHAPE, 3).astype(np.int32)
    slope_x, slope_y = samples.integers(-30, 31, _Draw.SHADE, 2).astype(np.int32).T[:, :, None, None]
    ramp = np.arange(1 - _PIXELS, _PIXELS, 2, dtype=np.int32)
    shade_NHW = (slope_x * ramp + slope_y * ramp[:, None]) // _PIXELS
    noise_level = samples.integers(2, 21, _Draw.NOISE_LEVEL).astype(np.int32)[:, :, None]
    words_NHW = samples.words(_PIXELS**2, _Draw.NOISE).reshape(coverage_NHW.shape)
    images_NCHW = np.empty((len(coverage_NHW), 3, _PIXELS, _PIXELS), np.uint8)
    for channel in range(3):
        # 16 of a word's 64 bits per channel, centerd on zero.
        random_NHW = ((words_NHW >> np.uint64(16 * channel)) & np.uint64(0xFFFF)).astype(np.int32) - 0x8000
        noise_NHW = (random_NHW * noise_level) >> 15
        background, shape = background_NC[:, channel, None, None], shape_NC[:, channel, None, None]
        flat_NHW = background + (shape - background) * coverage_NHW // _SUBPIXELS**2
        images_NCHW[:, channel] = np.clip(flat_NHW + shade_NHW + noise_NHW, 0, 255)
    return images_NCHW


def _disc(u: np.ndarray, v: np.ndarray, radius: int) -> np.ndarray:
    return u * u + v * v <= radius * radius


def _box(u: np.ndarray, v: np.ndarray, half_width: int, half_height: int) -> np.ndarray:
    return (np.abs(u) <= half_width) & (np.abs(v) <= half_height)


def _sides_facing(u: np.ndarray, v: np.ndarray, sides: int, apothem: int) -> np.ndarray:
    """Count the sides of a regular polygon whose line has the point on the polygon's side: int8, shape of `u`.

    All sides: the point is in the polygon. All but one of five: it is in the pentagram.
    """
    count = np.zeros(u.shape, np.int8)
    for step in range(0, _TURN, _TURN // sides):
        sine, cosine = int(_SINE[step]), int(_SINE[(step + _TURN // 4) % _TURN])
        count += u * cosine + v * sine <= apothem << _SINE_BITS
    return count


# The measures give every outline an area of 1.8 to 1.9 _UNIT**2 and a reach of at most 1.3 _UNIT.
_OUTLINES: dict[str, _Outline] = {
    "arrow": lambda u, v: (_sides_facing(200 - u, v, 3, 520) == 3) | _box(u + 660, v, 520, 300),
    "bars": lambda u, v: _box(u, np.abs(v) - 580, 960, 250),
    "circle": lambda u, v: _disc(u, v, 790),
    "crescent": lambda u, v: _disc(u - 240, v, 1080) & ~_disc(u - 720, v, 780),
    "cross": lambda u, v: _box(u, v, 1060, 260) | _box(u, v, 260, 1060),
    "hourglass": lambda u, v: (np.abs(v) <= 940) & (np.abs(u) <= np.maximum(np.abs(v), 240)),
    "ring": lambda u, v: _disc(u, v, 1000) & ~_disc(u, v, 610),
    "square": lambda u, v: _box(u, v, 700, 700),
    "star": lambda u, v: _sides_facing(u, v, 5, 405) >= 4,
    "triangle": lambda u, v: _sides_facing(u, v, 3, 610) == 3,
}
CLASS_NAMES = tuple(sorted(_OUTLINES))
