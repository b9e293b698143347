"""A loss that is no number ends the run; where fp16 overflowed, the scaler first gets its chance."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imago.task.classify import ClassifyTask


def task(scale: float | None, weight: float = 1.0) -> Any:
    """A task's parts that decide, with a scaler of fp16 or without one."""
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    if scaler is not None:
        scaler.scale(torch.ones(1))
    plugin = SimpleNamespace(scaler=scaler)
    weights = {"weight": torch.full((3,), weight), "num_batches": torch.tensor(3)}
    return SimpleNamespace(trainer=SimpleNamespace(precision_plugin=plugin), state_dict=lambda: weights)


@pytest.mark.parametrize(
    ("scale", "weight", "is_forgiven"),
    [(65536.0, 1.0, True), (1.0, 1.0, True), (0.5, 1.0, False), (65536.0, float("nan"), False), (None, 1.0, False)],
)
def test_an_overflow_is_forgiven_while_the_scale_can_fall(scale, weight: float, is_forgiven: bool):
    assert ClassifyTask._scale_can_fall(task(scale, weight)) is is_forgiven
