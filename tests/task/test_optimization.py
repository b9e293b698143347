"""Settings that an optimizer or a schedule refuses are reported for a single weight; working settings pass."""

from collections.abc import Callable

import pytest
import torch

from imago.errors import ConfigError
from imago.task.optimization import build_optimization, check_optimization
from imago.training.monitors import set_modes


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
    set_modes(cfg)
    before = torch.get_rng_state()
    check_optimization(cfg.optimizer, cfg.schedule)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "settings",
    [
        {"_target_": "torch.optim.AdamW", "lr": 0.1, "betas": {"a": 1}},
        {"_target_": "torch.optim.AdamW", "lr": 0.1, "betas": [0.9]},
        {"_target_": "torch.optim.AdamW", "lr": 0.1, "fused": True, "foreach": True},
        {"_target_": "torch.optim.SparseAdam", "lr": 0.1},
    ],
)
def test_an_optimizer_that_cannot_step_is_one_line(settings: dict):
    with pytest.raises(ConfigError, match=r"^optimizer and schedule: a step of torch\.optim\.\w+ .* fails \("):
        check_optimization(settings, {"_target_": "imago.schedule.schedules.Constant"})


def test_a_value_out_of_range_is_reported_with_the_message_of_torch():
    with pytest.raises(ConfigError, match=r"^optimizer: Invalid momentum value: -1\.0; configs/optimizer has values"):
        check_optimization(
            {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": -1.0},
            {"_target_": "imago.schedule.schedules.Constant"},
        )


def test_weight_decay_applies_to_weights_and_not_to_biases():
    net = torch.nn.Linear(3, 2)
    settings = {"_target_": "torch.optim.AdamW", "lr": 0.1, "weight_decay": 0.25}
    optimizer, _ = build_optimization(settings, {"_target_": "imago.schedule.schedules.Constant"}, net, 1, 1)
    assert isinstance(optimizer, torch.optim.AdamW)
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert decay == {id(net.weight): 0.25, id(net.bias): 0.0}
