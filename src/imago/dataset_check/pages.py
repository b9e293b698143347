"""Draw the pages of a check: a contact sheet of each class, and draws of the augmentation."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imago.data.dataset import LabeledFiles, Samples
from imago.data.sampling import BatchIndices
from imago.dataset_check.checked_set import CheckedSet
from imago.images import Preprocess, resize_and_crop
from imago.normalize import restore_colors
from imago.resources import available_cores

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule

_MAX_ON_ALL_SHEETS = 6_400  # images: 64 of each class up to 100 classes, fewer of each for more
_MIN_ON_SHEET, _MAX_ON_SHEET = 8, 64
_COLUMNS = 8
_CELL_PX = 96  # approximately: small images are enlarged by an integer factor, large ones scaled down
_FONT_PX = 18
_STRIP_PX = 30
_GAP_PX = 2
_NO_CHARACTER = "\uffff"  # Unicode 16.0, section 23.7: a font draws its glyph for missing characters


def draw_sheets(
    checked: CheckedSet, parts: Sequence[Samples], preprocess: Preprocess
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield for each class a file name and a page of its images, uint8 (height, width, 3).

    Args:
        checked: the data set.
        parts: its splits, in the order of `checked.split_names`.
        preprocess: how the images are prepared.
    """
    start = np.cumsum([0, *map(len, parts)])
    num_shown = min(_MAX_ON_SHEET, max(_MIN_ON_SHEET, _MAX_ON_ALL_SHEETS // len(checked.class_names)))

    def square(image: int) -> np.ndarray:
        part, index = parts[checked.splits[image]], image - start[checked.splits[image]]
        is_file = isinstance(part, LabeledFiles)
        pixels = part.read(index, checked.class_names) if is_file else part.images[index].transpose(1, 2, 0)
        return resize_and_crop(pixels, preprocess)

    with ThreadPoolExecutor(available_cores()) as threads:
        for label, name in enumerate(checked.class_names):
            images = checked.good[checked.labels[checked.good] == label]
            count = min(num_shown, len(images))
            if count:
                caption = f"{name}: {count} of {len(images):,} images, cropped as for evaluation"
                squares = threads.map(square, images[np.arange(count) * len(images) // count].tolist())
                yield sheet_name(label, name), draw_sheet(list(squares), caption)


def draw_sheet(squares: Sequence[np.ndarray], caption: str) -> np.ndarray:
    """Lay out images of one size, at least one.

    Args:
        squares: uint8 (S, S, 3) each.
        caption: one line; characters that the font lacks are escaped, and a line that is too long is cut.

    Returns:
        uint8 (height, width, 3).
    """
    cells = [_resize_to_cell(square) for square in squares]
    step = cells[0].shape[0] + _GAP_PX
    page = np.full((_STRIP_PX + math.ceil(len(cells) / _COLUMNS) * step, _COLUMNS * step + _GAP_PX, 3), 255, np.uint8)
    page[:_STRIP_PX] = _draw_caption(caption, page.shape[1])
    for index, cell in enumerate(cells):
        top, left = _STRIP_PX + index // _COLUMNS * step, _GAP_PX + index % _COLUMNS * step
        page[top : top + len(cell), left : left + len(cell)] = cell
    return page


def sheet_name(label: int, class_name: str) -> str:
    """Return the file name of a sheet; the label keeps names apart that differ in forbidden characters only."""
    letters = "".join(char if char.isalnum() or char in "-_" else "_" for char in class_name)
    return f"{label:04d}_{letters[:40]}.png"


def draw_augmentations(data: "ImageDataModule", num_images: int = 8, num_draws: int = 8) -> np.ndarray:
    """Draw training images, one row each: as evaluated, then as augmented in the first epochs.

    Args:
        data: after `set_up_data`.
        num_images: at most so many, spread evenly over the training split. They form one batch, so that each is mixed
            with another one of them.
        num_draws: number of epochs.

    Returns:
        uint8 (height, width, 3), with white gaps; the gap after the first column is wider.
    """
    indices = np.unique(np.linspace(0, len(data.splits.train) - 1, num_images).astype(np.int64))
    evaluated: Any = data.dataset("train")
    dataset: Any = data.training_dataset()
    originals, _ = evaluated.__getitems__(BatchIndices(0, indices))
    columns = [_column(originals.numpy())]
    for epoch in range(num_draws):
        images, labels = dataset.__getitems__(BatchIndices(epoch, indices))
        augmented, _ = data.augment_batch(images, labels, (epoch, 0, 0))
        column = _column(restore_colors(augmented, data.preprocess.mean, data.preprocess.std).numpy())
        columns.append(column if epoch == 0 else column[:, :, _GAP_PX:])
    return np.concatenate(columns, axis=2).transpose(1, 2, 0)


def _column(images: np.ndarray) -> np.ndarray:
    """Stack images, uint8 (N, 3, H, W), with white gaps around each; return (3, height, width)."""
    gap = _GAP_PX
    padded = np.pad(images, ((0, 0), (0, 0), (gap, 0), (gap, gap)), constant_values=255)
    column = padded.transpose(1, 0, 2, 3).reshape(3, -1, padded.shape[-1])
    return np.pad(column, ((0, 0), (0, gap), (0, 0)), constant_values=255)


def _resize_to_cell(square: np.ndarray) -> np.ndarray:
    size = square.shape[0]
    if size <= _CELL_PX:
        factor = _CELL_PX // size
        return square.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.asarray(Image.fromarray(square).resize((_CELL_PX, _CELL_PX), Image.Resampling.BOX))


def _draw_caption(text: str, width: int) -> np.ndarray:
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    try:
        font = ImageFont.truetype("DejaVuSans.ttf", _FONT_PX)  # on most systems; Pillow's own font has ASCII only
    except OSError:
        font = ImageFont.load_default(_FONT_PX)
    missing = bytes(font.getmask(_NO_CHARACTER))
    drawable = "".join(
        char if char.isprintable() and bytes(font.getmask(char)) != missing else char.encode("unicode_escape").decode()
        for char in text
    )
    strip = Image.new("RGB", (width, _STRIP_PX), (32, 32, 32))
    ImageDraw.Draw(strip).text((8, _STRIP_PX // 2), drawable, "white", font, anchor="lm")
    return np.asarray(strip)
