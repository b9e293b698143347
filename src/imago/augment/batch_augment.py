"""Apply augmentations to a whole batch on the device: color jitter, random erasing, cutout, MixUp and CutMix.

torchvision's v2 transforms sample parameters once per batch; here each image has its own, drawn from (seed, epoch,
batch index, rank) by numpy on the CPU, so they do not depend on the type of device. Nothing here synchronizes with the
device.

The `adjust_` functions compute what torchvision's do, with one factor for each image, (B, 1, 1, 1). They change images,
float (B, 3, H, W) in [0, 255], in place and return them: a new tensor for every step would cost more than the
arithmetic. Legend: B samples of a batch, K classes, H and W pixels.
"""

import numpy as np
import torch
from torch import Tensor

from imago.augment.mixup import cutmix, cutmix_boxes, mixup, mixup_or_cutmix
from imago.augment.own_transforms import build_batch_transform, transform_batch
from imago.augment.random_erasing import erase, sample_rectangles, sample_squares, to_device_of
from imago.augment.settings import Augment
from imago.seeding import derive_seed

BatchKey = tuple[int, int, int]  # epoch, batch index, rank

# The last part of a key: enabling one augmentation does not change the random numbers of another.
_COLORS_KEY, _ERASE_KEY, _CUTOUT_KEY, _MIX_KEY = 201, 202, 203, 204

_MAX_VALUE = 255.0
_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as rounded by torchvision


