"""Provide a synthetic dataset: images of ten shapes, 32x32 RGB, with the same pixels on every machine.

Drawing uses integers only (fixed point, a literal sine table, counter-based random bits), so no rounding mode, CPU or
library release changes a pixel. Color, shade, position, size, rotation and noise are drawn independently of the class,
and all outlines cover about the same area: only the outline distinguishes the classes.
"""

from collections.abc import Callable

import numpy as np

from imago.data.datamodule import ClassNamesAndSplits, ImageDataModule
from imago.data.dataset import LabeledArray, Samples
from imago.images import Preprocess
from imago.seeding import random_bits, random_integers

# N images, C channels, H/W pixels, S sub-pixels along one side of an image
SPLIT_SIZES = {"train": 5000, "val": 1000, "test": 1000}
MEAN = (0.3255, 0.3287, 0.3325)  # of the train pixels in [0, 1]; tests/data/test_shapes.py recomputes both
STD = (0.2240, 0.2223, 0.2220)

_SEED = 2026  # of the dataset, not of a run: another value is another dataset
# Purposes of random numbers, a part of their keys: renumbering changes the data.
_ROTATION_KEY, _SIZE_KEY, _X_KEY, _Y_KEY, _BACKGROUND_KEY, _SHAPE_KEY = range(1, 7)
_SHADE_KEY, _NOISE_LEVEL_KEY, _NOISE_KEY = range(7, 10)

_SIDE_PX = 32
_NUM_SUBPIXELS = 3  # along one side of a pixel, whose coverage is 0 .. 9 ninths
_BATCH_SIZE = 50  # images drawn at once; their sub-pixels take 2 MB, which stays in the processor's cache

# Fixed-point units. Sub-pixel coordinates stay below 2**12 and a sine is at most 2**14, so int32 holds every
# product of the two; the products in `_coverage` are int64.
_POSITION_UNITS = 2 * _NUM_SUBPIXELS  # position units per pixel: the centers of sub-pixels are at odd positions
_SIZE_UNITS = 16  # per pixel: sizes are drawn in steps of 1/16 px; our own choice
_UNIT = 1024  # size of a shape in the coordinates of its outline; our own choice
_SINE_BITS = 14  # fractional bits of a sine; our own choice
_ZOOM_BITS = 8  # fractional bits of `zoom`; our own choice
_FULL_TURN = 120  # steps, divisible by 3, 4 and 5

# round(2**14 * sin(3 degrees * k)) for k = 0 .. 30, mirrored below to the full turn
_QUARTER_SINE = [0, 857, 1713, 2563, 3406, 4240, 5063, 5872, 6664, 7438, 8192, 8923, 9630, 10311, 10963, 11585, 12176]
_QUARTER_SINE += [12733, 13255, 13741, 14189, 14598, 14968, 15296, 15582, 15826, 16026, 16182, 16294, 16362, 16384]
_HALF_SINE = np.array(_QUARTER_SINE[:-1] + _QUARTER_SINE[:0:-1], np.int64)
_SINE = np.concatenate([_HALF_SINE, -_HALF_SINE])
_COSINE = np.roll(_SINE, -_FULL_TURN // 4)

# Maps coordinates u and v, int32, to whether the point is inside, bool, same shape.
_Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]


class ShapesDataModule(ImageDataModule):
    """Draw ten shapes at 32 px into memory, in about a second; without files or downloads."""

    def load_dataset(self) -> ClassNamesAndSplits:
        """Draw the three splits, sorted by class."""
        splits: dict[str, Samples] = {}
        for split in SPLIT_SIZES:
            images_NCHW, labels_N = render_split(split)
            order = np.argsort(labels_N, kind="stable")
            names = tuple(f"{split}/{CLASS_NAMES[labels_N[index]]}/{index:04d}.png" for index in order)
            splits[split] = LabeledArray(images_NCHW[order], labels_N[order], names)
        return CLASS_NAMES, splits

    def default_preprocess(self) -> Preprocess:
        """Keep the size; use mean and std of the training images."""
        return Preprocess(size=_SIDE_PX, resize=_SIDE_PX, crop="center", mean=MEAN, std=STD)


