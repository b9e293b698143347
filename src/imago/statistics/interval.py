"""How sure a measured share is."""

import math
import statistics
from collections.abc import Sequence

_Z_95 = 1.959964  # two-sided 95 % point of the normal distribution
# The same of Student's t, for 1 to 10 degrees of freedom (Abramowitz and Stegun 1964, table 26.10).
_T_95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def wilson_interval(num_right: int, num_images: int) -> tuple[float, float]:
    """Give the 95 % interval of an accuracy; it stays inside [0, 1] and is right for small counts too.

    Args:
        num_right: right answers, in [0, num_images].
        num_images: images tested, at least 1.

    Source: Wilson 1927 (doi:10.1080/01621459.1927.10502953).
    """
    share = num_right / num_images
    spread = _Z_95**2 / num_images
    center = (share + spread / 2) / (1 + spread)
    half = _Z_95 * math.sqrt(share * (1 - share) / num_images + spread / (4 * num_images)) / (1 + spread)
    # The formula gives exactly 0 and 1 at the ends; floating point misses them by 1e-16.
    return (center - half if num_right else 0.0), (center + half if num_right < num_images else 1.0)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Give the 95 % interval of the mean that further seeds would settle at; None for fewer than two values.

    Args:
        values: one result for each seed, about normally distributed.

    Source: Student 1908 (doi:10.1093/biomet/6.1.1).
    """
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half = _t_95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def _t_95(freedom: int) -> float:
    """From the table, and beyond it by its expansion in 1 / `freedom` (Abramowitz and Stegun, 26.7.5): 4 digits."""
    if freedom <= len(_T_95):
        return _T_95[freedom - 1]
    z = _Z_95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
