"""Augmentations of a whole batch: one draw per sample, soft labels that say what the image shows, no waiting."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional

from imago.augment.batch_augment import BatchAugment, blend, cutmix_boxes, erase
from imago.augment.settings import Augment

KEY = (3, 7, 0)  # epoch, batch, rank
NUM_CLASSES = 5


def batch_augment(seed: int = 0, **settings: object) -> BatchAugment:
    return BatchAugment(Augment(**settings), NUM_CLASSES, seed)


def pixels(count: int, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def numbered(count: int, side: int = 16) -> tuple[Tensor, Tensor]:
    """Samples whose every pixel is 1 + their place in the batch, and their labels."""
    images = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(-1, 3, side, side)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(count) % NUM_CLASSES


# What is off


def test_without_color_settings_the_bytes_come_back_untouched():
    images = pixels(4)
    assert batch_augment(mixup_alpha=1.0).colors(images, KEY) is images


def test_without_mixing_or_erasing_images_and_labels_come_back_untouched():
    images, labels = numbered(4)
    mixed, kept = batch_augment(brightness=0.5).mix(images, labels, KEY)
    assert mixed is images
    assert kept is labels


# Colors


def factors(name: str, width: float, count: int = 4000) -> Tensor:
    """The factors that were drawn, read off the images."""
    gray, color = torch.tensor([60, 60, 60]), torch.tensor([90, 60, 60])
    start = {"brightness": torch.stack([gray, gray], 1), "contrast": torch.stack([gray, gray + 20], 1)}
    images = start.get(name, torch.stack([color, color], 1)).to(torch.uint8).view(1, 3, 1, 2).expand(count, 3, 1, 2)
    out = batch_augment(**{name: width}).colors(images.contiguous(), KEY)
    if name == "brightness":
        return out[:, 0, 0, 0] / 60
    if name == "contrast":
        return (out[:, 0, 0, 1] - out[:, 0, 0, 0]) / 20
    return (out[:, 0, 0, 0] - out[:, 1, 0, 0]) / 30


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize(("width", "low", "high"), [(0.25, 0.75, 1.25), (1.5, 0.0, 2.5)])
def test_factors_are_even_over_the_range_of_torchvisions_color_jitter(name: str, width: float, low: float, high: float):
    drawn = factors(name, width)
    assert drawn.min() == pytest.approx(low, abs=0.01)
    assert drawn.max() == pytest.approx(high, abs=0.01)
    assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert drawn.std() == pytest.approx((high - low) / 12**0.5, rel=0.05)
    assert len(drawn.unique()) > 3000


def test_hue_turns_to_both_sides_and_no_further_than_asked():
    red = torch.tensor([200, 40, 40], dtype=torch.uint8).view(1, 3, 1, 1).repeat(2000, 1, 1, 1)
    out = batch_augment(hue=0.1).colors(red, KEY)
    turns = (out[:, 1] - out[:, 2]).flatten() / 160 / 6  # green grows to one side, blue to the other
    assert (turns.min().item(), turns.max().item()) == (pytest.approx(-0.1, abs=0.002), pytest.approx(0.1, abs=0.002))


def test_colors_change_in_torchvisions_order_and_range():
    images = pixels(32)
    ours = batch_augment(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1).colors(images, KEY)
    assert ours.dtype == torch.float32
    assert ours.min() >= -1e-3
    assert ours.max() <= 255
    uniforms = batch_augment()._generator(KEY, 201).random((4, 32))
    for place, (b, c, s, h) in enumerate(uniforms.T):
        image = functional.adjust_brightness(images[place] / 255, 0.6 + 0.8 * b)
        image = functional.adjust_saturation(functional.adjust_contrast(image, 0.6 + 0.8 * c), 0.6 + 0.8 * s)
        expected = functional.adjust_hue(image, 0.1 * (2 * h - 1)) * 255
        torch.testing.assert_close(ours[place], expected, rtol=0, atol=5e-3)


def test_one_color_setting_leaves_the_draws_of_the_others_as_they_were():
    images = pixels(8)
    both = batch_augment(brightness=0.3, hue=1e-9).colors(images, KEY)
    torch.testing.assert_close(both, batch_augment(brightness=0.3).colors(images, KEY), rtol=0, atol=2e-3)


# Erasing and cutout


def test_erasing_takes_one_rectangle_of_the_asked_area_from_as_many_as_asked():
    images = torch.ones(2000, 3, 40, 30)
    erased, _ = batch_augment(erase_probability=0.3, erase_scale=[0.1, 0.2]).mix(images, torch.zeros(2000), KEY)
    holes = (erased == 0).all(dim=1)
    assert torch.equal(holes, (erased == 0).any(dim=1))
    areas = holes.float().mean(dim=(1, 2))
    assert (areas > 0).float().mean() == pytest.approx(0.3, abs=0.04)
    found = areas[areas > 0]
    assert found.min() > 0.09
    assert found.max() < 0.22
    heights, widths = holes.any(dim=2).sum(dim=1), holes.any(dim=1).sum(dim=1)
    assert torch.equal(heights * widths, holes.sum(dim=(1, 2)))
    ratios = (heights / widths)[areas > 0]
    assert ratios.min() < 0.4
    assert ratios.max() > 2.5
    assert all(edge.any() for edge in (holes[:, 0], holes[:, -1], holes[:, :, 0], holes[:, :, -1]))


def test_a_rectangle_that_never_fits_is_not_erased():
    images = torch.ones(50, 3, 8, 8)
    erased, _ = batch_augment(erase_probability=1.0, erase_scale=[1.0, 1.0]).mix(images, torch.zeros(50), KEY)
    assert (erased == 1).all()


def test_cutout_takes_a_square_around_any_pixel_from_every_image():
    images = torch.ones(4000, 3, 12, 16)
    holes = (batch_augment(cutout_px=6).mix(images, torch.zeros(4000), KEY)[0] == 0)[:, 0]
    heights, widths = holes.any(dim=2).sum(dim=1), holes.any(dim=1).sum(dim=1)
    assert torch.equal(heights * widths, holes.sum(dim=(1, 2)))
    assert (heights.min(), heights.max(), widths.min(), widths.max()) == (3, 6, 3, 6)
    assert (widths == 6).float().mean() == pytest.approx(11 / 16, abs=0.03)  # columns 3 .. 13 have room on both sides


def test_erase_ignores_what_lies_outside_the_image():
    images = torch.ones(2, 3, 4, 4)
    erased = erase(images, np.array([[-3, 2], [1, 9], [-1, 3], [9, 9]]))
    assert torch.equal(erased[0, 0] == 0, torch.tensor([[True] * 4] + [[False] * 4] * 3))
    assert int((erased[1, 0] == 0).sum()) == 2
    assert (images == 1).all()


# MixUp and CutMix


def slow_blend(images, labels, shares, boxes, partners):
    """Mix one pixel after the other."""
    out, soft = torch.empty_like(images), torch.zeros(len(labels), NUM_CLASSES)
    for place, (share, other) in enumerate(zip(shares, partners, strict=True)):
        top, bottom, left, right = boxes[:, place]
        _, height, width = images[place].shape
        for row in range(height):
            for column in range(width):
                is_inside = top <= row < bottom and left <= column < right
                kept = 0.0 if is_inside else share
                pixel, other_pixel = images[place, :, row, column], images[other, :, row, column]
                out[place, :, row, column] = kept * pixel + (1 - kept) * other_pixel
                soft[place, labels[place]] += kept / (height * width)
                soft[place, labels[other]] += (1 - kept) / (height * width)
    return out, soft


def test_blending_equals_the_slow_reference():
    random = np.random.default_rng(0)
    images, labels = torch.randn(12, 3, 6, 5), torch.arange(12) % NUM_CLASSES
    rows, columns = np.sort(random.integers(0, 7, (2, 12)), axis=0), np.sort(random.integers(0, 6, (2, 12)), axis=0)
    boxes, shares, partners = np.stack([*rows, *columns]), random.random(12), random.permutation(12)
    mixed, soft = blend(images, labels, shares, boxes, partners, NUM_CLASSES)
    expected, expected_soft = slow_blend(images, labels, shares, boxes, partners)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(soft, expected_soft)


@pytest.mark.parametrize(
    "alphas", [{"mixup_alpha": 0.3}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 0.3, "cutmix_alpha": 1.0}]
)
def test_soft_labels_say_what_the_image_shows(alphas: dict[str, float]):
    images, labels = numbered(200)
    mixed, soft = batch_augment(**alphas).mix(images, labels, KEY)
    assert (soft.dtype, soft.shape) == (torch.float32, (200, NUM_CLASSES))
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(200))
    # Values are 1 + place: the mean of a mixed image tells the share of the partner, once the partner is known.
    partners = batch_augment(**alphas)._mixture(batch_augment()._generator(KEY, 204), 200, 16, 16)[2]
    own, other = images[:, 0, 0, 0], images[partners, 0, 0, 0]
    kept = torch.where(own == other, 1.0, (mixed.mean(dim=(1, 2, 3)) - other) / (own - other))
    expected = torch.zeros(200, NUM_CLASSES)
    expected[torch.arange(200), labels] += kept
    expected[torch.arange(200), labels[partners]] += 1 - kept
    torch.testing.assert_close(soft, expected, rtol=0, atol=1e-3)
    assert len(kept.unique()) > 30


def test_cutmix_pastes_one_rectangle_and_mixup_blends_every_pixel():
    images, labels = numbered(300)
    cut, _ = batch_augment(cutmix_alpha=1.0).mix(images, labels, KEY)
    assert max(len(image.unique()) for image in cut) == 2
    assert torch.equal(cut, cut.round())
    blended, _ = batch_augment(mixup_alpha=1.0).mix(images, labels, KEY)
    assert all(image.max() - image.min() < 1e-3 for image in blended)
    both, _ = batch_augment(mixup_alpha=1.0, cutmix_alpha=1.0).mix(images, labels, KEY)
    num_cut = sum(len(image.unique()) == 2 for image in both)
    num_blended = sum(bool((image != image.round()).any()) for image in both)
    assert num_cut == pytest.approx(150, abs=35)
    assert num_blended == pytest.approx(150, abs=35)


@pytest.mark.parametrize(("alpha", "variance"), [(0.2, 1 / (4 * 1.4)), (1.0, 1 / 12)])
def test_shares_follow_the_beta_distribution(alpha: float, variance: float):
    images, labels = torch.zeros(4000, 3, 1, 1), torch.zeros(4000, dtype=torch.int64)
    labels[::2] = 1
    shares, _, _ = batch_augment(mixup_alpha=alpha)._mixture(np.random.default_rng(0), 4000, 1, 1)
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(variance, rel=0.05)  # of Beta(a, a): 1 / (4 (2a + 1))
    _, soft = batch_augment(mixup_alpha=alpha).mix(images, labels, KEY)
    assert soft[:, :2].sum().item() == pytest.approx(4000, rel=1e-4)


def test_cutmix_boxes_have_the_ratio_of_the_image_and_are_cut_off_at_its_edges():
    top, bottom, left, right = cutmix_boxes(np.array([0.75, 0.75]), np.array([20, 0]), np.array([10, 39]), 40, 40)
    assert (top.tolist(), bottom.tolist()) == ([10, 0], [30, 10])
    assert (left.tolist(), right.tolist()) == ([0, 29], [20, 40])


def test_a_batch_of_one_image_mixes_with_itself():
    images, labels = numbered(1)
    mixed, soft = batch_augment(mixup_alpha=0.5, cutmix_alpha=1.0).mix(images, labels, KEY)
    torch.testing.assert_close(mixed, images)
    assert soft.tolist() == [[1, 0, 0, 0, 0]]


# Keys, memory and waiting

HEAVY = {"brightness": 0.4, "hue": 0.1, "erase_probability": 0.5, "cutout_px": 3, "mixup_alpha": 0.2, "cutmix_alpha": 1}


def whole(seed: int, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    ours = batch_augment(seed, **HEAVY)
    images = ours.colors(pixels(16), key).contiguous(memory_format=torch.channels_last)
    return ours.mix(images, torch.arange(16) % NUM_CLASSES, key)


def test_the_same_key_draws_the_same():
    for ours, again in zip(whole(1, KEY), whole(1, KEY), strict=True):
        assert torch.equal(ours, again)


@pytest.mark.parametrize(("seed", "key"), [(2, KEY), (1, (4, 7, 0)), (1, (3, 8, 0)), (1, (3, 7, 1))])
def test_another_seed_epoch_batch_or_rank_draws_anew(seed: int, key: tuple[int, int, int]):
    assert not any(torch.equal(ours, other) for ours, other in zip(whole(1, KEY), whole(seed, key), strict=True))


def test_neither_torchs_nor_numpys_generator_is_touched():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    whole(1, KEY)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_erasing_leaves_the_draws_of_mixing_as_they_were():
    labels = torch.arange(16) % NUM_CLASSES
    plain, erased = ({"mixup_alpha": 0.2}, {"mixup_alpha": 0.2, "erase_probability": 1.0, "cutout_px": 2})
    soft = [batch_augment(**settings).mix(torch.zeros(16, 3, 8, 8), labels, KEY)[1] for settings in (plain, erased)]
    assert torch.equal(*soft)


@pytest.mark.parametrize("settings", [{"erase_probability": 1.0}, {"cutout_px": 3}, {"mixup_alpha": 1.0}, HEAVY])
def test_memory_order_and_the_given_tensors_are_kept(settings: dict):
    images, labels = numbered(8)
    before = images.clone()
    mixed, _ = batch_augment(**settings).mix(images, labels, KEY)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


class _Waits(TorchDispatchMode):
    """Counts operations whose result the CPU has to wait for on another device."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique_dim", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.found += [name] if name in self.names else []
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device():
    ours, images, labels = (
        batch_augment(**HEAVY, contrast=0.1, saturation=0.1),
        pixels(8),
        torch.arange(8) % NUM_CLASSES,
    )
    with _Waits() as waits:
        ours.mix(ours.colors(images, KEY), labels, KEY)
    assert waits.found == []
