"""The learning rate's course: where it starts, peaks and ends, and that it never turns in between."""

import math
import warnings

import numpy as np
import pytest
import torch

from imago.schedule.warmup_cosine import WarmupCosine, warmup_cosine


def course(warmup_steps: int, total_steps: int, final_factor: float = 0.0) -> np.ndarray:
    return np.array([warmup_cosine(step, warmup_steps, total_steps, final_factor) for step in range(total_steps)])


def rates(
    total_steps: int, steps_per_epoch: float, warmup_epochs: float, final_factor: float = 0.0
) -> list[list[float]]:
    """Run the schedule as Lightning does, over two groups with learning rates 1 and 10; a row for each step."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 10.0)]
    optimizer = torch.optim.SGD(groups)
    schedule = WarmupCosine(optimizer, total_steps, steps_per_epoch, warmup_epochs, final_factor)
    rows = []
    for _ in range(total_steps):
        rows.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rows


def test_warmup_climbs_in_even_steps_to_the_peak():
    np.testing.assert_allclose(course(4, 100)[:5], [0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("final_factor", [0.0, 0.01, 1.0])
def test_the_last_step_has_the_final_share(final_factor: float):
    assert course(4, 100, final_factor)[-1] == pytest.approx(final_factor, abs=1e-12)


def test_without_warmup_the_first_step_is_the_peak():
    assert course(0, 100)[0] == 1


def test_halfway_down_the_cosine_is_the_mean_of_peak_and_end():
    assert course(10, 111, 0.2)[60] == pytest.approx(0.6)


def test_a_quarter_of_the_way_down_it_is_a_cosine_and_no_line():
    assert course(0, 101)[25] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_it_climbs_to_the_peak_and_then_only_falls():
    factors = course(10, 100, 0.1)
    assert factors.argmax() == 10
    assert (np.diff(factors[:11]) > 0).all()
    assert (np.diff(factors[10:]) < 0).all()
    assert factors.min() > 0


def test_a_run_longer_than_planned_stays_at_the_final_share():
    assert warmup_cosine(150, 4, 100, 0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_the_shortest_runs_have_a_learning_rate(total_steps: int):
    assert course(0, total_steps)[0] == 1


def test_every_group_keeps_its_own_learning_rate():
    rows = np.array(rates(50, 10, 1))
    np.testing.assert_allclose(rows[:, 1], 10 * rows[:, 0])
    np.testing.assert_allclose(rows[:, 0], course(10, 50))


def test_warmup_may_take_a_fraction_of_an_epoch():
    assert np.argmax([row[0] for row in rates(100, 10, 0.5)]) == 5


def test_warmup_is_cut_at_half_the_run():
    assert np.argmax([row[0] for row in rates(20, 10, 5)]) == 10


def test_an_interrupted_schedule_continues_where_it_was():
    def build() -> tuple[torch.optim.Optimizer, WarmupCosine]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, WarmupCosine(optimizer, 50, 10, 1, 0.0)

    optimizer, schedule = build()
    for _ in range(23):
        optimizer.step()
        schedule.step()
    resumed_optimizer, resumed = build()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    with warnings.catch_warnings(action="ignore"):  # torch misses a step of the new optimizer
        resumed.step()
    schedule.step()
    assert resumed.get_last_lr() == schedule.get_last_lr() == [course(10, 50)[24]]
