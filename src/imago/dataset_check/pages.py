"""Draw the pages of a check: a contact sheet of each class, and examples of the augmentation."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imago.data.sampling import BatchIndices
from imago.data.stratified import evenly_spread
from imago.dataset_check.checked_dataset import CheckedDataset
from imago.images import Preprocess, resize_and_crop
from imago.resources import available_cores
from imago.text import printable, shortened

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.data.dataset import Samples

_MAX_ON_ALL_SHEETS = 6_400  # images: 64 of each class up to 100 classes, fewer of each for more; our own choice
_MIN_ON_SHEET, _MAX_ON_SHEET = 8, 64  # images: one row, and as many rows as fit on a screen
_NUM_COLUMNS = 8  # images in a row; our own choice
_CELL_PX = 96  # our own choice, and approximate: small images are enlarged by an integer factor, large ones scaled down
_FONT_PX = 18  # of the caption; our own choice
_STRIP_PX = 30  # height of the caption, for one line of _FONT_PX; our own choice
_MAX_CAPTION = 150  # columns of text, more than fit on a page; drawing takes a time that grows fast; our own choice
_GAP_PX = 2  # white, between images; our own choice


def draw_sheets(
    checked: CheckedDataset, splits: Sequence["Samples"], preprocess: Preprocess
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield for each class a file name and a page of its good images in `splits`, uint8 (height, width, 3)."""
    starts = np.cumsum([0, *map(len, splits)])
    num_shown = min(_MAX_ON_SHEET, max(_MIN_ON_SHEET, _MAX_ON_ALL_SHEETS // len(checked.class_names)))

    def square(index: int) -> np.ndarray:
        split = checked.splits[index]
        return resize_and_crop(splits[split].read(index - starts[split], checked.class_names), preprocess)

    with ThreadPoolExecutor(available_cores()) as threads:
        for label, name in enumerate(checked.class_names):
            indices = checked.good_indices[checked.labels[checked.good_indices] == label]
            if len(indices):
                shown = indices[evenly_spread(len(indices), num_shown)].tolist()
                caption = f"{name}: {len(shown)} of {len(indices):,} images, cropped as for evaluation"
                squares = threads.map(square, shown)
                yield sheet_name(label, name), draw_sheet(list(squares), caption)


def draw_sheet(squares: Sequence[np.ndarray], caption: str) -> np.ndarray:
    """Lay out images uint8 (S, S, 3), at least one, below one line of text: uint8 (height, width, 3)."""
    import matplotlib  # for its font: Pillow's own has ASCII only

    side = _CELL_PX // len(squares[0]) * len(squares[0]) or _CELL_PX
    # Enlarged by an integer factor, a box filter repeats the pixels.
    cells = [np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BOX)) for square in squares]
    grid = _lay_out(np.stack(cells), _NUM_COLUMNS)
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), _FONT_PX)
    strip = Image.new("RGB", (grid.shape[1], _STRIP_PX), (32, 32, 32))
    text = shortened(printable(caption), _MAX_CAPTION)
    ImageDraw.Draw(strip).text((8, _STRIP_PX // 2), text, "white", font, anchor="lm")
    return np.concatenate([np.asarray(strip), grid])


def sheet_name(label: int, class_name: str) -> str:
    """Return the file name of a sheet; the label keeps names apart that differ in forbidden characters only."""
    letters = "".join(char if char.isalnum() or char in "-_" else "_" for char in class_name)
    return f"{label:04d}_{letters[:40]}.png"  # 40 characters are at most 160 bytes in UTF-8; a name may have 255


def draw_augmentations(data: "ImageDataModule", num_images: int = 8, num_draws: int = 8) -> np.ndarray:
    """Draw training images, one row each: as evaluated, then as augmented in the first epochs, one column each.

    The images are spread evenly over the training split. They form one batch, so that each is mixed with another one.
    Return uint8 (height, width, 3).
    """
    from imago.normalize import restore_colors  # loads torch, as the data module does

    indices = np.unique(np.linspace(0, len(data.splits.train) - 1, num_images).astype(np.int64))
    evaluated: Any = data.dataset("train")
    dataset: Any = data.training_dataset()
    columns = [evaluated.__getitems__(BatchIndices(0, indices))[0].numpy()]
    for epoch in range(num_draws):
        images, labels = dataset.__getitems__(BatchIndices(epoch, indices))
        augmented, _ = data.augment_batch(images, labels, (epoch, 0, 0))
        columns.append(restore_colors(augmented, data.preprocess.mean, data.preprocess.std).numpy())
    grid = np.stack(columns, axis=1)  # (N, 1 + draws, 3, H, W)
    return _lay_out(grid.reshape(-1, *grid.shape[2:]).transpose(0, 2, 3, 1), len(columns))


def _lay_out(images: np.ndarray, num_columns: int) -> np.ndarray:
    """Arrange images uint8 (N, H, W, 3) row by row on one page with white gaps."""
    num_missing = -len(images) % num_columns
    padded = np.pad(images, ((0, num_missing), (_GAP_PX, 0), (_GAP_PX, 0), (0, 0)), constant_values=255)
    _, height, width, _ = padded.shape
    page = padded.reshape(-1, num_columns, height, width, 3).swapaxes(1, 2).reshape(-1, num_columns * width, 3)
    return np.pad(page, ((0, _GAP_PX), (0, _GAP_PX), (0, 0)), constant_values=255)
