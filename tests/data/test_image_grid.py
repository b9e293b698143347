"""The grid of augmented images: right images, right colors, right places."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from imago.data.image_grid import draw_augmentations, lay_out, restore_colors
from imago.data.sampling import BatchKey
from imago.images import Preprocess
from imago.normalize import Normalize

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def test_restoring_undoes_the_loaders_normalization_to_the_last_bit():
    pixels = torch.arange(2 * 3 * 16 * 16).remainder(256).to(torch.uint8).reshape(2, 3, 16, 16)
    preprocess = Preprocess(size=16, resize=16, crop="center", mean=tuple(MEAN), std=tuple(STD))
    assert torch.equal(restore_colors(Normalize(preprocess)(pixels), MEAN, STD), pixels)


def test_values_outside_the_range_are_clipped_and_do_not_wrap_around():
    images = torch.tensor([-100.0, 0.0, 100.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    assert restore_colors(images, MEAN, STD)[0, 0, 0].tolist() == [0, 102, 255]


def test_half_precision_images_are_understood():
    assert restore_colors(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16), MEAN, STD)[0, 1, 0, 0] == 128


def test_images_stand_in_rows_in_the_order_of_the_batch():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 6, 4)
    grid = lay_out(images, columns=3)
    assert grid.shape == (3, 2 * 8 + 2, 3 * 6 + 2)
    assert [int(grid[0, top, left]) for top in (2, 10) for left in (2, 8, 14)] == [0, 1, 2, 3, 4, 255]


def test_fewer_images_than_columns_leave_no_empty_cells():
    assert lay_out(torch.zeros(2, 3, 6, 4, dtype=torch.uint8), columns=8).shape == (3, 10, 2 * 6 + 2)


class _Numbered:
    """Samples whose every pixel is the sample's index; training adds 10 an epoch, the device 100 an epoch."""

    preprocess = Preprocess(size=4, resize=4, crop="center", mean=tuple(MEAN), std=tuple(STD))

    def __init__(self, num_train: int) -> None:
        self.splits = SimpleNamespace(train=range(num_train))
        self.keys: list[tuple[int, int, int]] = []

    def training_dataset(self) -> SimpleNamespace:
        return SimpleNamespace(__getitems__=lambda key: self._batch(key, 10 * key.epoch))

    def evaluation_dataset(self, split: str) -> SimpleNamespace:
        assert split == "train"
        return SimpleNamespace(__getitems__=lambda key: self._batch(key, 0))

    def augment_batch(self, images: Tensor, labels: Tensor, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        self.keys.append(key)
        return Normalize(self.preprocess)(images + 100 * key[0]), torch.zeros(len(labels), 3)

    def _batch(self, key: BatchKey, added: int) -> tuple[Tensor, Tensor]:
        values = torch.from_numpy(key.indices + added).to(torch.uint8)
        return values.view(-1, 1, 1, 1).expand(-1, 3, 4, 4), torch.zeros(len(values), dtype=torch.int64)


def cells(grid: np.ndarray) -> list[list[int]]:
    """The value in the middle of each cell of 4 px; the first column has its own white frame."""
    columns = [3, *range(8 + 3, grid.shape[1], 6)]
    return [[int(grid[row, column, 0]) for column in columns] for row in range(3, grid.shape[0], 6)]


def test_each_row_is_a_image_as_evaluated_and_then_its_draws_epoch_by_epoch():
    data = _Numbered(num_train=9)
    grid = draw_augmentations(data, num_images=3, num_draws=2)
    assert (grid.dtype, grid.shape) == (np.uint8, (3 * 6 + 2, 8 + 2 * 6 + 2, 3))
    assert cells(grid) == [[0, 0, 110], [4, 4, 114], [8, 8, 118]]
    assert data.keys == [(0, 0, 0), (1, 0, 0)]


def test_a_small_training_set_shows_each_image_once():
    assert cells(draw_augmentations(_Numbered(num_train=2), num_images=8, num_draws=1)) == [[0, 0], [1, 1]]
