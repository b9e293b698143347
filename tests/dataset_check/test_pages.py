"""Contact sheets hold the images of a class under any class name; draws of the augmentation are laid out by epoch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from imago.data.sampling import BatchIndices
from imago.dataset_check.pages import draw_augmentations, draw_sheet, sheet_name
from imago.images import Preprocess
from imago.normalize import Normalize

STRIP, CELL, GAP = 30, 96, 2


def plain(level: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


@pytest.mark.parametrize("size", [32, 40, 96, 224])
def test_images_are_laid_out_in_rows_of_eight_in_their_order(size: int):
    page = draw_sheet([plain(10 * number, size) for number in range(10)], "ten")
    step = (96 // size * size if size <= 96 else 96) + GAP
    assert page.shape == (STRIP + 2 * step + GAP, 8 * step + GAP, 3)
    for number in range(10):
        top, left = STRIP + GAP + number // 8 * step, GAP + number % 8 * step
        assert (page[top : top + step - GAP, left : left + step - GAP] == 10 * number).all()
    assert (page[STRIP + GAP + step :, 2 * step + GAP :] == 255).all()


def test_small_images_are_enlarged_without_blurring():
    checks = np.array([[0, 255], [255, 0]], np.uint8)[..., None].repeat(3, axis=2)
    page = draw_sheet([checks], "checks")
    expected = np.kron([[0, 255], [255, 0]], np.ones((48, 48)))
    assert np.array_equal(page[STRIP + GAP : STRIP + GAP + CELL, GAP : GAP + CELL, 0], expected)


@pytest.mark.parametrize("text", ["ants", "猫: 3", "line\nbreak", "\udcff", "a" * 20_000, ""])
def test_any_caption_fits_the_strip(text: str):
    page = draw_sheet([plain(0)], text)
    assert page.shape[1] == 8 * (CELL + GAP) + GAP
    assert (page[:STRIP].max() > 200) == bool(text)


@pytest.mark.parametrize(
    ("label", "name", "expected"),
    [
        (3, "ants", "0003_ants.png"),
        (0, "../etc/pass wd", "0000____etc_pass_wd.png"),
        (12, "猫", "0012_猫.png"),
        (1, "\udcff\n", "0001___.png"),
        (1, "x" * 300, f"0001_{'x' * 40}.png"),
    ],
)
def test_a_class_has_a_file_name_that_is_valid_on_every_system(label: int, name: str, expected: str):
    assert sheet_name(label, name) == expected


class _Numbered:
    """Images whose pixels are the image's index; training adds 10 per epoch, the device 100 per epoch."""

    preprocess = Preprocess(size=4, resize=4, crop="center", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))

    def __init__(self, num_train: int) -> None:
        self.splits = SimpleNamespace(train=range(num_train))
        self.keys: list[tuple[int, int, int]] = []

    def training_dataset(self) -> SimpleNamespace:
        return SimpleNamespace(__getitems__=lambda key: self._batch(key, 10 * key.epoch_keys))

    def dataset(self, split: str) -> SimpleNamespace:
        assert split == "train"
        return SimpleNamespace(__getitems__=lambda key: self._batch(key, 0))

    def augment_batch(self, images: Tensor, labels: Tensor, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        self.keys.append(key)
        return Normalize(self.preprocess)(images + 100 * key[0]), torch.zeros(len(labels), 3)

    def _batch(self, key: BatchIndices, added: int) -> tuple[Tensor, Tensor]:
        values = torch.from_numpy(key.indices + added).to(torch.uint8)
        return values.view(-1, 1, 1, 1).expand(-1, 3, 4, 4), torch.zeros(len(values), dtype=torch.int64)


def cells(grid: np.ndarray) -> list[list[int]]:
    """Return a value of each cell of 4 px and a gap of 2 px."""
    return grid[3::6, 3::6, 0].tolist()


def test_each_row_is_an_image_as_evaluated_and_then_its_draws_epoch_by_epoch():
    data = _Numbered(num_train=9)
    grid = draw_augmentations(data, num_images=3, num_draws=2)
    assert (grid.dtype, grid.shape) == (np.uint8, (3 * 6 + 2, 3 * 6 + 2, 3))
    assert cells(grid) == [[0, 0, 110], [4, 4, 114], [8, 8, 118]]
    assert data.keys == [(0, 0, 0), (1, 0, 0)]


def test_a_small_training_set_shows_each_image_once():
    assert cells(draw_augmentations(_Numbered(num_train=2), num_images=8, num_draws=1)) == [[0, 0], [1, 1]]
