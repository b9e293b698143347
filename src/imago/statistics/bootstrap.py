"""95 % intervals of scores that have no formula for one: the images are drawn again, with replacement. numpy only."""

import numpy as np

from imago.statistics.calibration import bin_places

NUM_DRAWS = 1000
_ENDS = (0.025, 0.975)

Interval = tuple[float, float]


def macro_intervals(confusion: np.ndarray, seed: int = 0, num_draws: int = NUM_DRAWS) -> dict[str, Interval]:
    """Give the 95 % intervals of macro precision, recall and F1, by percentiles.

    A class without images in a draw is left out of that draw's mean, as in the score itself.

    Args:
        confusion: counts (K, K) of N images, true classes in rows; N at least 1.
        seed: of the draws.
        num_draws: more only make the ends steadier.

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    draws = np.random.default_rng(seed)
    count, num_classes = int(confusion.sum()), len(confusion)
    cells = np.flatnonzero(confusion)  # images of one cell are alike: drawing how many there are of each is the same
    shares = confusion.flat[cells] / count
    rows, columns = np.divmod(cells, num_classes)
    is_right = rows == columns
    scores = np.empty((num_draws, 3))
    for draw in range(num_draws):
        drawn = draws.multinomial(count, shares)
        right = np.bincount(rows[is_right], weights=drawn[is_right], minlength=num_classes)
        own = np.bincount(rows, weights=drawn, minlength=num_classes)
        called = np.bincount(columns, weights=drawn, minlength=num_classes)
        present = own > 0
        wholes = (np.maximum(called, 1), own, (called + own) / 2)
        scores[draw] = [np.mean(right[present] / whole[present]) for whole in wholes]
    low, high = np.quantile(scores, _ENDS, axis=0)
    names = ("macro_precision", "macro_recall", "macro_f1")
    return {name: (float(low[place]), float(high[place])) for place, name in enumerate(names)}


def ece_interval(confidence: np.ndarray, is_right: np.ndarray, seed: int = 0, num_draws: int = NUM_DRAWS) -> Interval:
    """Give an interval that holds the expected calibration error at least about 95 times in 100.

    The error of a sample lies above that of all images, since chance opens a gap in every bin. So the lower end takes
    off the error as much as chance moves all gaps together, which may leave 0; the upper end is that of the draws.

    Args:
        confidence: probability of the predicted class, (N,), N at least 1.
        is_right: whether it was the true one, bool (N,).
        seed: of the draws.
        num_draws: more only make the ends steadier.

    Source: our own, from the triangle inequality; held against simulations in the tests.
    """
    draws = np.random.default_rng(seed)
    count, places = len(confidence), bin_places(confidence)
    gap = is_right - confidence
    found = np.bincount(places, weights=gap, minlength=places.max() + 1) / count
    moved, errors = np.empty(num_draws), np.empty(num_draws)
    for draw in range(num_draws):
        times = np.bincount(draws.integers(0, count, count), minlength=count)
        gaps = np.bincount(places, weights=gap * times, minlength=len(found)) / count
        moved[draw], errors[draw] = np.abs(gaps - found).sum(), np.abs(gaps).sum()
    low = np.abs(found).sum() - np.quantile(moved, _ENDS[1])
    return max(0.0, float(low)), min(1.0, float(np.quantile(errors, _ENDS[1])))
