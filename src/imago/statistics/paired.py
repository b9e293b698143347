"""Compare two classifiers on the same images: McNemar's test and Tango's interval of the difference."""

import math
from dataclasses import dataclass

import numpy as np

from imago.statistics.groups import design_effect, interval_factor
from imago.statistics.intervals import NUM_SIGMAS_95

_SIGNIFICANCE = 0.05  # the usual level
_POWER = 0.8  # the usual share of tests that should find a difference


@dataclass(frozen=True)
class PairedComparison:
    """Result of comparing two classifiers, a and b, on the same images."""

    num_images: int
    num_only_a: int  # images that only a classifies correctly
    num_only_b: int  # images that only b classifies correctly
    difference: float  # accuracy of b minus that of a, in [-1, 1]
    interval_95: tuple[float, float]  # of the difference; contains 0 unless `p_value` is below 0.05
    p_value: float  # two-sided, of `test`
    num_groups: int = 0  # groups of images that are not independent; 0 for independent images

    @property
    def test(self) -> str:
        """The name of the test."""
        return f"sign-flip test over {self.num_groups:,} groups" if self.num_groups else "McNemar's exact test"

    @property
    def p_text(self) -> str:
        """The p-value as text; below 1 in 10,000 the exact number carries no information."""
        return "p < 0.0001" if self.p_value < 0.0001 else f"p = {self.p_value:.2g}"

    @property
    def verdict(self) -> str:
        """The comparison in one sentence."""
        if self.p_value >= _SIGNIFICANCE:
            return f"No significant difference on these images (p ≥ {_SIGNIFICANCE})."
        better = "b" if self.difference > 0 else "a"
        return f"{better} is significantly better on these images (p < {_SIGNIFICANCE})."


def compare_paired(
    is_correct_a: np.ndarray, is_correct_b: np.ndarray, groups: np.ndarray | None = None
) -> PairedComparison:
    """Compare two classifiers image by image.

    Args:
        is_correct_a: whether a predicts the true class, bool (N,), N at least 1.
        is_correct_b: whether b predicts the true class, for the same images in the same order.
        groups: name or number of the group of each image, (N,), if the images of a group are not independent.

    Source: McNemar 1947 (doi:10.1007/BF02295996), with the binomial distribution instead of its approximation; for
        groups `sign_flip_p_value`, and Tango's interval for the effective number of images.
    """
    from scipy.stats import binomtest  # imported here because it takes 0.5 s

    num_only_a, num_only_b = int((is_correct_a & ~is_correct_b).sum()), int((is_correct_b & ~is_correct_a).sum())
    num_images, num_different = len(is_correct_a), num_only_a + num_only_b
    difference = (num_only_b - num_only_a) / num_images
    if groups is None:
        # If both are equally good, each image that only one of them classifies correctly is a coin toss.
        p_value = float(binomtest(num_only_a, num_different).pvalue) if num_different else 1.0
        num_groups, factor = 0, 1.0
    else:
        differences = is_correct_b.astype(np.int64) - is_correct_a
        names, numbers = np.unique(groups, return_inverse=True)
        p_value = sign_flip_p_value(np.rint(np.bincount(numbers, weights=differences)).astype(np.int64))
        num_groups = len(names)
        factor = design_effect(differences.astype(float), numbers) * interval_factor(num_groups)
    low, high = tango_interval(num_only_a / factor, num_only_b / factor, num_images / factor)
    if p_value >= _SIGNIFICANCE:  # the exact test rejects less often than the approximation of the interval
        low, high = min(low, 0.0), max(high, 0.0)
    return PairedComparison(num_images, num_only_a, num_only_b, difference, (low, high), p_value, num_groups)


def num_images_needed(num_only_a: int, num_only_b: int, num_images: int) -> int | None:
    """Return with how many images McNemar's exact test at 5 % finds these shares in 80 % of cases; None if equal."""
    from scipy.stats import binom  # imported here because it takes 0.5 s

    if num_only_a == num_only_b:
        return None
    num_different = num_only_a + num_only_b
    quantiles = (np.arange(200) + 0.5) / 200  # of the number of images that differ; our own choice

    def power(number: int) -> float:
        different = binom.ppf(quantiles, number, num_different / num_images)
        limit = binom.ppf(_SIGNIFICANCE / 2, different, 0.5) - 1  # the largest count of the rarer kind with p < 0.05
        return float(sum(binom.cdf(limit, different, num / num_different) for num in (num_only_a, num_only_b)).mean())

    low, high = 0, 1
    while power(high) < _POWER:
        low, high = high, 2 * high
    while high - low > high // 1000 + 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= _POWER else (middle, high)
    return high


def sign_flip_p_value(sums: np.ndarray) -> float:
    """Return the two-sided p-value of sums over groups, int64 (G,), whose signs are coin tosses if a and b are alike.

    It is exact: the distribution of the total is computed for all assignments of signs. For groups of one image it is
    McNemar's test.

    Source: Fisher 1935 (The Design of Experiments), section 21.
    """
    sizes, total = np.abs(sums[sums != 0]), abs(int(sums.sum()))
    probabilities = np.ones(1)  # of the totals -T, -T + 1 .. T for the groups so far
    for size in sizes.tolist():
        widened = np.zeros(len(probabilities) + 2 * size)
        widened[: len(probabilities)] += probabilities / 2
        widened[2 * size :] += probabilities / 2
        probabilities = widened
    distances = np.abs(np.arange(len(probabilities)) - len(probabilities) // 2)
    return min(1.0, float(probabilities[distances >= total].sum()))


def tango_interval(num_only_a: float, num_only_b: float, num_images: float) -> tuple[float, float]:
    """Return the 95 % score interval of the accuracy of b minus that of a; without any difference it has a width too.

    Source: Tango 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B).
    """
    from scipy.optimize import brentq  # imported here because it takes 0.3 s

    def excess(difference: float) -> float:
        # Of the square of the score statistic over its 95 % quantile; it increases outwards. `share` is the likeliest
        # share of images that only a classifies correctly, given the difference.
        linear = (2 * num_images - num_only_b + num_only_a) * difference - num_only_a - num_only_b
        product = 8 * num_images * num_only_a * difference * (1 - difference)
        share = (math.sqrt(max(0.0, linear**2 + product)) - linear) / (4 * num_images)
        variance = num_images * (2 * share + difference * (1 - difference))
        return (num_only_b - num_only_a - num_images * difference) ** 2 - NUM_SIGMAS_95**2 * variance

    measured = (num_only_b - num_only_a) / num_images  # where it is below 0, or 0 if no image differs
    low = -1.0 if excess(-1.0) <= 0 else brentq(excess, -1.0, measured - 1e-9)
    high = 1.0 if excess(1.0) <= 0 else brentq(excess, measured + 1e-9, 1.0)
    return float(low), float(high)
