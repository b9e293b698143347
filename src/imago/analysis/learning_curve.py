"""Fit a power law (Hestness et al. 2017, arXiv:1712.00409) to a sweep over `data.train_fraction`; extrapolate it."""

import math
from collections.abc import Sequence

import numpy as np

from imago.analysis.charts import Chart, Line, line_charts
from imago.analysis.ranking import Ranking
from imago.files import read_json
from imago.statistics.intervals import QUANTILES_95

_KEY = "data.train_fraction"
_MIN_POINTS = 4  # the power law has three parameters
_EXPONENTS = np.linspace(0.05, 1, 20)  # published learning curves are in this range; our own choice
_NUM_DRAWS = 400  # of noise: the ends of the interval then vary by about 5 % of its width; our own choice


def learning_curve(ranking: Ranking) -> tuple[list[Chart], str]:
    """Return a chart of val accuracy against training images, and what twice as many would bring, with intervals.

    With too few numbers of images there is no chart, and the text says so; it is "" for any other sweep.
    """
    if ranking.keys != [_KEY]:
        return [], ""
    found = [_read_point(ranking, setting.runs) for setting in ranking.settings if setting.rank is not None]
    points = np.array(sorted(point for point in found if point)).T
    if (found_points := len(np.unique(points[:1]))) < _MIN_POINTS:
        needed = f"{_MIN_POINTS} numbers of training images with a val accuracy, and there are {found_points}"
        return [], f"no learning curve: it needs {needed}; type e.g. {_KEY}=0.1,0.2,0.5,1.0"
    numbers, accuracy, error = points
    x = np.linspace(numbers[0], 2 * numbers[-1], 60)
    fitted, gains = fit_power_law(points, x)
    (low, high), ends = 100 * np.quantile(gains[1:], QUANTILES_95), np.quantile(fitted[1:], QUANTILES_95, axis=0)
    lines = [("measured", numbers, accuracy, 1), ("power law", x, fitted[0], 2)]
    lines += [("its 95 % interval", numbers, accuracy + side * 1.96 * error, 3) for side in (-1, 1)]
    lines += [("95 % interval of the power law", x, end, 4) for end in ends]
    drawn = [Line(name, x.tolist(), y.tolist(), style) for name, x, y, style in lines]
    text = f"twice the data ({2 * numbers[-1]:,.0f} training images): {100 * gains[0]:+.1f} points of val accuracy"
    text += f" ({low:.1f} to {high:.1f}), extrapolated by a power law"
    return line_charts({"val accuracy": drawn}, "training images"), text


def fit_power_law(points: np.ndarray, x: np.ndarray, num_draws: int = _NUM_DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """Fit accuracy = 1 - a - b n^-c, a and b at least 0, to (n, accuracy, standard error), (3, M), by least squares.

    Return the accuracy at `x` (X,), fitted and of draws of a parametric bootstrap, (1 + D, X), and its gains from
    twice the largest n, (1 + D,). Standard errors that do not explain the misfit are enlarged until they do. They are
    taken as independent, which those of the same images of val are not: intervals of a gain are rather too wide.
    """
    from scipy.optimize import nnls  # imported here because it takes 0.3 s

    numbers, accuracy, error = points
    at = np.concatenate([x, [numbers[-1], 2 * numbers[-1]]]) / numbers[-1]

    def fit(mistakes: np.ndarray) -> tuple[float, np.ndarray]:
        fits = []
        for exponent in _EXPONENTS:
            columns = np.stack([np.ones_like(numbers), (numbers / numbers[-1]) ** -exponent], axis=1)
            (offset, factor), misfit = nnls(columns / error[:, None], mistakes / error)
            fits.append((misfit, offset, factor, exponent))
        misfit, offset, factor, exponent = min(fits)
        return misfit, 1 - offset - factor * at**-exponent

    misfit, best = fit(1 - accuracy)
    noise = error * max(1.0, misfit / math.sqrt(max(1, len(numbers) - 3)))
    draws = np.random.default_rng(0).normal(1 - accuracy, noise, (num_draws, len(numbers)))
    fitted = np.stack([best, *(fit(mistakes)[1] for mistakes in draws)])
    return fitted[:, :-2], fitted[:, -1] - fitted[:, -2]


def _read_point(ranking: Ranking, runs: Sequence[str]) -> tuple[float, float, float] | None:
    """Return training images, mean val accuracy and its standard error, of val and between runs; None if unknown."""
    rows = [read_json(ranking.directory / run / "summary.json") for run in runs]
    try:
        values = [(float(s["num_train_images"]), float(s["val"]["acc"]), float(s["val"]["num_images"])) for s in rows]
    except (KeyError, TypeError, ValueError):
        return None
    numbers, accuracies, num_val = np.array(values).T
    share = (accuracies.mean() * num_val.mean() + 2) / (num_val.mean() + 4)  # not 0 or 1: Agresti and Coull 1998
    between = accuracies.var(ddof=1) / len(rows) if len(rows) > 1 else 0.0
    error = math.sqrt(share * (1 - share) / (num_val.mean() + 4) + between)
    return float(numbers.mean()), float(accuracies.mean()), error
