"""Augmentations of a whole batch, where the network computes: colors, erasing, cutout, MixUp and CutMix.

Each sample has its own draws, which come from (seed, epoch, batch, rank) and are made by numpy on the CPU: the same for
every kind of device. Nothing here waits for the device.
"""

import math

import numpy as np
import torch
from torch import Tensor

from imago.augment.color import change_brightness, change_contrast, change_hue, change_saturation
from imago.augment.settings import Augment
from imago.seeding import derive_seed

# N samples of a batch, K classes

BatchNumber = tuple[int, int, int]  # epoch, number of the batch, rank

# Tells the draws of one batch apart, so that turning one augmentation on leaves the others as they were.
_COLOURS, _ERASE, _CUTOUT, _MIX = 201, 202, 203, 204

_LOG_RATIO = math.log(1 / 0.3)  # of height to width of an erased rectangle, at most (Zhong et al. 2020, section 4)
_ATTEMPTS = 10  # as torchvision's RandomErasing, before it leaves the image whole


class BatchAugment:
    """Applies the per-batch settings of `augment`: `colors`, then the caller normalizes, then `mix`.

    Args:
        augment: the settings.
        num_classes: K, the width of soft labels.
        seed: of the run; keys every draw.
    """

    def __init__(self, augment: Augment, num_classes: int, seed: int) -> None:
        self.augment = augment
        self.num_classes = num_classes
        self.seed = seed

    def colors(self, images: Tensor, key: BatchNumber) -> Tensor:
        """Change brightness, contrast, saturation and hue, in this order, by factors of torchvision's ColorJitter.

        Args:
            images: uint8 (N, 3, H, W).
            key: of the batch.

        Returns:
            float32 in [0, 255]; `images` itself if no color setting is on.
        """
        ours = self.augment
        widths = (ours.brightness, ours.contrast, ours.saturation)
        if not any((*widths, ours.hue)):
            return images
        uniforms = self._generator(key, _COLOURS).random((4, len(images)))
        lowest = np.array([max(0.0, 1 - width) for width in widths])[:, None]
        highest = 1 + np.array(widths)[:, None]
        factors = np.concatenate([lowest + (highest - lowest) * uniforms[:3], ours.hue * (2 * uniforms[3:] - 1)])
        brightness, contrast, saturation, hue = _move(factors.astype(np.float32), images).view(4, -1, 1, 1, 1)
        pixels = images.float()  # a copy, which the following change in place
        if ours.brightness:
            change_brightness(pixels, brightness)
        if ours.contrast:
            change_contrast(pixels, contrast)
        if ours.saturation:
            change_saturation(pixels, saturation)
        return change_hue(pixels, hue) if ours.hue else pixels

    def mix(self, images: Tensor, labels: Tensor, key: BatchNumber) -> tuple[Tensor, Tensor]:
        """Erase and cut out, then blend samples of the batch with each other by MixUp and CutMix.

        Args:
            images: normalized, float (N, 3, H, W): what is erased becomes 0, the mean color.
            labels: int64 (N,).
            key: of the batch.

        Returns:
            Samples of the same shape, and the labels; float32 (N, K) with rows that sum to 1 if samples are mixed.
        """
        count, _, height, width = images.shape
        if self.augment.erase_probability:
            images = erase(images, self._rectangles(self._generator(key, _ERASE), count, height, width))
        if self.augment.cutout_px:
            images = erase(images, self._squares(self._generator(key, _CUTOUT), count, height, width))
        if not self.augment.is_mixing:
            return images, labels
        shares, boxes, partners = self._mixture(self._generator(key, _MIX), count, height, width)
        return blend(images, labels, shares, boxes, partners, self.num_classes)

    def _generator(self, key: BatchNumber, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(derive_seed(self.seed, *key, purpose)))

    def _rectangles(self, random: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
        """Draw what is erased, int64 (4, N): top, bottom, left, right; empty where nothing is."""
        is_chosen = random.random(count) < self.augment.erase_probability
        smallest, largest = self.augment.erase_scale
        areas = height * width * random.uniform(smallest, largest, (count, _ATTEMPTS))
        ratios = np.exp(random.uniform(-_LOG_RATIO, _LOG_RATIO, (count, _ATTEMPTS)))
        heights, widths = (np.rint(np.sqrt(area)).astype(np.int64) for area in (areas * ratios, areas / ratios))
        fits = (heights < height) & (widths < width)
        first = np.arange(count), fits.argmax(axis=1)
        is_chosen &= fits[first]
        heights, widths = heights[first] * is_chosen, widths[first] * is_chosen
        tops = (random.random(count) * (height - heights + 1)).astype(np.int64)
        lefts = (random.random(count) * (width - widths + 1)).astype(np.int64)
        return np.stack([tops, tops + heights, lefts, lefts + widths])

    def _squares(self, random: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
        """Draw the squares of cutout, int64 (4, N): top, bottom, left, right, which may lie outside the image."""
        side = self.augment.cutout_px
        tops, lefts = (random.integers(0, length, count) - side // 2 for length in (height, width))
        return np.stack([tops, tops + side, lefts, lefts + side])

    def _mixture(
        self, random: np.random.Generator, count: int, height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw how each sample is mixed, with arguments of `blend`: shares, boxes and partners."""
        mixup, cutmix = self.augment.mixup_alpha, self.augment.cutmix_alpha
        is_mixup = random.random(count) < ((mixup > 0) + (not cutmix > 0)) / 2
        alphas = np.where(is_mixup, mixup or 1.0, cutmix or 1.0)
        shares = random.beta(alphas, alphas)
        boxes = cutmix_boxes(shares, random.integers(0, height, count), random.integers(0, width, count), height, width)
        boxes[:, is_mixup] = 0
        return np.where(is_mixup, shares, 1.0), boxes, random.permutation(count)


def cutmix_boxes(shares: np.ndarray, rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> np.ndarray:
    """Lay a rectangle with the image's ratio of sides around a pixel and cut it off at the edges.

    Args:
        shares: of the area that is to stay outside, in [0, 1], shape (N,).
        rows: of the pixels in the middle, int64 (N,).
        columns: likewise.
        height: of the images, in pixels.
        width: likewise.

    Returns:
        int64 (4, N): top, bottom, left, right.

    Source: Yun et al. 2019, section 3.1.
    """
    sides = np.sqrt(1 - shares) / 2
    half_heights, half_widths = (sides * height).astype(np.int64), (sides * width).astype(np.int64)
    tops, bottoms = (rows - half_heights).clip(0), (rows + half_heights).clip(max=height)
    lefts, rights = (columns - half_widths).clip(0), (columns + half_widths).clip(max=width)
    return np.stack([tops, bottoms, lefts, rights])


def erase(images: Tensor, boxes: np.ndarray) -> Tensor:
    """Set a rectangle of each image to 0.

    Args:
        images: (N, 3, H, W).
        boxes: int64 (4, N): top, bottom, left, right; what lies outside the image is ignored.
    """
    return images.clone().masked_fill_(_inside(images, boxes), 0.0)  # the clone keeps channels_last order


def blend(
    images: Tensor, labels: Tensor, shares: np.ndarray, boxes: np.ndarray, partners: np.ndarray, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Give each sample a part of another one: everywhere by its share, and wholly inside its box.

    Args:
        images: float (N, 3, H, W).
        labels: int64 (N,), in [0, `num_classes`).
        shares: what is kept of the sample outside its box, in [0, 1], shape (N,).
        boxes: int64 (4, N): top, bottom, left, right, inside the image.
        partners: places in the batch of the other samples, int64 (N,).
        num_classes: K.

    Returns:
        float (N, 3, H, W) and float32 (N, K), whose rows sum to 1: a label keeps what its image keeps.
    """
    height, width = images.shape[-2:]
    top, bottom, left, right = boxes
    kept = shares * (1 - (bottom - top) * (right - left) / (height * width))
    share, kept_share = _move(np.stack([shares, kept]).astype(np.float32), images)
    order = _move(partners, images)
    weights = share.view(-1, 1, 1, 1).expand(-1, 1, height, width).masked_fill(_inside(images, boxes), 0.0)
    classes = torch.arange(num_classes, device=labels.device)
    one_hot = (labels[:, None] == classes).float()  # functional.one_hot reads the labels back to check them
    return (
        torch.lerp(images[order], images, weights.to(images.dtype)),
        torch.lerp(one_hot[order], one_hot, kept_share[:, None]),
    )


def _inside(images: Tensor, boxes: np.ndarray) -> Tensor:
    """Mark the pixels inside each image's box: bool (N, 1, H, W) for boxes (4, N)."""
    top, bottom, left, right = _move(boxes, images).view(4, -1, 1)
    rows, columns = (torch.arange(length, device=images.device) for length in images.shape[-2:])
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def _move(numbers: np.ndarray, images: Tensor) -> Tensor:
    return torch.from_numpy(numbers).to(images.device, non_blocking=True)
