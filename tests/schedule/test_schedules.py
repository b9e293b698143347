"""The other courses of the learning rate, against values worked out by hand, and across an interruption."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from imago.errors import ConfigError
from imago.schedule.constant import Constant
from imago.schedule.duration import duration_in_steps
from imago.schedule.one_cycle import OneCycle
from imago.schedule.plateau import Plateau
from imago.schedule.step import StepDecay
from imago.schedule.warmup_cosine import WarmupCosine
from imago.schedule.warmup_linear import WarmupLinear

RUN = {"total_steps": 21, "steps_per_epoch": 5}
LINEAR = {"warmup_epochs": 0.8, "warmup_steps": None, "final_factor": 0.2}  # 0.8 epochs of 5 steps: 4 steps
CYCLE = {"warmup_epochs": None, "warmup_steps": 8, "start_factor": 0.1, "final_factor": 0.0}
STEPS = {"every_epochs": 1.2, "every_steps": None, "factor": 0.5}  # of 6 steps each
PLATEAU = {"monitor": "val/loss", "mode": "min", "factor": 0.5, "patience": 1, "min_factor": 0.2}

Build = Callable[[torch.optim.Optimizer], Any]


def two_rates() -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 10.0)])


def rates(build: Build, num_steps: int = 21) -> list[float]:
    """The first group's learning rate at each step; the second's is always ten times as high."""
    optimizer = two_rates()
    schedule = build(optimizer)
    course = []
    for _ in range(num_steps):
        course.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == pytest.approx(10 * course[-1])
        optimizer.step()
        schedule.step()
    return course


def test_the_line_climbs_evenly_and_falls_evenly_to_its_end():
    course = rates(lambda optimizer: WarmupLinear(optimizer, **RUN, **LINEAR))
    assert course[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert course[12] == pytest.approx(0.6)  # half of the 16 steps from 1 to 0.2
    assert course[-2:] == pytest.approx([0.25, 0.2])


def test_a_cycle_starts_low_peaks_where_it_should_and_ends_at_nothing():
    course = rates(lambda optimizer: OneCycle(optimizer, **RUN, **CYCLE))
    assert course[0] == pytest.approx(0.1)
    assert course[4] == pytest.approx(0.55)  # half-way between 0.1 and 1
    assert course[8] == 1
    assert course[11] == pytest.approx((1 + 0.5**0.5) / 2)  # a quarter of the 12 steps down
    assert course[14] == pytest.approx(0.5)
    assert course[-1] == pytest.approx(0, abs=1e-12)


def test_a_cycle_is_that_of_torch_apart_from_where_the_peak_falls():
    ours = rates(lambda optimizer: OneCycle(optimizer, **RUN, **CYCLE))
    # torch puts the peak at pct_start * total_steps - 1, which is 8 here.
    theirs = rates(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=[1.0, 10.0], total_steps=21, pct_start=9 / 21, div_factor=10, final_div_factor=1e12,
            cycle_momentum=False,
        )
    )  # fmt: skip
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_steps_go_down_after_each_stretch():
    course = rates(lambda optimizer: StepDecay(optimizer, **RUN, **STEPS))
    assert course == pytest.approx([1.0] * 6 + [0.5] * 6 + [0.25] * 6 + [0.125] * 3)


def test_a_stretch_shorter_than_a_step_is_refused():
    with pytest.raises(ConfigError, match="less than one step"):
        StepDecay(two_rates(), **RUN, every_epochs=0.01, every_steps=None, factor=0.5)


def test_the_plateau_waits_then_halves_and_stops_at_its_floor():
    optimizer = two_rates()
    schedule = Plateau(optimizer, **RUN, **PLATEAU)
    course = []
    for loss in (1.0, 0.8, 0.9, 0.85, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7):
        for _ in range(5):
            optimizer.step()
            schedule.step()  # after every step, without a value: no effect
        schedule.step(loss)
        course.append(optimizer.param_groups[0]["lr"])
    assert course == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2])
    assert optimizer.param_groups[1]["lr"] == pytest.approx(2.0)


def test_the_plateau_of_an_accuracy_looks_for_more():
    optimizer = two_rates()
    schedule = Plateau(optimizer, **RUN, **PLATEAU | {"monitor": "val/acc", "mode": "max"})
    for accuracy in (0.5, 0.6, 0.7, 0.8):
        schedule.step(accuracy)
    assert optimizer.param_groups[0]["lr"] == 1


@pytest.mark.parametrize(
    ("name", "in_epochs", "in_steps"),
    [
        (WarmupCosine, {"warmup_epochs": 1.4, "warmup_steps": None}, {"warmup_epochs": None, "warmup_steps": 7}),
        (WarmupLinear, {"warmup_epochs": 1.4, "warmup_steps": None}, {"warmup_epochs": None, "warmup_steps": 7}),
        (OneCycle, {"warmup_epochs": 1.4, "warmup_steps": None}, {"warmup_epochs": None, "warmup_steps": 7}),
        (StepDecay, {"every_epochs": 1.4, "every_steps": None}, {"every_epochs": None, "every_steps": 7}),
    ],
)
def test_a_length_may_be_given_in_epochs_or_in_steps(name, in_epochs: dict, in_steps: dict):
    rest = {"final_factor": 0.0} | ({"start_factor": 0.1} if name is OneCycle else {})
    rest = {"factor": 0.5} if name is StepDecay else rest
    ours, theirs = (
        rates(lambda optimizer, own=own: name(optimizer, **RUN, **own, **rest)) for own in (in_epochs, in_steps)
    )
    assert ours == theirs
    assert len(set(ours)) > 1


@pytest.mark.parametrize(("epochs", "steps"), [(None, None), (1.0, 5), (-1.0, None), (None, -1)])
def test_both_none_and_negative_lengths_are_refused_by_name(epochs, steps):
    with pytest.raises(ConfigError, match=r"schedule\.warmup_(epochs|steps)="):
        duration_in_steps("warmup", epochs, steps, 10)


BUILDERS: dict[str, Build] = {
    "constant": lambda optimizer: Constant(optimizer, **RUN),
    "linear": lambda optimizer: WarmupLinear(optimizer, **RUN, **LINEAR),
    "one_cycle": lambda optimizer: OneCycle(optimizer, **RUN, **CYCLE),
    "step": lambda optimizer: StepDecay(optimizer, **RUN, **STEPS),
    "plateau": lambda optimizer: Plateau(optimizer, **RUN, **PLATEAU),
}


def advance(optimizer: torch.optim.Optimizer, schedule: Any, first: int, last: int) -> list[float]:
    course = []
    for step in range(first, last):
        optimizer.step()
        schedule.step()
        if isinstance(schedule, Plateau):
            schedule.step(metrics=1.0 if step < 3 else 2.0)
        course.append(optimizer.param_groups[0]["lr"])
    return course


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.filterwarnings("ignore:.*before `optimizer.step")
def test_an_interrupted_schedule_continues_where_it_was(name: str, tmp_path):
    optimizer = two_rates()
    schedule = BUILDERS[name](optimizer)
    advance(optimizer, schedule, 0, 11)
    torch.save([optimizer.state_dict(), schedule.state_dict()], tmp_path / "state")
    states = torch.load(tmp_path / "state", weights_only=True)
    resumed_optimizer = two_rates()
    resumed = BUILDERS[name](resumed_optimizer)
    resumed_optimizer.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    with warnings.catch_warnings(action="ignore"):
        rest = advance(resumed_optimizer, resumed, 11, 20)
    assert rest == advance(optimizer, schedule, 11, 20)


@pytest.mark.parametrize("name", ["linear", "one_cycle", "step"])
def test_the_shortest_runs_have_a_learning_rate(name: str):
    kind, own = {"linear": (WarmupLinear, LINEAR), "one_cycle": (OneCycle, CYCLE), "step": (StepDecay, STEPS)}[name]
    assert kind(two_rates(), total_steps=1, steps_per_epoch=1, **own).get_last_lr()[0] > 0
