"""Augmentations of a whole batch: one draw per sample, colors as torchvision's, soft labels, no wait for the device."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional

from imago.augment.batch_augment import BatchAugment, adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation
from imago.augment.settings import Augment

KEY = (3, 7, 0)  # epoch, batch, rank
NUM_CLASSES = 5


def batch_augment(seed: int = 0, **settings: object) -> BatchAugment:
    return BatchAugment(Augment(**settings), NUM_CLASSES, seed)


def pixels(count: int, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def numbered_images(count: int, side: int = 16) -> tuple[Tensor, Tensor]:
    """Return images whose pixels are all 1 + their index in the batch, and labels."""
    images = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(-1, 3, side, side)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(count) % NUM_CLASSES


def test_settings_that_are_off_return_images_and_labels_unchanged():
    images = pixels(4)
    assert batch_augment(mixup_alpha=1.0).adjust_colors(images, KEY) is images
    images, labels = numbered_images(4)
    mixed, same_labels = batch_augment(brightness=0.5).mix(images, labels, KEY)
    assert mixed is images
    assert same_labels is labels


# Colors


def samples(count: int = 20) -> Tensor:
    """Noise with gray rows, images of few colors, a black and a white one."""
    images = torch.randint(0, 256, (count, 3, 8, 7), generator=torch.Generator().manual_seed(0)).float()
    images[:, :, 0] = images[:, :1, 0]
    images[:5] = (images[:5] > 128) * 255.0
    images[0], images[1] = 0.0, 255.0
    return images


def shuffled_factors(low: float, high: float, count: int = 20) -> Tensor:
    return torch.linspace(low, high, count)[torch.randperm(count, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (adjust_brightness, functional.adjust_brightness, shuffled_factors(0.0, 2.5)),
        (adjust_contrast, functional.adjust_contrast, shuffled_factors(0.0, 2.5)),
        (adjust_saturation, functional.adjust_saturation, shuffled_factors(0.0, 2.5)),
        (adjust_hue, functional.adjust_hue, shuffled_factors(-0.5, 0.5)),
    ],
)
def test_each_image_is_adjusted_by_its_own_factor_as_in_torchvision(
    ours, theirs, factors: Tensor, memory: torch.memory_format
):
    images = samples()
    expected = [theirs(image / 255, factor.item()) * 255 for image, factor in zip(images, factors, strict=True)]
    adjusted = ours(images.contiguous(memory_format=memory), factors.view(-1, 1, 1, 1))
    torch.testing.assert_close(adjusted, torch.stack(expected), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("width", "low", "high"), [(0.25, 0.75, 1.25), (1.5, 0.0, 2.5)])
def test_factors_are_uniform_over_the_range_of_torchvisions_color_jitter(width: float, low: float, high: float):
    gray = torch.full((4000, 3, 1, 1), 60, dtype=torch.uint8)
    factors = batch_augment(brightness=width).adjust_colors(gray, KEY)[:, 0, 0, 0] / 60
    assert (factors.min().item(), factors.max().item()) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert factors.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert factors.std() == pytest.approx((high - low) / 12**0.5, rel=0.05)


def test_colors_change_in_torchvisions_order_and_range():
    images = pixels(12)
    ours = batch_augment(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1).adjust_colors(images, KEY)
    assert ours.dtype == torch.float32
    assert ours.min() >= -1e-3
    assert ours.max() <= 255
    uniforms = batch_augment()._generator(KEY, 201).random((4, 12))
    for index, (b, c, s, h) in enumerate(uniforms.T):
        image = functional.adjust_brightness(images[index] / 255, 0.6 + 0.8 * b)
        image = functional.adjust_saturation(functional.adjust_contrast(image, 0.6 + 0.8 * c), 0.6 + 0.8 * s)
        expected = functional.adjust_hue(image, 0.1 * (2 * h - 1)) * 255
        torch.testing.assert_close(ours[index], expected, rtol=0, atol=5e-3)


def test_one_color_setting_does_not_change_the_draws_of_the_others():
    images = pixels(8)
    both = batch_augment(brightness=0.3, hue=1e-9).adjust_colors(images, KEY)
    torch.testing.assert_close(both, batch_augment(brightness=0.3).adjust_colors(images, KEY), rtol=0, atol=2e-3)


# Erasing and cutout


@pytest.mark.parametrize("settings", [{"erase_probability": 1.0, "erase_scale": [0.2, 0.3]}, {"cutout_px": 8}])
def test_erased_pixels_are_zero_and_each_sample_has_its_own_rectangle(settings: dict):
    images, labels = numbered_images(50)
    erased, same_labels = batch_augment(**settings).mix(images, labels, KEY)
    holes = (erased == 0)[:, 0].flatten(1)
    assert holes.any(dim=1).all()
    assert len(holes.unique(dim=0)) > 40
    assert same_labels is labels


# MixUp and CutMix


@pytest.mark.parametrize(
    "alphas", [{"mixup_alpha": 0.3}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 0.3, "cutmix_alpha": 1.0}]
)
def test_soft_labels_match_the_shares_of_the_images(alphas: dict[str, float]):
    images, labels = numbered_images(200)
    mixed, soft = batch_augment(**alphas).mix(images, labels, KEY)
    assert (soft.dtype, soft.shape) == (torch.float32, (200, NUM_CLASSES))
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(200))
    # Values are 1 + index: the mean of a mixed image determines the share of the other one.
    order = batch_augment(**alphas).sample_mix(KEY, 200, 16, 16)[3]
    own, other = images[:, 0, 0, 0], images[order, 0, 0, 0]
    kept = torch.where(own == other, 1.0, (mixed.mean(dim=(1, 2, 3)) - other) / (own - other))
    expected = torch.zeros(200, NUM_CLASSES)
    expected[torch.arange(200), labels] += kept
    expected[torch.arange(200), labels[order]] += 1 - kept
    torch.testing.assert_close(soft, expected, rtol=0, atol=1e-3)
    assert len(kept.unique()) > 30


def test_with_both_alphas_half_of_the_images_are_pasted_and_half_are_blended():
    images, labels = numbered_images(300)
    mixed, _ = batch_augment(mixup_alpha=1.0, cutmix_alpha=1.0).mix(images, labels, KEY)
    num_pasted = sum(len(image.unique()) == 2 for image in mixed)
    num_blended = sum(bool((image != image.round()).any()) for image in mixed)
    assert num_pasted == pytest.approx(150, abs=35)
    assert num_blended == pytest.approx(150, abs=35)


@pytest.mark.parametrize(("alpha", "variance"), [(0.2, 1 / (4 * 1.4)), (1.0, 1 / 12)])
def test_lam_follows_the_beta_distribution(alpha: float, variance: float):
    _, lam, _, _ = batch_augment(mixup_alpha=alpha).sample_mix(KEY, 4000, 1, 1)
    assert lam.mean() == pytest.approx(0.5, abs=0.02)
    assert lam.var() == pytest.approx(variance, rel=0.06)  # of Beta(a, a): 1 / (4 (2a + 1))


def test_a_batch_of_one_image_mixes_with_itself():
    images, labels = numbered_images(1)
    mixed, soft = batch_augment(mixup_alpha=0.5, cutmix_alpha=1.0).mix(images, labels, KEY)
    torch.testing.assert_close(mixed, images)
    assert soft.tolist() == [[1, 0, 0, 0, 0]]


# Keys, memory order and waiting

HEAVY = {"brightness": 0.4, "hue": 0.1, "erase_probability": 0.5, "cutout_px": 3, "mixup_alpha": 0.2, "cutmix_alpha": 1}


def augmented(seed: int, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    ours = batch_augment(seed, **HEAVY)
    images = ours.adjust_colors(pixels(16), key).contiguous(memory_format=torch.channels_last)
    return ours.mix(images, torch.arange(16) % NUM_CLASSES, key)


@pytest.mark.parametrize(("seed", "key"), [(2, KEY), (1, (4, 7, 0)), (1, (3, 8, 0)), (1, (3, 7, 1))])
def test_another_seed_epoch_batch_or_rank_has_other_draws_and_the_same_key_the_same(seed: int, key: tuple):
    first, again, other = augmented(1, KEY), augmented(1, KEY), augmented(seed, key)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_the_global_generators_of_torch_and_numpy_are_not_used():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    augmented(1, KEY)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_erasing_does_not_change_the_draws_of_mixing():
    labels = torch.arange(16) % NUM_CLASSES
    plain, erased = ({"mixup_alpha": 0.2}, {"mixup_alpha": 0.2, "erase_probability": 1.0, "cutout_px": 2})
    soft = [batch_augment(**settings).mix(torch.zeros(16, 3, 8, 8), labels, KEY)[1] for settings in (plain, erased)]
    assert torch.equal(*soft)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("settings", [{"erase_probability": 1.0}, {"cutout_px": 3}, {"mixup_alpha": 1.0}, HEAVY])
def test_memory_order_and_the_given_tensors_are_kept(settings: dict, memory: torch.memory_format):
    images, labels = numbered_images(8)
    images = images.contiguous(memory_format=memory)
    before = images.clone()
    mixed, _ = batch_augment(**settings).mix(images, labels, KEY)
    assert mixed.is_contiguous(memory_format=memory)
    assert torch.equal(images, before)


class _Waits(TorchDispatchMode):
    """Records operations whose result the CPU waits for if it is on another device."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique_dim", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.found += [name] if name in self.names else []
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device():
    ours, labels = batch_augment(**HEAVY, contrast=0.1, saturation=0.1), torch.arange(8) % NUM_CLASSES
    with _Waits() as waits:
        ours.mix(ours.adjust_colors(pixels(8), KEY), labels, KEY)
    assert waits.found == []
