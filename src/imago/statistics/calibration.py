"""Measure how well predicted probabilities match the accuracy, and fit the temperature that corrects them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_NUM_BINS = 15  # as in Guo et al. 2017
UNCALIBRATED = 1.0  # the temperature that leaves probabilities unchanged
TEMPERATURE_KEY = "calibration_temperature"  # in calibration.json, metrics.json and the metadata of an ONNX file
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3  # beyond these, probabilities are 0 and 1, or all equal
_VALUES_AT_ONCE = 2**18  # converted to float64, 2 MB; our own choice: with many classes a copy of all is gigabytes


def row_chunks(logits: np.ndarray) -> Iterator[slice]:
    """Yield slices of the rows of logits (N, K) that are converted together."""
    step = max(1, _VALUES_AT_ONCE // logits.shape[1])
    yield from (slice(start, start + step) for start in range(0, len(logits), step))


@dataclass(frozen=True)
class Reliability:
    """Samples grouped by the probability of their predicted class, in M bins of equal width without the empty ones."""

    low: np.ndarray  # lower ends of the bins, float (M,)
    high: np.ndarray  # upper ends, which belong to the bin, float (M,)
    probability: np.ndarray  # mean probability of the images in a bin, float (M,)
    accuracy: np.ndarray  # share of these images that is classified correctly, float (M,)
    num_images: np.ndarray  # images in a bin, int64 (M,)

    @property
    def ece(self) -> float:
        """The expected calibration error, in [0, 1]: the mean gap of accuracy and probability, weighted by images."""
        return float(np.abs(self.accuracy - self.probability) @ self.num_images / self.num_images.sum())


def reliability(probability: np.ndarray, is_correct: np.ndarray, num_bins: int = _NUM_BINS) -> Reliability:
    """Group the images by the probability of their predicted class; compute accuracy and mean probability of each bin.

    Args:
        probability: probability of the predicted class, (N,), in [0, 1], N at least 1.
        is_correct: whether the predicted class is the true one, bool (N,).
        num_bins: bins of equal width over [0, 1].

    Source: Guo et al. 2017, section 2 (arXiv:1706.04599).
    """
    bins = bin_indices(probability, num_bins)
    num_images = np.bincount(bins, minlength=num_bins)
    used = np.flatnonzero(num_images)
    mean_probability = np.bincount(bins, weights=probability, minlength=num_bins)[used] / num_images[used]
    accuracy = np.bincount(bins, weights=is_correct, minlength=num_bins)[used] / num_images[used]
    return Reliability(used / num_bins, (used + 1) / num_bins, mean_probability, accuracy, num_images[used])


def bin_indices(probability: np.ndarray, num_bins: int = _NUM_BINS) -> np.ndarray:
    """Return the bin of each probability, int64 (N,); the upper end belongs to a bin."""
    return np.clip(np.ceil(probability * num_bins).astype(np.int64) - 1, 0, num_bins - 1)


def nll(logits: np.ndarray, labels: np.ndarray, temperature: float = UNCALIBRATED) -> float:
    """Return the mean negative log-likelihood, in nats, of labels int (N,) under softmax(logits (N, K) / T)."""
    from scipy.special import log_softmax  # imported here because scipy takes 0.3 s

    total = 0.0
    for rows in row_chunks(logits):
        log_probabilities = log_softmax(logits[rows].astype(np.float64) / temperature, axis=1)
        total -= np.take_along_axis(log_probabilities, labels[rows, None], axis=1).sum()
    return float(total / len(labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that maximizes the likelihood of the labels; it never changes the predicted class.

    The targets are softened by 1 / (N + 2), so that the temperature stays finite for a network that is right on all N
    images (Platt 1999).

    Args:
        logits: (N, K), finite, of images that were not trained on.
        labels: int (N,).

    Returns:
        In [MIN_TEMPERATURE, MAX_TEMPERATURE]; UNCALIBRATED if all logits of each image are equal.

    Source: Guo et al. 2017, section 4.2 (arXiv:1706.04599); Platt 1999, section 2.2, for the targets.
    """
    from scipy.optimize import minimize_scalar  # imported here because it takes 0.3 s

    if not np.ptp(logits, axis=1).any():
        return UNCALIBRATED
    num_images, softening = len(labels), 1 / (len(labels) + 2)
    of_label, largest = logits[np.arange(num_images), labels].astype(np.float64), logits.max(axis=1).astype(np.float64)
    of_target = (1 - softening) * of_label + softening * logits.mean(axis=1, dtype=np.float64)

    def loss(log_temperature: float) -> float:  # unimodal, so a bounded search finds the minimum
        temperature, total = np.exp(log_temperature), 0.0
        for rows in row_chunks(logits):
            scaled = (logits[rows] - largest[rows, None]) / temperature  # at most 0, so exp does not overflow
            total += float((np.log(np.exp(scaled).sum(axis=1)) - (of_target - largest)[rows] / temperature).sum())
        return total / num_images

    bounds = np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)
    # xatol: tolerance of log T, so the temperature is exact to 8 digits.
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x))
