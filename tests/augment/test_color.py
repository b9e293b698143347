"""Color adjustments of a batch against torchvision's, image by image, and against known values."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from imago.augment.color import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation


def samples(count: int = 200) -> Tensor:
    """Noise with gray rows, images of few colors, a black and a white one."""
    images = torch.randint(0, 256, (count, 3, 8, 7), generator=torch.Generator().manual_seed(0)).float()
    images[:, :, 0] = images[:, :1, 0]
    images[:50] = (images[:50] > 128) * 255.0
    images[0], images[1] = 0.0, 255.0
    return images


def numbers(low: float, high: float, count: int = 200) -> Tensor:
    return torch.linspace(low, high, count)[torch.randperm(count, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (adjust_brightness, functional.adjust_brightness, numbers(0.0, 2.5)),
        (adjust_contrast, functional.adjust_contrast, numbers(0.0, 2.5)),
        (adjust_saturation, functional.adjust_saturation, numbers(0.0, 2.5)),
        (adjust_hue, functional.adjust_hue, numbers(-0.5, 0.5)),
    ],
)
def test_each_image_is_adjusted_by_its_own_factor_as_in_torchvision(ours, theirs, factors: Tensor):
    images = samples()
    expected = [theirs(image / 255, factor.item()) * 255 for image, factor in zip(images, factors, strict=True)]
    torch.testing.assert_close(ours(images, factors.view(-1, 1, 1, 1)), torch.stack(expected), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("turn", "color"),
    [
        (0.0, (200, 40, 40)),
        (1 / 3, (40, 200, 40)),
        (-1 / 3, (40, 40, 200)),
        (1 / 6, (200, 200, 40)),
        (0.5, (40, 200, 200)),
    ],
)
def test_red_is_rotated_to_the_colors_of_the_wheel(turn: float, color: tuple[int, int, int]):
    red = torch.tensor([200.0, 40.0, 40.0]).view(1, 3, 1, 1)
    assert adjust_hue(red, torch.full((1, 1, 1, 1), turn)).flatten().tolist() == pytest.approx(color, abs=1e-3)


@pytest.mark.parametrize("adjust", [adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue])
def test_results_are_in_the_range_of_pixels_in_any_memory_order(adjust):
    factors = numbers(-0.5, 0.5) if adjust is adjust_hue else numbers(0.0, 4.0)
    plain = adjust(samples(), factors.view(-1, 1, 1, 1))
    other = adjust(samples().contiguous(memory_format=torch.channels_last), factors.view(-1, 1, 1, 1))
    assert plain.min() >= -1e-3
    assert plain.max() <= 255
    torch.testing.assert_close(other, plain, rtol=0, atol=2e-3)
