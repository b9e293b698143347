"""Apply rotation, RandAugment, TrivialAugment, gray and blur: torchvision's v2 transforms on one image at a time."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from imago.augment.crop_flip import SampleKey
from imago.augment.own_transforms import transform_samples
from imago.augment.settings import MAX_MAGNITUDE, Augment
from imago.seeding import random_bits
from imago.threads import one_intraop_thread

# The last part of a key: enabling one transform does not change the random numbers of another.
_ROTATION_KEY, _POLICY_KEY, _GRAY_KEY, _BLUR_KEY = 101, 102, 103, 104

_KERNEL_SIGMAS = 3  # a Gaussian beyond three standard deviations weighs 0.3 %


def transform_images(images: np.ndarray, augment: Augment, key: SampleKey) -> np.ndarray:
    """Rotate, apply the policy, gray, blur and `extra`; the draws of an image do not depend on its batch.

    Args:
        images: uint8 (B, 3, H, W).
        augment: settings; rotation, policy, gray, blur and extra are used.
        key: seed, epoch and indices of the B samples.

    Returns:
        uint8 (B, 3, H, W): a new array, or `images` if no such setting is on. The state of torch's generator is kept.
    """
    if not augment.has_single_image_transforms:
        return images
    transforms = _transforms(augment, min(images.shape[-2:]))
    seeds = {purpose: (random_bits(*key, purpose) >> np.uint64(1)).tolist() for purpose in transforms}
    transformed = np.empty_like(images)
    with torch.random.fork_rng(devices=[]), one_intraop_thread():
        for index, image in enumerate(images):
            sample = torch.from_numpy(image)
            for purpose, transform in transforms.items():
                torch.default_generator.manual_seed(seeds[purpose][index])  # torch.manual_seed would seed GPUs as well
                sample = transform(sample)
            transformed[index] = sample.numpy()
    if augment.extra:
        transform_samples(transformed, augment.extra_transforms, key)
    return transformed


def _transforms(augment: Augment, shorter_side_px: int) -> dict[int, Callable[[Tensor], Tensor]]:
    """Return the transforms that are on by their purpose, in the order in which they are applied."""
    transforms: dict[int, Callable[[Tensor], Tensor]] = {}
    if augment.rotation_degrees:
        transforms[_ROTATION_KEY] = v2.RandomRotation(augment.rotation_degrees, InterpolationMode.BILINEAR)
    if augment.policy == "randaugment":
        num_ops, magnitude = augment.policy_num_ops, augment.policy_magnitude
        transforms[_POLICY_KEY] = v2.RandAugment(num_ops, magnitude, num_magnitude_bins=MAX_MAGNITUDE + 1)
    elif augment.policy == "trivialaugment":
        transforms[_POLICY_KEY] = v2.TrivialAugmentWide()
    if augment.gray_probability:
        transforms[_GRAY_KEY] = v2.RandomGrayscale(augment.gray_probability)
    if augment.blur_probability:
        # The image is padded by its own reflection, which cannot be wider than the image.
        radius_px = min(math.ceil(_KERNEL_SIGMAS * augment.blur_sigma_px[1]), shorter_side_px - 1)
        blur = v2.GaussianBlur(2 * radius_px + 1, list(augment.blur_sigma_px))
        transforms[_BLUR_KEY] = v2.RandomApply([blur], augment.blur_probability)
    return transforms