class BatchAugment:
    """Apply the settings of `augment` that work on batches: call `adjust_colors`, normalize, call `mix` and `extra`.

    Args:
        augment: settings; those of single images (crops, flips, policy, ...) are ignored.
        num_classes: K, the width of soft labels.
        seed: the setting `seed`, the first part of each key.
    """

    def __init__(self, augment: Augment, num_classes: int, seed: int) -> None:
        self.augment = augment
        self.num_classes = num_classes
        self.seed = seed
        self._extra = [build_batch_transform(node, num_classes) for node in augment.extra_batch]

    def adjust_colors(self, images: Tensor, key: BatchKey) -> Tensor:
        """Change brightness, contrast, saturation and hue, in this order, by factors as torchvision's ColorJitter.

        Return float32 in [0, 255] of uint8 (B, 3, H, W); `images` itself if no color setting is on.
        """
        settings = self.augment
        limits = np.array([settings.brightness, settings.contrast, settings.saturation, settings.hue])[:, None]
        if not limits.any():
            return images
        uniforms = self._generator(key, _COLORS_KEY).random((4, len(images)))
        lowest, highest = np.maximum(0.0, 1 - limits[:3]), 1 + limits[:3]
        factors = np.concatenate([lowest + (highest - lowest) * uniforms[:3], limits[3:] * (2 * uniforms[3:] - 1)])
        factors_on_device = to_device_of(images, factors.astype(np.float32)).view(4, -1, 1, 1, 1)
        pixels = images.float()  # a new tensor, which the adjustments change in place
        adjustments = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
        for adjust, factor, limit in zip(adjustments, factors_on_device, limits, strict=True):
            if limit:
                adjust(pixels, factor)
        return pixels

    def mix(self, images: Tensor, labels: Tensor, key: BatchKey) -> tuple[Tensor, Tensor]:
        """Apply random erasing and cutout, then MixUp or CutMix.

        Args:
            images: normalized, float (B, 3, H, W); erased pixels become 0, the mean color.
            labels: int64 (B,).
            key: epoch, batch index and rank.

        Returns:
            Images of the same shape, and the labels: unchanged, or float32 (B, K) with rows that sum to 1 if
            `augment.mixup_alpha` or `augment.cutmix_alpha` is on.
        """
        settings, shape = self.augment, images.shape
        if settings.erase_probability:
            generator = self._generator(key, _ERASE_KEY)
            boxes = sample_rectangles(generator, settings.erase_probability, settings.erase_scale, shape)
            images = erase(images, boxes)
        if settings.cutout_px:
            images = erase(images, sample_squares(self._generator(key, _CUTOUT_KEY), settings.cutout_px, shape))
        if not settings.is_mixing:
            return images, labels
        classes = torch.arange(self.num_classes, device=labels.device)
        targets = (labels[:, None] == classes).float()  # functional.one_hot synchronizes to check the labels
        is_mixup, lam, boxes, order = self.sample_mix(key, len(images), *shape[-2:])
        if not settings.cutmix_alpha:
            return mixup(images, targets, lam, order)
        if not settings.mixup_alpha:
            return cutmix(images, targets, boxes, order)
        return mixup_or_cutmix(images, targets, is_mixup, lam, boxes, order)

    def extra(self, images: Tensor, labels: Tensor, key: BatchKey) -> tuple[Tensor, Tensor]:
        """Apply the transforms of `augment.extra_batch`, see `transform_batch`."""
        return transform_batch(images, labels, self._extra, (self.seed, *key))

    def sample_mix(self, key: BatchKey, num_samples: int, height: int, width: int) -> tuple[np.ndarray, ...]:
        """Sample for each image whether MixUp is used, `lam`, the box of CutMix and the index of the other image."""
        generator = self._generator(key, _MIX_KEY)
        mixup_alpha, cutmix_alpha = self.augment.mixup_alpha, self.augment.cutmix_alpha
        mixup_share = (0.5 if mixup_alpha else 0.0) if cutmix_alpha else 1.0
        is_mixup = generator.random(num_samples) < mixup_share
        alphas = np.where(is_mixup, mixup_alpha or 1.0, cutmix_alpha or 1.0)
        lam = generator.beta(alphas, alphas)
        rows, columns = generator.integers(0, height, num_samples), generator.integers(0, width, num_samples)
        return is_mixup, lam, cutmix_boxes(lam, rows, columns, height, width), generator.permutation(num_samples)

    def _generator(self, key: BatchKey, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(derive_seed(self.seed, *key, purpose)))


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply all pixels of each image by its factor; 0 gives black."""
    return images.mul_(factors).clamp_(0.0, _MAX_VALUE)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the difference between each pixel and the mean gray of its image; 0 gives that gray."""
    gray = _gray(images.mean(dim=(2, 3), keepdim=True))
    return images.mul_(factors).add_(gray * (1 - factors)).clamp_(0.0, _MAX_VALUE)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the difference between each pixel and its own gray; 0 gives a gray image."""
    gray = _gray(images).mul_(1 - factors)
    return images.mul_(factors).add_(gray).clamp_(0.0, _MAX_VALUE)


def adjust_hue(images: Tensor, factors: Tensor) -> Tensor:
    """Rotate the hue by `factors`, shape (B, 1, 1, 1), in [-0.5, 0.5] of the whole color wheel.

    Source: the hexagon model of Smith 1978 (doi:10.1145/965139.807361), as in torchvision and Pillow.
    """
    red, green, blue = images.split(1, dim=1)
    largest = images.amax(dim=1, keepdim=True)
    spread = largest - images.amin(dim=1, keepdim=True)
    # Hue in sixths of the color wheel; a gray pixel has no hue, and its value has no effect.
    hue_if_green, hue_if_blue = (blue - red).add_(spread, alpha=2), (red - green).add_(spread, alpha=4)
    hue = torch.where(largest == green, hue_if_green, hue_if_blue)
    hue = torch.where(largest == red, green - blue, hue).div_(spread.clamp(min=1e-6)).div_(6).add_(factors)
    for channel, opposite in zip((red, green, blue), (1 / 2, 5 / 6, 1 / 6), strict=True):
        # A channel is smallest at the opposite hue and up to 1/6 from it, and largest from 1/3 on.
        distance = hue - opposite
        distance.sub_(distance.round()).abs_()
        channel.copy_(largest).sub_(distance.mul_(-6).add_(2).clamp_(0.0, 1.0).mul_(spread))
    return images


def _gray(images: Tensor) -> Tensor:
    """Return the gray value of each pixel, a new tensor (B, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)
    return red.mul(_GRAY_WEIGHTS[0]).add_(green, alpha=_GRAY_WEIGHTS[1]).add_(blue, alpha=_GRAY_WEIGHTS[2])
