"""Colors are restored exactly, and images are laid out in their order."""

import torch

from imago.data.image_grid import lay_out, restore_colors
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


def test_half_precision_images_are_restored():
    assert restore_colors(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16), MEAN, STD)[0, 1, 0, 0] == 128


def test_images_are_laid_out_row_by_row_in_the_order_of_the_batch():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 6, 4)
    grid = lay_out(images, columns=3)
    assert grid.shape == (3, 2 * 8 + 2, 3 * 6 + 2)
    assert [int(grid[0, top, left]) for top in (2, 10) for left in (2, 8, 14)] == [0, 1, 2, 3, 4, 255]


def test_fewer_images_than_columns_leave_no_empty_cells():
    assert lay_out(torch.zeros(2, 3, 6, 4, dtype=torch.uint8), columns=8).shape == (3, 10, 2 * 6 + 2)
