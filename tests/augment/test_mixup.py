"""MixUp and CutMix: images and targets against a slow reference, pixel by pixel."""

import numpy as np
import torch
from torch import Tensor

from imago.augment.mixup import cutmix, cutmix_boxes, mixup, mixup_or_cutmix

NUM_CLASSES = 5


def mix_slowly(
    images: Tensor, targets: Tensor, lam: np.ndarray, boxes: np.ndarray, order: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Blend with the share `lam` outside the box and replace the pixels inside, one pixel after the other."""
    mixed, mixed_targets = torch.empty_like(images), torch.zeros_like(targets)
    height, width = images.shape[2:]
    for index, (share, other) in enumerate(zip(lam, order, strict=True)):
        top, bottom, left, right = boxes[:, index]
        for row in range(height):
            for column in range(width):
                is_inside = top <= row < bottom and left <= column < right
                kept = 0.0 if is_inside else share
                pixel, other_pixel = images[index, :, row, column], images[other, :, row, column]
                mixed[index, :, row, column] = kept * pixel + (1 - kept) * other_pixel
                mixed_targets[index] += (kept * targets[index] + (1 - kept) * targets[other]) / (height * width)
    return mixed, mixed_targets


def batch() -> tuple[Tensor, Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """12 images with targets, and `lam`, boxes and an order for them."""
    random = np.random.default_rng(0)
    images, targets = torch.randn(12, 3, 6, 5), torch.eye(NUM_CLASSES)[torch.arange(12) % NUM_CLASSES]
    rows, columns = np.sort(random.integers(0, 7, (2, 12)), axis=0), np.sort(random.integers(0, 6, (2, 12)), axis=0)
    return images, targets, random.random(12), np.stack([*rows, *columns]), random.permutation(12)


def test_mixup_equals_the_slow_reference():
    images, targets, lam, boxes, order = batch()
    expected = mix_slowly(images, targets, lam, 0 * boxes, order)
    torch.testing.assert_close(mixup(images, targets, lam, order), expected)


def test_cutmix_equals_the_slow_reference():
    images, targets, _, boxes, order = batch()
    expected = mix_slowly(images, targets, np.ones(12), boxes, order)
    torch.testing.assert_close(cutmix(images, targets, boxes, order), expected)


def test_with_both_each_sample_is_exactly_that_of_mixup_or_of_cutmix():
    images, targets, lam, boxes, order = batch()
    is_mixup = np.arange(12) % 3 == 0
    both = mixup_or_cutmix(images, targets, is_mixup, lam, boxes, order)
    for mixed, blended, pasted in zip(
        both, mixup(images, targets, lam, order), cutmix(images, targets, boxes, order), strict=True
    ):
        assert torch.equal(mixed[is_mixup], blended[is_mixup])
        assert torch.equal(mixed[~is_mixup], pasted[~is_mixup])


def test_cutmix_boxes_have_the_ratio_of_the_image_and_are_cut_off_at_its_edges():
    top, bottom, left, right = cutmix_boxes(np.array([0.75, 0.75]), np.array([20, 0]), np.array([10, 39]), 40, 40)
    assert (top.tolist(), bottom.tolist()) == ([10, 0], [30, 10])
    assert (left.tolist(), right.tolist()) == ([0, 29], [20, 40])
