"""Random erasing and cutout: areas, ratios and positions of the rectangles."""

import numpy as np
import pytest
import torch

from imago.augment.random_erasing import erase, sample_rectangles, sample_squares


def holes_of(boxes: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Erase images of ones; return bool (N, H, W), True where they were erased."""
    erased = erase(torch.ones(boxes.shape[1], 3, height, width), boxes) == 0
    assert torch.equal(erased.all(dim=1), erased.any(dim=1))
    holes = erased[:, 0]
    heights, widths = holes.any(dim=2).sum(dim=1), holes.any(dim=1).sum(dim=1)
    assert torch.equal(heights * widths, holes.sum(dim=(1, 2)))  # rectangles
    return holes


def test_rectangles_have_the_requested_probability_area_and_ratio():
    boxes = sample_rectangles(np.random.default_rng(0), 0.3, [0.1, 0.2], (1000, 3, 40, 30))
    holes = holes_of(boxes, 40, 30)
    areas = holes.float().mean(dim=(1, 2))
    assert (areas > 0).float().mean() == pytest.approx(0.3, abs=0.05)
    assert areas[areas > 0].min() > 0.09
    assert areas.max() < 0.22
    ratios = (holes.any(dim=2).sum(dim=1) / holes.any(dim=1).sum(dim=1))[areas > 0]
    assert ratios.min() < 0.4
    assert ratios.max() > 2.5
    assert all(edge.any() for edge in (holes[:, 0], holes[:, -1], holes[:, :, 0], holes[:, :, -1]))


def test_a_rectangle_that_never_fits_is_not_erased():
    boxes = sample_rectangles(np.random.default_rng(0), 1.0, [1.0, 1.0], (50, 3, 8, 8))
    assert not holes_of(boxes, 8, 8).any()


def test_cutout_erases_a_square_around_any_pixel_of_every_image():
    holes = holes_of(sample_squares(np.random.default_rng(0), 6, (1500, 3, 12, 16)), 12, 16)
    heights, widths = holes.any(dim=2).sum(dim=1), holes.any(dim=1).sum(dim=1)
    assert (heights.min(), heights.max(), widths.min(), widths.max()) == (3, 6, 3, 6)
    assert (widths == 6).float().mean() == pytest.approx(11 / 16, abs=0.04)  # centers in columns 3 .. 13


def test_a_box_may_reach_over_the_edges_of_the_image():
    images = torch.ones(2, 3, 4, 4)
    erased = erase(images, np.array([[-3, 2], [1, 9], [-1, 3], [9, 9]]))
    assert torch.equal(erased[0, 0] == 0, torch.tensor([[True] * 4] + [[False] * 4] * 3))
    assert int((erased[1, 0] == 0).sum()) == 2
    assert (images == 1).all()
