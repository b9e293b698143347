"""Speed, memory and the length of the gradient; the clock is set by the tests."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from imago.callbacks import monitoring
from imago.callbacks.monitoring import GradNorm, Memory, Speed


def recording_trainer(logged: list[Any], **settings: Any) -> Any:
    """Return the parts of a Trainer that logging needs; its logger appends values and step to `logged`."""
    logger = SimpleNamespace(log_metrics=lambda values, step: logged.append((without_epoch(values), step)))
    module = SimpleNamespace(automatic_optimization=True)
    rest = {
        "lightning_module": module,
        "precision_plugin": None,
        "callbacks": [],
        "loggers": [logger],
        "current_epoch": 0,
        "sanity_checking": False,
    }
    return SimpleNamespace(**(rest | settings))


def without_epoch(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name != "epoch"}


def test_the_gradient_norm_is_that_of_all_weights_and_logged_on_logging_steps_only():
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
    weights[0].grad, weights[1].grad = torch.tensor([1.0, 2.0]), torch.tensor([-2.0])  # the third is frozen
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:]}], lr=0.1)
    logged: list[Any] = []
    for step in range(6):
        trainer = recording_trainer(logged, global_step=step, log_every_n_steps=3)
        GradNorm().on_before_optimizer_step(trainer, trainer.lightning_module, optimizer)
    assert logged == [({"grad_norm": 3.0}, 2), ({"grad_norm": 3.0}, 5)]


@pytest.mark.parametrize("is_fused", [True, False])
def test_the_gradient_norm_does_not_contain_the_loss_scale_of_fp16(is_fused: bool):
    """A fused optimizer gets scaled gradients; for others Lightning has removed the scale before."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0]) * (65536.0 if is_fused else 1.0)
    optimizer = torch.optim.AdamW([weight], fused=is_fused)
    plugin = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=65536.0))
    plugin.scaler.scale(torch.ones(1))  # it creates the scale at its first use
    logged: list[Any] = []
    trainer = recording_trainer(logged, global_step=0, log_every_n_steps=1, precision_plugin=plugin)
    GradNorm().on_before_optimizer_step(trainer, trainer.lightning_module, optimizer)
    assert logged == [({"grad_norm": 5.0}, 0)]


def test_the_peak_memory_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    assert 0.05 < Memory().measure(cpu)["peak_memory_gib"] < 1000  # torch alone takes more than 50 MiB
    monkeypatch.setattr(monitoring, "peak_memory_bytes", lambda: 3 * 2**30)
    assert Memory().measure(cpu) == {"peak_memory_gib": 3}


def test_a_batch_that_does_not_end_a_step_logs_nothing():
    logged: list[Any] = []
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    callback = Memory()
    for step in (0, 1, 1, 2, 2, 3, 3, 4):  # two batches a step
        trainer = recording_trainer(logged, global_step=step, log_every_n_steps=2)
        callback.on_train_batch_end(trainer, module, None, None, 0)
    assert [step for _, step in logged] == [1, 3]


class FakeRun:
    """A training run with given durations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, log_every_n_steps: int = 2, world_size: int = 1) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(monitoring, "perf_counter", lambda: self.now_s)
        self.logged: list[Any] = []
        settings = {"world_size": world_size, "global_step": 0, "log_every_n_steps": log_every_n_steps}
        self.trainer = recording_trainer(self.logged, **settings)
        self.module: Any = SimpleNamespace(device=torch.device("cpu"))
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


def test_totals_are_images_seconds_and_waiting_without_the_time_between_epochs(monkeypatch: pytest.MonkeyPatch):
    run = FakeRun(monkeypatch)
    run.start_epoch()
    run.step(wait_s=1, work_s=3)
    run.now_s += 50
    run.start_epoch()
    run.step(wait_s=0.5, work_s=2, num_images=6)
    assert (run.speed.num_images, run.speed.train_s, run.speed.wait_s) == pytest.approx((16, 6.5, 1.5))


def test_a_logging_step_has_the_speed_of_all_ranks_since_the_last_one(monkeypatch: pytest.MonkeyPatch):
    run = FakeRun(monkeypatch, log_every_n_steps=2, world_size=2)
    run.start_epoch()
    for wait_s, work_s in [(1, 1), (1, 1), (0, 1), (1, 2)]:
        run.step(wait_s, work_s)
    assert run.speed.num_images == 80
    assert run.logged == [
        (pytest.approx({"images_per_s": 10, "data_wait_share": 0.5}), 1),
        (pytest.approx({"images_per_s": 10, "data_wait_share": 0.25}), 3),
    ]


def test_validation_and_test_have_times_of_their_own(monkeypatch: pytest.MonkeyPatch):
    run = FakeRun(monkeypatch)
    run.start_epoch()
    run.step(wait_s=1, work_s=1)
    run.validate(seconds=50)  # within an epoch
    run.step(wait_s=1, work_s=1)
    run.validate(seconds=6)
    run.speed.on_test_start(run.trainer, run.module)
    run.now_s += 7
    run.speed.on_test_end(run.trainer, run.module)
    assert (run.speed.val_s, run.speed.test_s) == pytest.approx((56, 7))
    assert (run.speed.train_s, run.speed.wait_s) == pytest.approx((4, 2))


@pytest.mark.parametrize(
    ("slow_s", "interrupts", "threads", "warns"),
    [(4.0, 200, 2, True), (4.0, 2, 2, False), (1.2, 200, 2, False), (4.0, 200, 1, False)],
    ids=["busy machine", "larger images", "hardly slower", "one thread"],
)
def test_a_run_that_other_processes_slow_down_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog, slow_s: float, interrupts: int, threads: int, warns: bool
):
    total = SimpleNamespace(interrupts=0)
    monkeypatch.setattr(monitoring, "num_interrupts", lambda: total.interrupts)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    run = FakeRun(monkeypatch, log_every_n_steps=1)
    run.start_epoch()
    for step in range(8):
        is_slow = step >= 4
        total.interrupts += interrupts if is_slow else 1
        run.step(0.0, slow_s if is_slow else 1.0)
    expected = f"{10 / slow_s:.0f} images/s instead of 10, as other processes"
    assert [record.getMessage().startswith(expected) for record in caplog.records] == [True] * warns


def test_the_time_of_steps_that_a_gpu_has_still_to_do_is_training_time(monkeypatch: pytest.MonkeyPatch):
    run = FakeRun(monkeypatch)
    run.module.device = torch.device("cuda")

    def wait() -> None:
        run.now_s += 3

    monkeypatch.setattr(torch.accelerator, "synchronize", wait)
    run.start_epoch()
    run.step(wait_s=1, work_s=1)
    run.validate(seconds=6)
    run.step(wait_s=1, work_s=1)
    run.now_s += 8  # a checkpoint is written
    run.speed.on_train_epoch_end(run.trainer, run.module)
    assert (run.speed.train_s, run.speed.val_s) == (10, 6)
