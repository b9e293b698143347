"""What a schedule and callbacks monitor, and in which direction."""

from collections.abc import Callable

import pytest

from imago.errors import ConfigError
from imago.training.monitors import set_modes


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("MulticlassF1Score", "max"),
        ("MulticlassHingeLoss", "min"),
        ("MulticlassStatScores", None),
        ("MulticlassF", None),
    ],
)
def test_the_direction_of_a_metric_is_its_own_or_is_typed(compose: Callable, metric: str, mode: str | None):
    new = f"+metrics.new._target_=torchmetrics.classification.{metric}"
    stop = "callbacks=[default,early_stopping]"
    cfg = compose(new, stop, "schedule=plateau", "callbacks.early_stopping.monitor=val/new")
    if mode is None:
        with pytest.raises(ConfigError, match=r"^callbacks\.early_stopping\.monitor=val/new: type callbacks\.early"):
            set_modes(cfg)
        cfg.callbacks.early_stopping.mode = mode = "max"
    set_modes(cfg)
    found = (cfg.callbacks.early_stopping.mode, cfg.callbacks.best_checkpoint.mode, cfg.task.schedule.mode)
    assert found == (mode, "max", "min")
