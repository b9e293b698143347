"""How sure a measured share is."""

import math

_Z_95 = 1.959964  # two-sided 95 % point of the normal distribution


def wilson_interval(num_right: int, num_images: int) -> tuple[float, float]:
    """Give the 95 % interval of an accuracy; it stays inside [0, 1] and is right for small counts too.

    Args:
        num_right: right answers, in [0, num_images].
        num_images: pictures tested, at least 1.

    Source: Wilson 1927 (doi:10.1080/01621459.1927.10502953).
    """
    share = num_right / num_images
    spread = _Z_95**2 / num_images
    centre = (share + spread / 2) / (1 + spread)
    half = _Z_95 * math.sqrt(share * (1 - share) / num_images + spread / (4 * num_images)) / (1 + spread)
    # The formula gives exactly 0 and 1 at the ends; floating point misses them by 1e-16.
    return (centre - half if num_right else 0.0), (centre + half if num_right < num_images else 1.0)
