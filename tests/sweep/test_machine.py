"""Trials that run at a time share the machine."""

import pytest

from imago.sweep.machine import slot_variables, threads_per_process


@pytest.mark.parametrize(
    ("visible", "num_slots", "expected"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("4,6", 2, ["4", "6"]),
        ("0", 3, ["0", "0", "0"]),  # more trials than GPUs
        ("", 2, [None, None]),  # hidden
        ("0,1", 1, [None]),  # one trial has them all
    ],
)
def test_gpus_are_divided_between_the_slots(monkeypatch, visible: str, num_slots: int, expected: list[str | None]):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    variables = [slot_variables(slot, num_slots, 3) for slot in range(num_slots)]
    assert [found.get("CUDA_VISIBLE_DEVICES") for found in variables] == expected
    assert {found["OMP_NUM_THREADS"] for found in variables} == {"3"}


def test_the_number_of_threads_that_is_set_is_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_per_process(2) == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_per_process(1000) == 1