def render_split(split: str, num_samples: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Render a split, or its first `num_samples` samples.

    Args:
        split: a key of `SPLIT_SIZES`.
        num_samples: None renders the whole split. Sample i does not depend on it.

    Returns:
        Images, uint8, shape (N, 3, 32, 32), and labels, int64, shape (N,): sample i has label i modulo 10.
    """
    split_number = list(SPLIT_SIZES).index(split)
    index_N = np.arange(SPLIT_SIZES[split] if num_samples is None else num_samples)
    labels_N = index_N % len(CLASS_NAMES)
    images_NCHW = np.empty((len(index_N), 3, _SIDE_PX, _SIDE_PX), np.uint8)
    for label, name in enumerate(CLASS_NAMES):
        members = index_N[labels_N == label]
        for start in range(0, len(members), _BATCH_SIZE):
            batch = members[start : start + _BATCH_SIZE]
            key = (_SEED, split_number, batch[:, None])
            images_NCHW[batch] = _paint(_coverage(_OUTLINES[name], key), key)
    return images_NCHW, labels_N


def _integers(key: tuple, purpose: int, low: int, high: int, count: int = 1) -> np.ndarray:
    """Draw integers in [low, high) for the N samples of `key`: int64, shape (N, count)."""
    return random_integers(low, high, *key, purpose, np.arange(count))


def _coverage(outline: _Outline, key: tuple) -> np.ndarray:
    """Count the sub-pixels of each pixel that are inside the outline: int32 in 0 .. 9, shape (N, H, W)."""
    rotation = _integers(key, _ROTATION_KEY, 0, _FULL_TURN)
    size = _integers(key, _SIZE_KEY, 15 * _SIZE_UNITS // 2, 10 * _SIZE_UNITS + 1)  # 7.5 to 10 pixels
    # Up to 3 pixels off the center: with a radius of 1.3 sizes, the farthest corner stays inside the image.
    x, y = (_integers(key, purpose, 13 * _POSITION_UNITS, 19 * _POSITION_UNITS + 1) for purpose in (_X_KEY, _Y_KEY))
    zoom = (_UNIT * _SIZE_UNITS << _ZOOM_BITS) // (size * _POSITION_UNITS)
    scaled_cosine, scaled_sine = zoom * _COSINE[rotation], zoom * _SINE[rotation]
    centers_S = np.arange(1, _POSITION_UNITS * _SIDE_PX, 2)
    dx, dy = centers_S - x, centers_S - y
    # Each coordinate is a sum of a column term and a row term: only the sum has the size of the image.
    u_column, u_row, v_column, v_row = (
        (product_NS >> (_ZOOM_BITS + _SINE_BITS)).astype(np.int32)
        for product_NS in (dx * scaled_cosine, dy * scaled_sine, -dx * scaled_sine, dy * scaled_cosine)
    )
    inside_NSS = outline(u_column[:, None, :] + u_row[:, :, None], v_column[:, None, :] + v_row[:, :, None])
    blocks = inside_NSS.reshape(-1, _SIDE_PX, _NUM_SUBPIXELS, _SIDE_PX, _NUM_SUBPIXELS)
    return blocks.sum(axis=(2, 4), dtype=np.int32)


def _paint(coverage_NHW: np.ndarray, key: tuple) -> np.ndarray:
    """Blend a light shape into a darker background, then add shade and noise: uint8, shape (N, 3, H, W)."""
    # Background 0 .. 135 and shape 120 .. 255 overlap by 16 values; our own choice.
    background_NC = _integers(key, _BACKGROUND_KEY, 0, 136, 3).astype(np.int32)
    shape_NC = _integers(key, _SHAPE_KEY, 120, 256, 3).astype(np.int32)
    slope_x, slope_y = _integers(key, _SHADE_KEY, -30, 31, 2).astype(np.int32).T[:, :, None, None]
    # Slopes of at most 30 levels from the center to an edge; our own choice.
    ramp = np.arange(1 - _SIDE_PX, _SIDE_PX, 2, dtype=np.int32)
    shade_NHW = (slope_x * ramp + slope_y * ramp[:, None]) // _SIDE_PX
    noise_level = _integers(key, _NOISE_LEVEL_KEY, 2, 21).astype(np.int32)[:, :, None]
    # Amplitudes of 2 .. 20 levels, in both directions; our own choice.
    words_NHW = random_bits(*key, _NOISE_KEY, np.arange(_SIDE_PX**2)).reshape(coverage_NHW.shape)
    images_NCHW = np.empty((len(coverage_NHW), 3, _SIDE_PX, _SIDE_PX), np.uint8)
    for channel in range(3):
        # 16 of the 64 bits of a word per channel, centered on zero.
        random_NHW = ((words_NHW >> np.uint64(16 * channel)) & np.uint64(0xFFFF)).astype(np.int32) - 0x8000
        noise_NHW = (random_NHW * noise_level) >> 15
        background, shape = background_NC[:, channel, None, None], shape_NC[:, channel, None, None]
        flat_NHW = background + (shape - background) * coverage_NHW // _NUM_SUBPIXELS**2
        images_NCHW[:, channel] = np.clip(flat_NHW + shade_NHW + noise_NHW, 0, 255)
    return images_NCHW


def _disc(u: np.ndarray, v: np.ndarray, radius: int) -> np.ndarray:
    return u * u + v * v <= radius * radius


def _box(u: np.ndarray, v: np.ndarray, half_width: int, half_height: int) -> np.ndarray:
    return (np.abs(u) <= half_width) & (np.abs(v) <= half_height)


def _count_inner_sides(u: np.ndarray, v: np.ndarray, sides: int, apothem: int) -> np.ndarray:
    """Count the sides of a regular polygon for which the point is on the inner side: int8, shape of `u`.

    If it is on the inner side of all sides, it is in the polygon; for all but one of five, in the pentagram.
    """
    count = np.zeros(u.shape, np.int8)
    for step in range(0, _FULL_TURN, _FULL_TURN // sides):
        count += u * int(_COSINE[step]) + v * int(_SINE[step]) <= apothem << _SINE_BITS
    return count


# With these numbers every outline has an area of 1.8 to 1.9 _UNIT**2 and a radius of at most 1.3 _UNIT.
_OUTLINES: dict[str, _Outline] = {
    "arrow": lambda u, v: (_count_inner_sides(200 - u, v, 3, 520) == 3) | _box(u + 660, v, 520, 300),
    "bars": lambda u, v: _box(u, np.abs(v) - 580, 960, 250),
    "circle": lambda u, v: _disc(u, v, 790),
    "crescent": lambda u, v: _disc(u - 240, v, 1080) & ~_disc(u - 720, v, 780),
    "cross": lambda u, v: _box(u, v, 1060, 260) | _box(u, v, 260, 1060),
    "hourglass": lambda u, v: (np.abs(v) <= 940) & (np.abs(u) <= np.maximum(np.abs(v), 240)),
    "ring": lambda u, v: _disc(u, v, 1000) & ~_disc(u, v, 610),
    "square": lambda u, v: _box(u, v, 700, 700),
    "star": lambda u, v: _count_inner_sides(u, v, 5, 405) >= 4,
    "triangle": lambda u, v: _count_inner_sides(u, v, 3, 610) == 3,
}
CLASS_NAMES = tuple(sorted(_OUTLINES))
