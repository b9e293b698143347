"""Images a second and the share of waiting, on a clock that the test moves."""

from types import SimpleNamespace

import pytest
import torch

from imago.callbacks import speed
from imago.callbacks.speed import Speed


class Run:
    """A training run in which every second is accounted for."""

    def __init__(self, monkeypatch, log_every_n_steps: int = 2, world_size: int = 1) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(speed, "perf_counter", lambda: self.now_s)
        self.trainer = SimpleNamespace(world_size=world_size, global_step=0, log_every_n_steps=log_every_n_steps)
        self.logged: list[tuple[str, float]] = []
        self.module = SimpleNamespace(log_step=lambda values, step: self.logged.extend(values.items()))
        self.speed = Speed()

    def start_epoch(self) -> None:
        self.speed.on_train_epoch_start(self.trainer, self.module)

    def step(self, wait_s: float, work_s: float, num_images: int = 10) -> None:
        batch = (torch.zeros(num_images, 3, 2, 2), torch.zeros(num_images))
        self.now_s += wait_s
        self.speed.on_train_batch_start(self.trainer, self.module, batch, 0)
        self.now_s += work_s
        self.trainer.global_step += 1
        self.speed.on_train_batch_end(self.trainer, self.module, None, batch, 0)

    def validate(self, seconds: float) -> None:
        self.speed.on_validation_start(self.trainer, self.module)
        self.now_s += seconds
        self.speed.on_validation_end(self.trainer, self.module)


def test_totals_are_images_seconds_and_waiting(monkeypatch):
    run = Run(monkeypatch)
    run.start_epoch()
    run.step(wait_s=1, work_s=3)
    run.step(wait_s=0.5, work_s=2, num_images=6)
    assert (run.speed.num_images, run.speed.train_s, run.speed.wait_s) == pytest.approx((16, 6.5, 1.5))


def test_a_logging_step_tells_the_speed_since_the_last_one(monkeypatch):
    run = Run(monkeypatch, log_every_n_steps=2)
    run.start_epoch()
    for wait_s, work_s in [(1, 1), (1, 1), (0, 1), (1, 2)]:
        run.step(wait_s, work_s)
    assert run.logged == [
        ("images_per_s", pytest.approx(5)),
        ("data_wait_share", pytest.approx(0.5)),
        ("images_per_s", pytest.approx(5)),
        ("data_wait_share", pytest.approx(0.25)),
    ]


def test_the_images_of_all_ranks_count(monkeypatch):
    run = Run(monkeypatch, log_every_n_steps=1, world_size=2)
    run.start_epoch()
    run.step(wait_s=1, work_s=1)
    assert run.speed.num_images == 20
    assert run.logged[0] == ("images_per_s", pytest.approx(10))


def test_validation_within_an_epoch_counts_for_nothing(monkeypatch):
    run = Run(monkeypatch)
    run.start_epoch()
    run.step(wait_s=1, work_s=1)
    run.validate(seconds=50)
    run.step(wait_s=1, work_s=1)
    assert (run.speed.train_s, run.speed.wait_s) == pytest.approx((4, 2))


def test_validation_and_test_have_times_of_their_own(monkeypatch):
    run = Run(monkeypatch)
    run.validate(seconds=5)
    run.validate(seconds=6)
    run.speed.on_test_start(run.trainer, run.module)
    run.now_s += 7
    run.speed.on_test_end(run.trainer, run.module)
    assert (run.speed.val_s, run.speed.test_s, run.speed.train_s) == pytest.approx((11, 7, 0))


def test_the_time_between_epochs_counts_for_nothing(monkeypatch):
    run = Run(monkeypatch)
    run.start_epoch()
    run.step(wait_s=1, work_s=1)
    run.now_s += 50
    run.start_epoch()
    run.step(wait_s=1, work_s=1)
    assert (run.speed.train_s, run.speed.wait_s) == pytest.approx((4, 2))
