"""Normalization returns the same values for uint8 and float images, in channels_last memory format."""

import pytest
import torch

from imago.images import Preprocess
from imago.normalize import Normalize, restore_colors

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
PREPROCESS = Preprocess(size=4, resize=4, crop="center", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
PIXELS = torch.arange(2 * 3 * 16).mul(5).remainder(256).to(torch.uint8).reshape(2, 3, 4, 4)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_pixels_are_scaled_by_mean_and_std_of_their_channel(kind: torch.dtype, memory: torch.memory_format):
    images = PIXELS.to(kind).contiguous(memory_format=memory)
    before = images.clone()
    normalized = Normalize(PREPROCESS)(images)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(normalized, (PIXELS / 255 - mean) / std)
    assert normalized.dtype == torch.float32
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_fractions_of_a_pixel_value_are_kept():
    images = torch.full((1, 3, 2, 2), 102.25)
    assert Normalize(PREPROCESS)(images)[0, 0, 0, 0].item() == pytest.approx(0.25 / 51)


def test_restoring_undoes_the_loaders_normalization_to_the_last_bit():
    pixels = torch.arange(2 * 3 * 16 * 16).remainder(256).to(torch.uint8).reshape(2, 3, 16, 16)
    assert torch.equal(restore_colors(Normalize(PREPROCESS)(pixels), MEAN, STD), pixels)


def test_values_outside_the_range_are_clipped_and_do_not_wrap_around():
    images = torch.tensor([-100.0, 0.0, 100.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    assert restore_colors(images, MEAN, STD)[0, 0, 0].tolist() == [0, 102, 255]


def test_half_precision_images_are_restored():
    assert restore_colors(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16), MEAN, STD)[0, 1, 0, 0] == 128
