"""Compare two classifiers on the same images: McNemar's test and a bootstrap interval of the difference."""

from dataclasses import dataclass

import numpy as np

from imago.statistics.intervals import QUANTILES_95

_SIGNIFICANCE = 0.05  # the usual level
_NUM_DRAWS = 10_000  # between seeds, the ends then vary by about 0.03 points for 1,000 images (measured)


@dataclass(frozen=True)
class PairedComparison:
    """Result of comparing two classifiers, a and b, on the same images."""

    num_images: int
    num_only_a: int  # images that only a classifies correctly
    num_only_b: int  # images that only b classifies correctly
    difference: float  # accuracy of b minus that of a, in [-1, 1]
    interval_95: tuple[float, float]  # of the difference, by bootstrap over the images
    p_value: float  # two-sided, of McNemar's exact test

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


def compare_paired(is_correct_a: np.ndarray, is_correct_b: np.ndarray, seed: int = 0) -> PairedComparison:
    """Compare two classifiers image by image.

    Args:
        is_correct_a: whether a predicts the true class, bool (N,), N at least 1.
        is_correct_b: whether b predicts the true class, for the same images in the same order.
        seed: of the random draws; the same seed gives the same interval.

    Source: McNemar 1947 (doi:10.1007/BF02295996), with the binomial distribution instead of its approximation; Efron
    and Tibshirani 1993, chapter 13, for the interval.
    """
    from scipy.stats import binomtest  # imported here because it takes 0.5 s

    num_only_a, num_only_b = int((is_correct_a & ~is_correct_b).sum()), int((is_correct_b & ~is_correct_a).sum())
    num_images, num_different = len(is_correct_a), num_only_a + num_only_b
    difference = (num_only_b - num_only_a) / num_images
    # If both are equally good, each image that only one of them classifies correctly is a coin toss.
    p_value = float(binomtest(num_only_a, num_different).pvalue) if num_different else 1.0
    # To draw images with replacement and count the two kinds is to draw the two counts.
    shares = [num_only_a / num_images, num_only_b / num_images, max(0.0, 1 - num_different / num_images)]
    drawn = np.random.default_rng(seed).multinomial(num_images, shares, _NUM_DRAWS)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / num_images, QUANTILES_95).tolist()
    return PairedComparison(num_images, num_only_a, num_only_b, difference, (low, high), p_value)
