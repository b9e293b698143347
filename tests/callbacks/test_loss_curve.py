"""The loss of each step, and the end of the short training."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_fit import QUIET, SMALL, SmallShapes, build_data, build_task, build_trainer

from imago.callbacks.loss_curve import LossCurve

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


def feed(losses: list[float], num_steps: int = 100, accumulate: int = 1) -> tuple[LossCurve, int]:
    """Call the callback with batch losses as a Trainer does; return it and the number of batches until it stopped."""
    curve, trainer = LossCurve(num_steps), SimpleNamespace(global_step=0, should_stop=False)
    trainer.accumulate_grad_batches = accumulate
    for batch, loss in enumerate(losses, start=1):
        trainer.global_step = batch // accumulate
        divided = torch.tensor(loss) / accumulate  # as Lightning's `outputs`
        curve.on_train_batch_end(trainer, None, {"loss": divided}, None, batch - 1)
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


@pytest.mark.slow
def test_accumulated_batches_have_the_losses_of_batches_that_are_steps(compose, tmp_path: Path):
    means = []
    for accumulate, num_steps in ((1, 8), (4, 2)):
        cfg = compose(
            *("data=shapes", *SMALL, "augment=none", "model.dropout=0", "optimizer.lr=1e-30", "schedule=constant"),
            *(f"trainer.accumulate_grad_batches={accumulate}", "trainer.limit_train_batches=8"),
        )
        data, curve = build_data(cfg, SmallShapes), LossCurve(num_steps)
        build_trainer(cfg, tmp_path / str(accumulate), curve).fit(build_task(cfg, data), datamodule=data)
        assert len(curve.losses) == num_steps
        means.append(sum(curve.losses) / num_steps)
    assert means[1] == pytest.approx(means[0], rel=1e-5)
