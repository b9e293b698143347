"""Two classifiers on the same images: is one of them better, or was it luck? numpy only."""

from dataclasses import dataclass

import numpy as np

_NUM_DRAWS = 10_000


@dataclass(frozen=True)
class Paired:
    """What two classifiers got right on the same N images.

    Attributes:
        num_images: N.
        only_a: images that only the first got right.
        only_b: images that only the second got right.
        difference: accuracy of the second minus that of the first, in [-1, 1].
        interval_95: of the difference, by bootstrap over the images.
        p_value: of McNemar's exact test: how often chance alone gives counts as uneven as these.
    """

    num_images: int
    only_a: int
    only_b: int
    difference: float
    interval_95: tuple[float, float]
    p_value: float


def compare_paired(right_a: np.ndarray, right_b: np.ndarray, seed: int = 0) -> Paired:
    """Hold two classifiers against each other, image by image.

    Args:
        right_a: whether the first was right, bool (N,), N at least 1.
        right_b: whether the second was, on the same images in the same order.
        seed: of the bootstrap's draws.
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    count = len(right_a)
    interval = bootstrap_difference(only_a, only_b, count, seed)
    return Paired(count, only_a, only_b, (only_b - only_a) / count, interval, mcnemar_exact(only_a, only_b))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Give the two-sided p-value that two classifiers are equally good.

    Only images that exactly one of them got right tell anything; if they are equally good, each of these is a coin
    toss. Computed in whole numbers, so it is exact for any count.

    Args:
        only_a: images that only the first got right.
        only_b: images that only the second got right.

    Source: McNemar 1947 (doi:10.1007/BF02295996), with the binomial distribution itself.
    """
    tosses, fewer = only_a + only_b, min(only_a, only_b)
    ways, term = 0, 1
    for heads in range(fewer + 1):
        ways += term
        term = term * (tosses - heads) // (heads + 1)
    return min(1.0, 2 * ways / 2**tosses)


def bootstrap_difference(only_a: int, only_b: int, num_images: int, seed: int = 0) -> tuple[float, float]:
    """Give the 95 % percentile interval of the difference in accuracy, second minus first.

    Drawing images with replacement and counting the two kinds that differ is drawing from a multinomial
    distribution, which is what is done here.

    Args:
        only_a: images that only the first got right.
        only_b: images that only the second got right.
        num_images: all of them, at least 1.
        seed: of the draws.

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    shares = [only_a / num_images, only_b / num_images, max(0.0, 1 - (only_a + only_b) / num_images)]
    drawn = np.random.default_rng(seed).multinomial(num_images, shares, _NUM_DRAWS)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / num_images, [0.025, 0.975])
    return float(low), float(high)


def p_text(paired: Paired) -> str:
    """Put the p-value in words; how far it is below 1 in 10,000 means nothing."""
    return "p < 0.0001" if paired.p_value < 0.0001 else f"p = {paired.p_value:.2g}"


def verdict(paired: Paired) -> str:
    """Put the comparison in one sentence."""
    if paired.p_value >= 0.05:
        return "No difference shown: chance alone gives such counts often enough (p ≥ 0.05)."
    better = "b" if paired.difference > 0 else "a"
    return f"{better} is better on these images, by more than chance explains (p < 0.05)."
