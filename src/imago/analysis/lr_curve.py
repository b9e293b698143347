"""The loss over learning rates from low to high: a suggestion, and an image of why."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_KEPT = 0.9  # share of the old average that stays at each step of the smoothing
_SAFETY = (
    10.0  # at the lowest loss training is on the edge: one order of magnitude less (Howard and Gugger 2020, chapter 5)
)
_LEAST_FALL = 0.02  # of the first loss; less is noise


def smooth(losses: Sequence[float]) -> np.ndarray:
    """Give the exponential moving average of losses (n,), each divided by the weight it has had so far."""
    average, smoothed = 0.0, []
    for count, loss in enumerate(losses, start=1):
        average = _KEPT * average + (1 - _KEPT) * loss
        smoothed.append(average / (1 - _KEPT**count))
    return np.array(smoothed)


def suggest(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Give a tenth of the learning rate at which the smoothed loss is lowest.

    Args:
        lrs: from low to high, (n,), n at least 1.
        losses: at each, finite, (n,).

    Returns:
        A learning rate; None where the loss does not fall.
    """
    smoothed = smooth(losses)
    lowest = int(smoothed.argmin())
    return lrs[lowest] / _SAFETY if smoothed[lowest] < (1 - _LEAST_FALL) * smoothed[0] else None


def save_lr_curve(lrs: Sequence[float], losses: Sequence[float], suggestion: float | None, path: Path) -> None:
    """Draw losses, raw and smoothed, over learning rates on a logarithmic axis, and mark the suggestion."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.plot(lrs, losses, color="0.75", linewidth=1, label="each step")
    smoothed = smooth(losses)
    axes.plot(lrs, smoothed, color="C0", label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color="C3", linestyle="--", label=f"suggestion: {suggestion:.1e}")
    axes.set_ylim(0.9 * smoothed.min(), 1.1 * smoothed[0])
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
