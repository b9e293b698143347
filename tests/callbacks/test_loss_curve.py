"""The loss of each step, and the end of the short training."""

from types import SimpleNamespace

import pytest
import torch

from imago.callbacks.loss_curve import LossCurve


def feed(losses: list[float], num_steps: int = 100, accumulate: int = 1) -> tuple[LossCurve, int]:
    """Call the callback with batch losses as a Trainer does; return it and the number of batches until it stopped."""
    curve, trainer = LossCurve(num_steps), SimpleNamespace(global_step=0, should_stop=False)
    for batch, loss in enumerate(losses, start=1):
        trainer.global_step = batch // accumulate
        curve.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)}, None, batch - 1)
        if trainer.should_stop:
            return curve, batch
    return curve, 0


def test_it_ends_after_its_steps():
    curve, stopped = feed([1.0] * 10, num_steps=4)
    assert stopped == 4
    assert curve.losses == [1.0] * 4


@pytest.mark.parametrize("last", [4.1, float("nan"), float("inf")])
def test_it_ends_when_the_loss_has_diverged(last: float):
    assert feed([2.0, 1.0, 3.9, last, 1.0])[1] == 4


def test_of_batches_that_accumulate_to_a_step_the_mean_counts():
    assert feed([1.0, 3.0, 2.0, 6.0], accumulate=2)[0].losses == [2.0, 4.0]
