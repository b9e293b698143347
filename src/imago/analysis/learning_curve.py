"""Fit a power law to the accuracies of a sweep over `data.train_fraction`, and extrapolate it to twice the images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imago.analysis.charts import Chart, Line, line_charts
from imago.analysis.ranking import Ranking
from imago.files import read_json
from imago.statistics.intervals import QUANTILES_95

_KEY = "data.train_fraction"
_MIN_POINTS = 4  # the power law has three parameters
_EXPONENTS = np.linspace(0.05, 1, 20)  # published learning curves are in this range; our own choice
_NUM_DRAWS = 400  # of noise: the ends of the interval then vary by about 5 % of its width; our own choice


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy on val for M numbers of training images, and power laws that describe it.

    Attributes:
        points: numbers of training images, accuracies and their standard errors, (3, M), by the number.
        x: numbers of images up to twice the largest, (X,).
        fitted: accuracy of the fitted power law there, then of fits to accuracies with drawn noise, (1 + D, X).
        gains: accuracy of each at twice the largest number minus that at the largest, (1 + D,).
    """

    points: np.ndarray
    x: np.ndarray
    fitted: np.ndarray
    gains: np.ndarray

    @property
    def text(self) -> str:
        """What twice the images would bring."""
        low, high = 100 * np.quantile(self.gains[1:], QUANTILES_95)
        return (
            f"twice the data ({self.x[-1]:,.0f} training images): {100 * self.gains[0]:+.1f} points of val accuracy "
            f"({low:.1f} to {high:.1f}), extrapolated by a power law"
        )

    @property
    def charts(self) -> list[Chart]:
        """The measured accuracies and the power law, with their 95 % intervals."""
        numbers, accuracy, error = self.points
        low, high = np.quantile(self.fitted[1:], QUANTILES_95, axis=0)
        lines = [("measured", numbers, accuracy, 1), ("power law", self.x, self.fitted[0], 2)]
        lines += [("its 95 % interval", numbers, accuracy + side * 1.96 * error, 3) for side in (-1, 1)]
        lines += [("95 % interval of the power law", self.x, end, 4) for end in (low, high)]
        drawn = [Line(name, x.tolist(), y.tolist(), style) for name, x, y, style in lines]
        return line_charts({"val accuracy": drawn}, "training images")


def read_learning_curve(ranking: Ranking) -> tuple[LearningCurve | None, str]:
    """Return the learning curve of a sweep and its text, or None and why there is none: "" for any other sweep."""
    if ranking.keys != [_KEY]:
        return None, ""
    found = [_read_point(ranking, setting.runs) for setting in ranking.settings if setting.rank is not None]
    points = sorted(point for point in found if point)
    if len({number for number, _, _ in points}) < _MIN_POINTS:
        needed = f"it needs {_MIN_POINTS} numbers of training images with a val accuracy, and there are {len(points)}"
        return None, f"no learning curve: {needed}; type e.g. {_KEY}=0.1,0.2,0.5,1.0"
    curve = fit_power_law(np.array(points).T)
    return curve, curve.text


def fit_power_law(points: np.ndarray, num_draws: int = _NUM_DRAWS, seed: int = 0) -> LearningCurve:
    """Fit accuracy = 1 - a - b n^-c, a and b at least 0, to (n, accuracy, standard error), (3, M), by least squares.

    The interval is a parametric bootstrap. If the law fits worse than the standard errors explain, they are enlarged
    until it does. Those of the same images of val are taken as independent, which makes the interval wider.

    Source: Hestness et al. 2017 (arXiv:1712.00409) for the law.
    """
    from scipy.optimize import nnls  # imported here because it takes 0.3 s

    numbers, accuracy, error = points
    x = np.linspace(numbers[0], 2 * numbers[-1], 60)
    at = np.concatenate([x, [numbers[-1], 2 * numbers[-1]]]) / numbers[-1]

    def fit(mistakes: np.ndarray) -> tuple[np.ndarray, float]:
        fits = []
        for exponent in _EXPONENTS:
            columns = np.stack([np.ones_like(numbers), (numbers / numbers[-1]) ** -exponent], axis=1)
            (offset, factor), misfit = nnls(columns / error[:, None], mistakes / error)
            fits.append((misfit, offset, factor, exponent))
        misfit, offset, factor, exponent = min(fits)
        return 1 - offset - factor * at**-exponent, misfit

    best, misfit = fit(1 - accuracy)
    noise = error * max(1.0, misfit / math.sqrt(max(1, len(numbers) - 3)))
    draws = np.random.default_rng(seed).normal(1 - accuracy, noise, (num_draws, len(numbers)))
    fitted = np.stack([best, *(fit(mistakes)[0] for mistakes in draws)])
    return LearningCurve(points, x, fitted[:, : len(x)], fitted[:, -1] - fitted[:, -2])


def _read_point(ranking: Ranking, runs: Sequence[str]) -> tuple[float, float, float] | None:
    """Return training images, mean accuracy on val and its standard error of the runs of a setting; None if unknown.

    The error has two parts: the images of val, and the variation between several runs.
    """
    summaries = [read_json(ranking.directory / run / "summary.json") for run in runs]
    try:
        rows = [
            (float(s["num_train_images"]), float(s["val"]["acc"]), float(s["val"]["num_images"])) for s in summaries
        ]
    except (KeyError, TypeError, ValueError):
        return None
    numbers, accuracies, num_val = np.array(rows).T
    count = num_val.mean() + 4
    share = (accuracies.mean() * num_val.mean() + 2) / count  # never 0 or 1: Agresti and Coull 1998
    between = accuracies.var(ddof=1) / len(rows) if len(rows) > 1 else 0.0
    return float(numbers.mean()), float(accuracies.mean()), math.sqrt(share * (1 - share) / count + between)
