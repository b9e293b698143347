"""Draw images for tests: blobs of color that differ from each other as photographs do."""

import numpy as np
from PIL import Image

from imago.data.image_record import examine_pixels


def photo(seed: int, size: int = 64) -> np.ndarray:
    """Draw an image, uint8 (size, size, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def records_of(*images: np.ndarray) -> np.ndarray:
    """Describe images uint8 (H, W, 3) of any sizes."""
    return np.concatenate([examine_pixels([image], 1) for image in images])
