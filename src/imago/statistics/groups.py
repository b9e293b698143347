"""Account for groups of images, such as those of a patient, in intervals: images of one group are not independent.

An accuracy over groups of correlated images is as uncertain as one over fewer independent images. The number of these,
the effective number, is the number of images divided by the design effect.
"""

import math

import numpy as np

from imago.statistics.intervals import (
    NUM_SIGMAS_95,
    QUANTILES_95,
    Interval,
    draw_num_unseen,
    draw_other_classes,
    wilson_interval,
)

# Legend: N images, G groups


class ImageDraws:
    """Draw images with replacement for a bootstrap: single ones, or whole groups.

    `is_correct` is bool, or a share, (N,), N at least 1; `groups` has the name or number of each image's group, (N,).
    """

    def __init__(self, is_correct: np.ndarray, groups: np.ndarray | None = None) -> None:
        self._num_images, self._design_effect = len(is_correct), 1.0
        self._members: list[np.ndarray] = []
        if groups is not None:
            numbers = np.unique(groups, return_inverse=True)[1]
            order = np.argsort(numbers, kind="stable")
            self._members = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
            self._design_effect = design_effect(is_correct.astype(float), groups)

    def draw(self, generator: np.random.Generator) -> tuple[np.ndarray, int]:
        """Return the indices of the drawn images, int64 (about N,), and how many of the first are unseen mistakes.

        They are those of `draw_num_unseen` for the effective number of images.
        """
        if not self._members:
            drawn = generator.integers(0, self._num_images, self._num_images)
            return drawn, draw_num_unseen(self._num_images, generator)
        chosen = generator.integers(0, len(self._members), len(self._members)).tolist()
        drawn = np.concatenate([self._members[number] for number in chosen])
        num_unseen = draw_num_unseen(max(1, round(self._num_images / self._design_effect)), generator)
        return drawn, min(len(drawn), round(num_unseen * self._design_effect))

    def draw_labels(
        self, labels: np.ndarray, predicted: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw images: indices and labels, int64 (about N,) each; labels of unseen mistakes are other classes."""
        drawn, num_unseen = self.draw(generator)
        targets, known = labels[drawn], np.union1d(labels, predicted)
        if len(known) > 1:
            targets[:num_unseen] = draw_other_classes(predicted[drawn[:num_unseen]], known, generator)
        return drawn, targets


def design_effect(values: np.ndarray, groups: np.ndarray) -> float:
    """Return by which factor groups increase the variance of the mean of values, float (N,); at least 1.

    The variance over groups is that of a ratio, as groups differ in size. If all values are equal, it is unknown, and
    that of groups whose images are always all alike is returned.

    Source: Cochran 1977 (Sampling Techniques), sections 6.3 and 9A.1.
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(numbers)
    if len(sizes) < 2:
        return float(len(values))
    independent = len(values) * values.var()
    if independent == 0:
        return _alike_effect(sizes)
    deviations = np.bincount(numbers, weights=values - values.mean())
    return max(1.0, float(len(sizes) / (len(sizes) - 1) * (deviations**2).sum() / independent))


def interval_factor(num_groups: int) -> float:
    """Return the factor that further divides the effective number of images, as few groups say little about others."""
    from scipy.special import stdtrit  # imported here because scipy takes 0.3 s

    return float(stdtrit(max(1, num_groups - 1), QUANTILES_95[1]) / NUM_SIGMAS_95) ** 2


def share_interval(is_correct: np.ndarray, groups: np.ndarray | None) -> Interval:
    """Return the 95 % interval of an accuracy: Wilson's, with groups for the effective number of images.

    The fewer groups have mistakes, the less is known of how these cluster: their number plus 1 are the degrees of
    freedom. Simulated with accuracies of 80 to 99 %, see the tests.

    Args:
        is_correct: bool (N,), N at least 1.
        groups: name or number of the group of each image, (N,); None if images are independent.

    Source: Korn and Graubard 1998 (Survey Methodology 24(2):193-201), with Wilson's interval.
    """
    if groups is None:
        return wilson_interval(int(is_correct.sum()), len(is_correct))
    numbers = np.unique(groups, return_inverse=True)[1]
    sizes, effect = np.bincount(numbers), design_effect(is_correct.astype(float), numbers)
    num_mixed = min(len(np.unique(numbers[is_correct])), len(np.unique(numbers[~is_correct])))
    factor = effect * interval_factor(min(len(sizes), num_mixed + 2))
    limit = max(effect, _alike_effect(sizes)) * interval_factor(len(sizes))
    return effective_interval(float(is_correct.mean()), float(len(is_correct) / min(factor, limit)))


def alike_groups_interval(accuracy: float, groups: np.ndarray) -> Interval:
    """Return an interval of an accuracy that is wide enough even if the images of a group are always all alike."""
    sizes = np.unique(groups, return_counts=True)[1]
    return effective_interval(accuracy, len(groups) / _alike_effect(sizes))


def _alike_effect(sizes: np.ndarray) -> float:
    """Return the design effect of groups of these sizes, int64 (G,), if the images of each are all alike."""
    return float((sizes.astype(float) ** 2).sum() / sizes.sum())


def effective_interval(accuracy: float, num_effective: float) -> Interval:
    """Return Wilson's 95 % interval of an accuracy for a number of images that need not be whole."""
    squared = NUM_SIGMAS_95**2 / num_effective
    center, half_width = accuracy + squared / 2, math.sqrt(squared * (accuracy * (1 - accuracy) + squared / 4))
    low, high = (center - half_width) / (1 + squared), (center + half_width) / (1 + squared)
    return max(0.0, min(low, accuracy)), min(1.0, max(high, accuracy))  # rounding leaves 1.0 outside for some numbers
