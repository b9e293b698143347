"""Whether a network is as often right as it says, and the one number that mends it. numpy only."""

from dataclasses import dataclass

import numpy as np

_NUM_BINS = 15  # as in Guo et al. 2017
UNCALIBRATED = 1.0  # the temperature that leaves probabilities as they are
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3  # beyond these probabilities are 0 and 1, or all alike


@dataclass(frozen=True)
class Reliability:
    """Samples sorted by the probability of their predicted class, in bins of equal width; empty bins are left out.

    Attributes:
        low: lower ends of the bins, float (M,), M at most 15.
        high: upper ends, which belong to the bin.
        confidence: mean probability of the images in a bin.
        accuracy: share of them that is right.
        count: images in a bin, int64 (M,).
    """

    low: np.ndarray
    high: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: mean gap between the two, each bin weighed by its images; in [0, 1]."""
        return float(np.abs(self.accuracy - self.confidence) @ self.count / self.count.sum())


def reliability(confidence: np.ndarray, is_right: np.ndarray, num_bins: int = _NUM_BINS) -> Reliability:
    """Hold what a network says about its sureness against how often it is right.

    Args:
        confidence: probability of the predicted class, (N,), in [0, 1], N at least 1.
        is_right: whether it was the true one, bool (N,).
        num_bins: of equal width over [0, 1].

    Source: Guo et al. 2017, section 2 (arXiv:1706.04599).
    """
    places = bin_places(confidence, num_bins)
    count = np.bincount(places, minlength=num_bins)
    used = np.flatnonzero(count)
    mean_confidence = np.bincount(places, weights=confidence, minlength=num_bins)[used] / count[used]
    accuracy = np.bincount(places, weights=is_right, minlength=num_bins)[used] / count[used]
    return Reliability(used / num_bins, (used + 1) / num_bins, mean_confidence, accuracy, count[used])


def bin_places(confidence: np.ndarray, num_bins: int = _NUM_BINS) -> np.ndarray:
    """Give the bin of each probability, int64 (N,); the upper end belongs to a bin."""
    return np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)


def nll(logits: np.ndarray, labels: np.ndarray, temperature: float = UNCALIBRATED) -> float:
    """Give the mean negative log-likelihood, in nats, of labels int (N,) under softmax(logits (N, K) / temperature)."""
    scaled = _centerd(logits) / temperature
    own = np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]
    return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - own))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Give the number that logits are divided by so that the likelihood of the labels is greatest.

    It never changes which class is the most probable one. The likelihood has one peak, found by Newton's method within
    a bracket that is halved where a step leaves it. The targets are softened by 1 / (N + 2), as Platt 1999 does: a
    network that is right on all N images is not taken to be right for ever, and the number stays finite.

    Args:
        logits: (N, K), finite, of images that were not trained on.
        labels: int (N,).

    Returns:
        In [MIN_TEMPERATURE, MAX_TEMPERATURE]; UNCALIBRATED for logits that do not tell the classes apart at all.

    Source: Guo et al. 2017, section 4.2 (arXiv:1706.04599); Platt 1999, section 2.2, for the targets.
    """
    scores = _centerd(logits)
    softening = 1 / (len(labels) + 2)
    own = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    target = (1 - softening) * own + softening * scores.mean(axis=1)
    if not scores.any():
        return UNCALIBRATED
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE  # of the inverse temperature
    inverse = 1.0
    for _ in range(100):  # each halves the bracket at least; Newton needs about six
        slope, curvature = _slope_and_curvature(scores, target, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else low
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - inverse) <= 1e-10 * inverse:
            break
        inverse = following
    return float(1 / inverse)


def _slope_and_curvature(scores: np.ndarray, target: np.ndarray, inverse: float) -> tuple[float, float]:
    """Give two derivatives of the mean loss by the inverse temperature: from expectation and variance of the scores."""
    shares = np.exp(scores * inverse)
    shares /= shares.sum(axis=1, keepdims=True)
    expected = (shares * scores).sum(axis=1)
    variance = (shares * scores**2).sum(axis=1) - expected**2
    return float(np.mean(expected - target)), float(np.mean(variance))


def _centerd(logits: np.ndarray) -> np.ndarray:
    """Take each row's largest logit off, float64: probabilities stay the same, and nothing overflows."""
    return logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
