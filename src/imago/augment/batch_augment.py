"""Draw and apply the augmentations of a whole batch on the device: colors, erasing, cutout, MixUp and CutMix.

torchvision's v2 transforms draw once for a batch; here each sample has its own draws. They come from (seed, epoch,
batch index, rank) and are made by numpy on the CPU, so they do not depend on the kind of device. Nothing here waits for
the device. Legend: N samples, K classes, H and W pixels.
"""

import numpy as np
import torch
from torch import Tensor

from imago.augment.color import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation
from imago.augment.mixup import cutmix, cutmix_boxes, mixup, mixup_or_cutmix
from imago.augment.random_erasing import draw_rectangles, draw_squares, erase, to_device_of
from imago.augment.settings import Augment
from imago.seeding import derive_seed

SeedKey = tuple[int, int, int]  # epoch, batch index, rank

# The last part of a key: turning one augmentation on does not change the draws of another.
_COLORS, _ERASE, _CUTOUT, _MIX = 201, 202, 203, 204


class BatchAugment:
    """Applies the settings of `augment` that work on batches: call `colors`, normalize, then call `mix`.

    Args:
        augment: the settings.
        num_classes: K.
        seed: of the run.
    """

    def __init__(self, augment: Augment, num_classes: int, seed: int) -> None:
        self.augment = augment
        self.num_classes = num_classes
        self.seed = seed

    def colors(self, images: Tensor, key: SeedKey) -> Tensor:
        """Change brightness, contrast, saturation and hue, in this order, by factors as torchvision's ColorJitter.

        Args:
            images: uint8 (N, 3, H, W).
            key: of the batch.

        Returns:
            float32 in [0, 255]; `images` itself if no color setting is on.
        """
        settings = self.augment
        max_changes = np.array([settings.brightness, settings.contrast, settings.saturation])[:, None]
        if not (max_changes.any() or settings.hue):
            return images
        uniforms = self._generator(key, _COLORS).random((4, len(images)))
        lowest, highest = np.maximum(0.0, 1 - max_changes), 1 + max_changes
        factors = np.concatenate([lowest + (highest - lowest) * uniforms[:3], settings.hue * (2 * uniforms[3:] - 1)])
        on_device = to_device_of(images, factors.astype(np.float32)).view(4, -1, 1, 1, 1)
        pixels = images.float()  # a new tensor, which the following change in place
        for adjust, factor, is_on in (
            (adjust_brightness, on_device[0], settings.brightness),
            (adjust_contrast, on_device[1], settings.contrast),
            (adjust_saturation, on_device[2], settings.saturation),
            (adjust_hue, on_device[3], settings.hue),
        ):
            if is_on:
                adjust(pixels, factor)
        return pixels

    def mix(self, images: Tensor, labels: Tensor, key: SeedKey) -> tuple[Tensor, Tensor]:
        """Apply random erasing and cutout, then MixUp or CutMix.

        Args:
            images: normalized, float (N, 3, H, W); erased pixels become 0, the mean color.
            labels: int64 (N,).
            key: of the batch.

        Returns:
            Images of the same shape, and the labels: unchanged, or float32 (N, K) with rows that sum to 1 if
            `augment.mixup_alpha` or `augment.cutmix_alpha` is on.
        """
        settings, shape = self.augment, images.shape
        if settings.erase_probability:
            generator = self._generator(key, _ERASE)
            images = erase(images, draw_rectangles(generator, settings.erase_probability, settings.erase_scale, shape))
        if settings.cutout_px:
            images = erase(images, draw_squares(self._generator(key, _CUTOUT), settings.cutout_px, shape))
        if not settings.is_mixing:
            return images, labels
        classes = torch.arange(self.num_classes, device=labels.device)
        targets = (labels[:, None] == classes).float()  # functional.one_hot waits for the device to check the labels
        is_mixup, lam, boxes, order = self.draw_mix(key, len(images), *shape[-2:])
        if not settings.cutmix_alpha:
            return mixup(images, targets, lam, order)
        if not settings.mixup_alpha:
            return cutmix(images, targets, boxes, order)
        return mixup_or_cutmix(images, targets, is_mixup, lam, boxes, order)

    def draw_mix(self, key: SeedKey, count: int, height: int, width: int) -> tuple[np.ndarray, ...]:
        """Draw for each of `count` samples whether MixUp is used, `lam`, the box of CutMix and the other sample."""
        generator = self._generator(key, _MIX)
        mixup_alpha, cutmix_alpha = self.augment.mixup_alpha, self.augment.cutmix_alpha
        is_mixup = generator.random(count) < ((mixup_alpha > 0) + (not cutmix_alpha > 0)) / 2
        alphas = np.where(is_mixup, mixup_alpha or 1.0, cutmix_alpha or 1.0)
        lam = generator.beta(alphas, alphas)
        rows, columns = generator.integers(0, height, count), generator.integers(0, width, count)
        return is_mixup, lam, cutmix_boxes(lam, rows, columns, height, width), generator.permutation(count)

    def _generator(self, key: SeedKey, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(derive_seed(self.seed, *key, purpose)))
