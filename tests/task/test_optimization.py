"""Settings that an optimizer or a schedule refuses are reported for a single weight; working settings pass."""

from collections.abc import Callable

import pytest
import torch

from imago.errors import ConfigError
from imago.task.optimization import check_optimization


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["optimizer=muon", "optimizer.head_lr_multiplier=10.0", "optimizer.layer_lr_decay=0.5"],
        ["optimizer=sgd", "schedule=one_cycle"],
        ["optimizer=adam", "schedule=step"],
        ["optimizer=torch", "schedule=plateau"],
        ["optimizer=torch", "optimizer._target_=torch.optim.Muon", "schedule=linear"],
        ["optimizer=torch", "optimizer._target_=torch.optim.LBFGS", "~optimizer.weight_decay"],
        ["schedule.warmup_epochs=null", "schedule.warmup_steps=900", "trainer.max_epochs=1"],
        ["schedule=constant"],
    ],
)
def test_working_settings_pass_and_no_random_number_is_drawn(compose: Callable, settings: list[str]):
    cfg = compose(*settings)
    before = torch.get_rng_state()
    check_optimization(cfg.optimizer, cfg.schedule)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_value_out_of_range_is_reported_with_the_message_of_torch():
    with pytest.raises(ConfigError, match=r"^optimizer: Invalid momentum value: -1\.0; configs/optimizer lists others"):
        check_optimization(
            {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": -1.0},
            {"_target_": "imago.schedule.schedules.Constant"},
        )
