"""Sums of what `training_step` returns, over whole and interrupted epochs; an overflow of fp16 is no divergence."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imago.callbacks.train_metrics import TrainMetrics, _is_fp16_overflow
from imago.task.base import ImageTask

LABELS = torch.tensor([0, 0, 1])
LOGITS = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])  # the first is correct


class NoTask(ImageTask):
    """An ImageTask without parts."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.automatic_optimization = True


def end_batches(callback: TrainMetrics, *losses: float, **parts: Any) -> dict[str, float]:
    """Pass one batch per loss to the callback; return the sums so far."""
    trainer: Any = SimpleNamespace(accumulate_grad_batches=1, log_every_n_steps=100, lr_scheduler_configs=[])
    for loss in losses:
        callback.on_train_batch_end(trainer, NoTask(), {"loss": torch.tensor(loss), **parts}, (LABELS,), 0)
    return {name: float(value) for name, value in callback.state_dict().items()}


def test_the_sums_of_an_interrupted_epoch_are_continued():
    parts = {"logits": LOGITS, "labels": LABELS}
    whole, first, second = TrainMetrics(), TrainMetrics(), TrainMetrics()
    expected = end_batches(whole, 0.5, 0.25, **parts)
    end_batches(first, 0.5, **parts)
    second.load_state_dict(first.state_dict())
    assert end_batches(second, 0.25, **parts) == expected
    assert expected == {"loss_sum": 2.25, "num_images": 6, "num_correct": 2, "num_counted": 6}


def test_a_step_without_logits_counts_for_the_loss_and_a_skipped_one_not_at_all():
    callback = TrainMetrics()
    assert end_batches(callback, 0.5) == {"loss_sum": 1.5, "num_images": 3, "num_correct": 0, "num_counted": 0}
    for skipped in (None, {}, {"loss": None}):
        callback.on_train_batch_end(SimpleNamespace(lr_scheduler_configs=[]), NoTask(), skipped, (LABELS,), 1)  # type: ignore[arg-type]
    assert end_batches(callback)["num_images"] == 3


def test_a_rank_other_than_the_first_does_not_continue_the_sums_of_the_checkpoint():
    callback = TrainMetrics()
    end_batches(callback, 0.5)
    callback.on_train_start(SimpleNamespace(is_global_zero=False), NoTask())  # type: ignore[arg-type]
    assert end_batches(callback)["num_images"] == 0


@pytest.mark.parametrize(
    ("scale", "weight", "is_overflow"),
    [(65536.0, 1.0, True), (1.0, 1.0, True), (0.5, 1.0, False), (65536.0, float("nan"), False), (None, 1.0, False)],
)
def test_an_infinite_loss_is_an_overflow_if_the_scale_is_at_least_1_and_the_weights_are_finite(
    scale: float | None, weight: float, is_overflow: bool
):
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    if scaler is not None:
        scaler.scale(torch.ones(1))
    weights = {"weight": torch.full((3,), weight), "num_batches": torch.tensor(3)}
    task, plugin = SimpleNamespace(state_dict=lambda: weights), SimpleNamespace(scaler=scaler)
    trainer: Any = SimpleNamespace(precision_plugin=plugin, lightning_module=task)
    assert _is_fp16_overflow(trainer) is is_overflow
