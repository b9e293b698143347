"""Whether a network is as often right as it says. numpy only."""

from dataclasses import dataclass

import numpy as np

_NUM_BINS = 15  # as in Guo et al. 2017


@dataclass(frozen=True)
class Reliability:
    """Pictures sorted by the probability of their predicted class, in bins of equal width; empty bins are left out.

    Attributes:
        low: lower ends of the bins, float (M,), M at most 15.
        high: upper ends, which belong to the bin.
        confidence: mean probability of the pictures in a bin.
        accuracy: share of them that is right.
        count: pictures in a bin, int64 (M,).
    """

    low: np.ndarray
    high: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: mean gap between the two, each bin weighed by its pictures; in [0, 1]."""
        return float(np.abs(self.accuracy - self.confidence) @ self.count / self.count.sum())


def reliability(confidence: np.ndarray, is_right: np.ndarray, num_bins: int = _NUM_BINS) -> Reliability:
    """Hold what a network says about its sureness against how often it is right.

    Args:
        confidence: probability of the predicted class, (N,), in [0, 1], N at least 1.
        is_right: whether it was the true one, bool (N,).
        num_bins: of equal width over [0, 1].

    Source: Guo et al. 2017, section 2 (arXiv:1706.04599).
    """
    places = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    count = np.bincount(places, minlength=num_bins)
    used = np.flatnonzero(count)
    mean_confidence = np.bincount(places, weights=confidence, minlength=num_bins)[used] / count[used]
    accuracy = np.bincount(places, weights=is_right, minlength=num_bins)[used] / count[used]
    return Reliability(used / num_bins, (used + 1) / num_bins, mean_confidence, accuracy, count[used])
