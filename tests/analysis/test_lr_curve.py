"""The suggested learning rate of a loss curve, and its figure."""

import numpy as np
import pytest

from imago.analysis.lr_curve import save_lr_curve, smooth_losses, suggest_lr

LRS = list(np.geomspace(1e-6, 1, 121))  # 20 for each power of ten


def curve(lowest: float) -> list[float]:
    """Return a loss of 2.3 that decreases to 1 at the learning rate `lowest` and rises beyond."""
    return [2.3 - 1.3 * float(np.exp(-((np.log10(lr / lowest)) ** 2))) for lr in LRS]


@pytest.mark.parametrize("lowest", [1e-3, 1e-2])
def test_the_suggestion_is_a_tenth_of_the_learning_rate_with_the_lowest_loss(lowest: float):
    suggestion = suggest_lr(LRS, curve(lowest))
    assert suggestion is not None
    # The smoothing lags behind by about 9 steps of 20 a decade.
    assert lowest / 10 <= suggestion <= lowest / 10 * 10 ** (12 / 20)


@pytest.mark.parametrize("losses", [[2.3] * 121, list(np.linspace(2.3, 9, 121)), [2.3]])
def test_without_a_decrease_there_is_no_suggestion(losses: list[float]):
    assert suggest_lr(LRS[: len(losses)], losses) is None


def test_smoothing_is_bias_corrected():
    assert smooth_losses([3.0, 1.0])[0] == pytest.approx(3.0)
    assert smooth_losses([3.0, 1.0])[1] == pytest.approx((0.9 * 3 + 1) / 1.9)
    np.testing.assert_allclose(smooth_losses([2.0] * 10), 2.0)


def test_the_figure_is_a_png(tmp_path):
    save_lr_curve(LRS, curve(1e-2), 1e-3, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
