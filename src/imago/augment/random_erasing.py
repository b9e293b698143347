"""Random erasing and cutout: set a rectangle of each image to 0.

Legend: B samples of a batch, H and W pixels. Rectangles are int64 arrays (4, B): top, bottom, left and right in pixels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MAX_LOG_RATIO = math.log(1 / 0.3)  # of height to width of an erased rectangle (Zhong et al. 2020, section 4)
# CUDA may copy more than this from memory that is not pinned only when the device is ready (CUDA Runtime API, "API
# synchronization behavior").
_MAX_STAGED_BYTES = 2**16
_NUM_ATTEMPTS = 10  # as torchvision's RandomErasing, which then leaves the image unchanged


def erase(images: Tensor, boxes: np.ndarray) -> Tensor:
    """Return a copy of images (B, 3, H, W) that is 0 inside the boxes; a box may extend beyond the image."""
    return images.clone().masked_fill_(box_mask(images, boxes), 0.0)  # the clone keeps channels_last order


def sample_rectangles(
    generator: np.random.Generator, probability: float, scale: Sequence[float], shape: Sequence[int]
) -> np.ndarray:
    """Sample the rectangles of random erasing.

    Args:
        generator: its state advances by the same amount whichever images are erased.
        probability: chance that an image is erased, in [0, 1].
        scale: smallest and largest share of the area that a rectangle covers.
        shape: shape of the images, (B, 3, H, W).

    Returns:
        int64 (4, B); empty rectangles for images that are not erased.

    Source: Zhong et al. 2020 (arXiv:1708.04896).
    """
    num_images, _, height, width = shape
    is_chosen = generator.random(num_images) < probability
    areas = height * width * generator.uniform(scale[0], scale[1], (num_images, _NUM_ATTEMPTS))
    ratios = np.exp(generator.uniform(-_MAX_LOG_RATIO, _MAX_LOG_RATIO, (num_images, _NUM_ATTEMPTS)))
    heights, widths = (np.rint(np.sqrt(area)).astype(np.int64) for area in (areas * ratios, areas / ratios))
    fits = (heights < height) & (widths < width)
    first = np.arange(num_images), fits.argmax(axis=1)
    is_chosen &= fits[first]
    heights, widths = heights[first] * is_chosen, widths[first] * is_chosen
    tops = (generator.random(num_images) * (height - heights + 1)).astype(np.int64)
    lefts = (generator.random(num_images) * (width - widths + 1)).astype(np.int64)
    return np.stack([tops, tops + heights, lefts, lefts + widths])


def sample_squares(generator: np.random.Generator, side_px: int, shape: Sequence[int]) -> np.ndarray:
    """Sample the squares of cutout around random pixels of images (B, 3, H, W); they may extend beyond the image.

    Source: DeVries and Taylor 2017 (arXiv:1708.04552).
    """
    num_images, _, height, width = shape
    tops, lefts = (generator.integers(0, length, num_images) - side_px // 2 for length in (height, width))
    return np.stack([tops, tops + side_px, lefts, lefts + side_px])


def box_mask(images: Tensor, boxes: np.ndarray) -> Tensor:
    """Return bool (B, 1, H, W), True for the pixels of images (B, 3, H, W) inside the boxes."""
    top, bottom, left, right = to_device_of(images, boxes).view(4, -1, 1)
    rows, columns = (torch.arange(length, device=images.device) for length in images.shape[-2:])
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def to_device_of(tensor: Tensor, values: np.ndarray) -> Tensor:
    """Copy `values` to the device of `tensor` without synchronizing with the device."""
    host = torch.from_numpy(values)
    if tensor.is_cuda and host.nbytes > _MAX_STAGED_BYTES:
        host = host.pin_memory()
    return host.to(tensor.device, non_blocking=True)
