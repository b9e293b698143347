"""Learning-rate schedules against values computed by hand, and across an interruption."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from imago.errors import ConfigError
from imago.schedule.schedules import (
    Constant,
    LrSweep,
    OneCycle,
    Plateau,
    StepDecay,
    WarmupCosine,
    WarmupLinear,
    warmup_factor,
)

RUN = {"total_steps": 21, "steps_per_epoch": 5}
WARMUP = {"warmup_epochs": 0.8, "warmup_steps": None, "final_factor": 0.2}  # 0.8 epochs of 5 steps: 4 steps
CYCLE = {"warmup_epochs": None, "warmup_steps": 8, "start_factor": 0.1, "final_factor": 0.0}
STEPS = {"every_epochs": 1.2, "every_steps": None, "factor": 0.5}  # every 6 steps
PLATEAU = {"monitor": "val/loss", "mode": "min", "factor": 0.5, "patience": 1, "min_factor": 0.2}

Build = Callable[[torch.optim.Optimizer], Any]
BUILDERS: dict[str, Build] = {
    "constant": lambda optimizer: Constant(optimizer),
    "cosine": lambda optimizer: WarmupCosine(optimizer, **RUN, **WARMUP),
    "linear": lambda optimizer: WarmupLinear(optimizer, **RUN, **WARMUP),
    "one_cycle": lambda optimizer: OneCycle(optimizer, **RUN, **CYCLE),
    "step": lambda optimizer: StepDecay(optimizer, steps_per_epoch=5, **STEPS),
    "plateau": lambda optimizer: Plateau(optimizer, **PLATEAU),
}


def two_groups() -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 10.0)])


def rates(build: Build, num_steps: int = 21) -> list[float]:
    """Return the first group's learning rate at each step; the second's is always ten times as high."""
    optimizer = two_groups()
    schedule = build(optimizer)
    lrs = []
    for _ in range(num_steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == pytest.approx(10 * lrs[-1])
        optimizer.step()
        schedule.step()
    return lrs


# Warm-up and cosine


def cosine_factors(warmup_steps: int, total_steps: int, final_factor: float = 0.0) -> np.ndarray:
    return np.array([warmup_factor(step, warmup_steps, total_steps, final_factor) for step in range(total_steps)])


def test_warmup_increases_in_equal_steps_to_the_peak():
    np.testing.assert_allclose(cosine_factors(4, 100)[:5], [0.2, 0.4, 0.6, 0.8, 1.0])
    assert cosine_factors(0, 100)[0] == 1


@pytest.mark.parametrize("final_factor", [0.0, 0.01, 1.0])
def test_the_last_step_and_all_later_ones_have_the_final_factor(final_factor: float):
    assert cosine_factors(4, 100, final_factor)[-1] == pytest.approx(final_factor, abs=1e-12)
    assert warmup_factor(150, 4, 100, final_factor) == pytest.approx(final_factor, abs=1e-12)


def test_after_the_warmup_the_factor_is_a_cosine():
    assert cosine_factors(10, 111, 0.2)[60] == pytest.approx(0.6)  # half-way: the mean of peak and end
    assert cosine_factors(0, 101)[25] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize(("warmup_epochs", "peak"), [(1, 10), (0.5, 5), (8, 25)])  # at most half of 50 steps
def test_warmup_may_be_a_fraction_of_an_epoch_and_takes_at_most_half_the_run(warmup_epochs: float, peak: int):
    own = {"warmup_epochs": warmup_epochs, "warmup_steps": None, "final_factor": 0.0}
    lrs = rates(lambda optimizer: WarmupCosine(optimizer, 50, 10, **own), 50)
    np.testing.assert_allclose(lrs, cosine_factors(peak, 50), atol=1e-12)


# The other schedules


def test_linear_increases_and_decreases_evenly():
    lrs = rates(BUILDERS["linear"])
    assert lrs[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert lrs[12] == pytest.approx(0.6)  # half of the 16 steps from 1 to 0.2
    assert lrs[-2:] == pytest.approx([0.25, 0.2])


def test_one_cycle_equals_that_of_torch_with_the_same_peak():
    # torch puts the peak at pct_start * total_steps - 1, which is 8 here.
    expected = rates(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=[1.0, 10.0], total_steps=21, pct_start=9 / 21, div_factor=10, final_div_factor=1e12,
            cycle_momentum=False,
        )
    )  # fmt: skip
    assert rates(BUILDERS["one_cycle"]) == pytest.approx(expected, abs=1e-9)


def test_step_decay_multiplies_after_each_duration():
    assert rates(BUILDERS["step"]) == pytest.approx([1.0] * 6 + [0.5] * 6 + [0.25] * 6 + [0.125] * 3)


def test_step_decay_within_a_step_is_refused():
    with pytest.raises(ConfigError, match="less than one step"):
        StepDecay(two_groups(), steps_per_epoch=5, every_epochs=0.01, every_steps=None, factor=0.5)


def test_the_sweep_multiplies_by_the_same_factor_at_each_step():
    lrs = rates(lambda optimizer: LrSweep(optimizer, num_steps=5, range_factor=16.0), 5)
    assert lrs == pytest.approx([1, 2, 4, 8, 16])


def test_the_plateau_waits_then_halves_and_stops_at_its_lower_limit():
    optimizer = two_groups()
    schedule = BUILDERS["plateau"](optimizer)
    lrs = []
    for loss in (1.0, 0.8, 0.9, 0.85, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7):
        for _ in range(5):
            optimizer.step()
            schedule.step()  # after every step, without a value: no effect
        schedule.step(loss)
        lrs.append(optimizer.param_groups[0]["lr"])
    assert lrs == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2])
    assert optimizer.param_groups[1]["lr"] == pytest.approx(2.0)


def test_the_plateau_of_an_accuracy_improves_upwards():
    optimizer = two_groups()
    schedule = Plateau(optimizer, **PLATEAU | {"monitor": "val/acc", "mode": "max"})
    for accuracy in (0.5, 0.6, 0.7, 0.8):
        schedule.step(accuracy)
    assert optimizer.param_groups[0]["lr"] == 1


# All of them


@pytest.mark.parametrize("name", ["cosine", "linear", "one_cycle", "step"])
@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_the_shortest_runs_have_a_learning_rate(name: str, total_steps: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(RUN, "total_steps", total_steps)
    assert BUILDERS[name](two_groups()).get_last_lr()[0] > 0


def advance(optimizer: torch.optim.Optimizer, schedule: Any, first: int, last: int) -> list[float]:
    lrs = []
    for step in range(first, last):
        optimizer.step()
        schedule.step()
        if isinstance(schedule, Plateau):
            schedule.step(metrics=1.0 if step < 3 else 2.0)
        lrs.append(optimizer.param_groups[0]["lr"])
    return lrs


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.filterwarnings("ignore:.*before `optimizer.step")
def test_an_interrupted_schedule_continues_with_the_same_learning_rates(name: str, tmp_path):
    optimizer = two_groups()
    schedule = BUILDERS[name](optimizer)
    advance(optimizer, schedule, 0, 11)
    torch.save([optimizer.state_dict(), schedule.state_dict()], tmp_path / "state")
    states = torch.load(tmp_path / "state", weights_only=True)
    resumed_optimizer = two_groups()
    resumed = BUILDERS[name](resumed_optimizer)
    resumed_optimizer.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    with warnings.catch_warnings(action="ignore"):  # torch counts no step of the new optimizer
        rest = advance(resumed_optimizer, resumed, 11, 20)
    assert rest == advance(optimizer, schedule, 11, 20)


@pytest.mark.parametrize("name", sorted(BUILDERS.keys() - {"plateau"}))
@pytest.mark.parametrize("num_done", [5, 21])
@pytest.mark.filterwarnings("ignore:.*before `optimizer.step")
def test_a_schedule_that_is_resumed_to_more_steps_has_their_rates_from_the_first_one(
    name: str, num_done: int, monkeypatch: pytest.MonkeyPatch
):
    optimizer, resumed_optimizer = two_groups(), two_groups()
    schedule = BUILDERS[name](optimizer)
    advance(optimizer, schedule, 0, num_done)
    monkeypatch.setitem(RUN, "total_steps", 42)
    resumed = BUILDERS[name](resumed_optimizer)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    expected = rates(BUILDERS[name], 42)[num_done:]
    assert resumed.get_last_lr() == pytest.approx([expected[0], 10 * expected[0]])
    first = resumed_optimizer.param_groups[0]["lr"]
    with warnings.catch_warnings(action="ignore"):
        assert [first, *advance(resumed_optimizer, resumed, num_done, 41)] == pytest.approx(expected)
