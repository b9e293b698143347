"""Suggest a learning rate from the losses of a range test, and draw them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_EMA_ALPHA = 0.1  # weight of the newest loss in the moving average, which evens out about 10 batches; our own choice
# Divides the learning rate with the lowest loss, which is nearly unstable (Howard and Gugger 2020, chapter 5).
_SAFETY_DIVISOR = 10.0
_MIN_DECREASE = 0.02  # share of the first loss; a smaller decrease may be noise between batches; our own choice


def smooth_losses(losses: Sequence[float]) -> np.ndarray:
    """Return the exponential moving average of losses (N,), bias-corrected: its first values are not pulled to 0."""
    from pandas import Series  # imported here because it takes 0.5 s

    return Series(losses).ewm(alpha=_EMA_ALPHA).mean().to_numpy()


def suggest_lr(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return a tenth of the learning rate with the lowest smoothed loss; None if the loss does not decrease.

    `lrs`, (N,), are in ascending order, N at least 1; `losses`, (N,), are finite.
    """
    smoothed = smooth_losses(losses)
    lowest = int(smoothed.argmin())
    return lrs[lowest] / _SAFETY_DIVISOR if smoothed[lowest] < (1 - _MIN_DECREASE) * smoothed[0] else None


def save_lr_curve(lrs: Sequence[float], losses: Sequence[float], suggestion: float | None, path: Path) -> None:
    """Draw raw and smoothed losses over learning rates on a logarithmic axis, and mark the suggestion."""
    from matplotlib.figure import Figure

    from imago.analysis.plots import save_figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.plot(lrs, losses, color="0.75", linewidth=1, label="each step")
    smoothed = smooth_losses(losses)
    axes.plot(lrs, smoothed, color="C0", label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color="C3", linestyle="--", label=f"suggestion: {suggestion:.1e}")
    # From 10 % below the lowest loss to 10 % above the first, so that divergence does not compress the curve.
    axes.set_ylim(0.9 * smoothed.min(), 1.1 * smoothed[0])
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path, dpi=150)
