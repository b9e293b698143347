"""A duration is given in epochs or in optimizer steps, not in both."""

import pytest

from imago.errors import ConfigError
from imago.schedule.duration import duration_in_steps, is_whole_epoch


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(2, None, 20), (0.25, None, 2), (None, 7, 7), (0, None, 0)])
def test_epochs_are_converted_and_steps_are_kept(epochs: float | None, steps: int | None, expected: int):
    assert duration_in_steps("warmup", epochs, steps, steps_per_epoch=10) == expected


@pytest.mark.parametrize(
    ("epochs", "steps", "text"),
    [
        (1.0, 2, "schedule.warmup_epochs=1.0 schedule.warmup_steps=2: set one of the two"),
        (None, None, "schedule.warmup_epochs=null schedule.warmup_steps=null: set one of the two"),
        (-1, None, "schedule.warmup_epochs=-1 must be 0 or more"),
        (None, -3, "schedule.warmup_steps=-3 must be 0 or more"),
    ],
)
def test_both_none_and_negative_durations_are_refused(epochs: float | None, steps: int | None, text: str):
    with pytest.raises(ConfigError, match=text):
        duration_in_steps("warmup", epochs, steps, steps_per_epoch=10)


def test_the_share_1_is_a_whole_epoch_and_the_number_1_is_one_batch():
    assert [is_whole_epoch(limit) for limit in (1.0, 1, 0.5, 0, 10)] == [True, False, False, False, False]
