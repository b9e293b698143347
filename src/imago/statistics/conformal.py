"""Fit split-conformal prediction sets, which contain the true class with a chosen probability, and measure them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imago.seeding import SETS_KEY, random_permutation
from imago.statistics.calibration import UNCALIBRATED, fit_temperature, row_chunks
from imago.statistics.groups import share_interval
from imago.statistics.intervals import QUANTILES_95, mean_interval
from imago.statistics.metrics import softmax, top_classes

PREDICTION_SETS_KEY = "prediction_sets"  # in calibration.json, metrics.json and the metadata of an ONNX file
LEVELS = ("90", "95")  # coverage in percent
_ROUNDING = 1e-4  # share that thresholds are lowered by: logits of torch and onnxruntime differ by 1e-5; our own choice


@dataclass(frozen=True)
class PredictionSets:
    """Sets of the classes that reach a threshold probability, and of the best one (Sadinle 2019, arXiv:1609.00451).

    The share `level` or more of new images like those of val has its true class in its set, on average over the images
    that a threshold may be fitted on. `thresholds` are by level in percent, without levels that have too few images;
    they are fitted on `num_images` of val, the divisor `temperature` of the logits before the softmax on the others.
    """

    temperature: float
    thresholds: Mapping[str, float]
    num_images: int

    @classmethod
    def from_dict(cls, values: Any) -> "PredictionSets | None":
        """Return the sets from `asdict`, None for None; raise ValueError, TypeError or KeyError for anything else."""
        if values is None:
            return None
        temperature, num_images = float(values["temperature"]), int(values["num_images"])
        thresholds = {level: float(values["thresholds"][level]) for level in LEVELS if level in values["thresholds"]}
        is_valid = [0 <= value <= 1 and num_images >= num_needed(level) for level, value in thresholds.items()]
        if not 0 < temperature < np.inf or not all(is_valid):
            raise ValueError(f"{PREDICTION_SETS_KEY} is {values!r}")
        return cls(temperature, thresholds, num_images)

    def members(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Return which classes are in the set of each image, bool (N, K) by level, given logits (N, K)."""
        members = {level: np.empty(logits.shape, bool) for level in self.thresholds}
        for rows in row_chunks(logits):
            probability = softmax(logits[rows] / self.temperature)
            for level, threshold in self.thresholds.items():
                members[level][rows] = probability >= np.minimum(threshold, probability.max(axis=1, keepdims=True))
        return members

    def names(self, logits: np.ndarray, class_names: Sequence[str]) -> list[dict[str, list[str]]]:
        """Return the names of the classes in the set of each image by level, the most probable first."""
        members, order = self.members(logits), top_classes(logits, len(class_names))
        return [
            {level: [class_names[index] for index in order[row] if members[level][row, index]] for level in members}
            for row in range(len(logits))
        ]


def missing_sets_note(sets: PredictionSets | None) -> str:
    """Return a note on prediction sets that a network lacks, and what they need; "" if it has all."""
    if sets is None:
        return "no prediction sets were fitted for this network; type eval.py run=RUN calibrate=fit, and export again"
    need = [f"{2 * num_needed(level)} images of val at {level} %" for level in LEVELS if level not in sets.thresholds]
    return f"prediction sets need {' and '.join(need)}; half of val has {sets.num_images}" if need else ""


def num_needed(level: str) -> int:
    """Return how many images a threshold needs: with n below it, (n + 1) * level / 100 is above n."""
    return -(-int(level) // (100 - int(level)))


def fit_sets(logits: np.ndarray, labels: np.ndarray) -> PredictionSets:
    """Fit a temperature on half of val, logits (N, K) and labels int (N,), and the thresholds on the other half."""
    order, num_images = random_permutation(len(labels), SETS_KEY), len(labels) // 2
    fitted, others = order[:num_images], order[num_images:]
    fitted_levels = [level for level in LEVELS if num_images >= num_needed(level)]
    temperature = fit_temperature(logits[others], labels[others]) if fitted_levels else UNCALIBRATED
    probability = np.empty(num_images)
    for rows in row_chunks(logits[:num_images]):
        shares = softmax(logits[fitted[rows]] / temperature)
        probability[rows] = np.take_along_axis(shares, labels[fitted[rows], None], axis=1)[:, 0]
    probability[::-1].sort()
    thresholds = {
        level: float(probability[rank_of_level(level, num_images) - 1]) * (1 - _ROUNDING) for level in fitted_levels
    }
    return PredictionSets(temperature, thresholds, num_images)


def measure_sets(
    sets: PredictionSets | None,
    logits: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return {PREDICTION_SETS_KEY: coverage and mean size on N images}, by level and class; {} without sets.

    `interval_95` is that of these thresholds for further images, `expected_95` that of the coverage of N images over
    the thresholds that n images may fit: beta-binomial by Beta(k, n + 1 - k) for rank k (Vovk 2012, arXiv:1209.2673).
    With `groups`, see `share_interval`, there is neither this one nor an interval of the size.
    """
    if sets is None:
        return {}
    from scipy.stats import betabinom  # imported here because it takes 0.5 s

    results = {}
    for level, members in sets.members(logits).items():
        covered, sizes = members[np.arange(len(labels)), labels], members.sum(axis=1)
        of_class = {class_names[label]: labels == label for label in np.unique(labels)}
        per_class = {name: _summarize(covered, sizes, groups, rows) for name, rows in of_class.items()}
        rank = rank_of_level(level, sets.num_images)
        expected = betabinom.ppf(QUANTILES_95, len(labels), rank, sets.num_images + 1 - rank) / len(labels)
        results[level] = _summarize(covered, sizes, groups) | {"per_class": per_class}
        if groups is None:
            results[level]["expected_95"] = expected.tolist()
    return {PREDICTION_SETS_KEY: results}


def describe_sets(measured: Mapping[str, Any]) -> dict[str, str]:
    """Format coverage and mean size, the output of `measure_sets`, by level."""
    texts = {}
    for level, sets in measured.items():
        low, high = sets["interval_95"]
        coverage = f"coverage {sets['coverage']:.2%}, 95 % interval {low:.2%} to {high:.2%}"
        if "expected_95" in sets:
            coverage += " (expected: {:.2%} to {:.2%})".format(*sets["expected_95"])
        texts[f"{level} % sets"] = f"{coverage}, mean size {sets['mean_size']:.2f}"
    return texts


def class_cells(measured: Mapping[str, Any], name: str) -> list[str]:
    """Format coverage and mean size of the sets of a class, two texts by level; empty for a class without images."""
    found = [sets["per_class"].get(name) for sets in measured.values()]
    return [text for c in found for text in ((f"{c['coverage']:.2%}", f"{c['mean_size']:.2f}") if c else ("", ""))]


def _summarize(
    covered: np.ndarray, sizes: np.ndarray, groups: np.ndarray | None, rows: np.ndarray | slice = slice(None)
) -> dict[str, Any]:
    covered, sizes = covered[rows], sizes[rows]
    interval = share_interval(covered, None if groups is None else groups[rows])
    size_interval = mean_interval(sizes.tolist()) if groups is None else None
    coverage = {"num_images": len(covered), "coverage": float(covered.mean()), "interval_95": list(interval)}
    return coverage | {"mean_size": float(sizes.mean()), "mean_size_interval_95": size_interval and list(size_interval)}


def rank_of_level(level: str, num_images: int) -> int:
    """Return the rank, highest first, of the score of N images that `level` percent of others like them reach."""
    return -(-(num_images + 1) * int(level) // 100)
