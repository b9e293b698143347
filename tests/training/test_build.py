"""The preprocess record of a run, first weights that come from the first training batch, and how long it trains."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import small_fit
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from small_fit import QUIET, fit_run
from torch import Tensor

from imago.errors import ConfigError
from imago.images import Preprocess
from imago.model.adapt import choose_preprocess
from imago.runs.run_directory import RunDirectory
from imago.training.build import _skip_empty_hooks, build_task, build_trainer, final_checkpoint

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]
QUICK = ("callbacks.image_grid=null", "logger.tensorboard=null", "trainer.log_every_n_steps=1")

NOTHING = dict.fromkeys(("size", "resize", "crop", "interpolation", "mean", "std"))
IMAGENET = {"size": 224, "resize": 256, "crop": "center", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
IMAGENET["interpolation"] = "bicubic"
STATISTICS = {name: IMAGENET[name] for name in ("mean", "std")}
OF_A_RUN = {"size": 28, "resize": 30, "crop": "center", "mean": [0.5] * 3, "std": [0.2] * 3}  # no interpolation: old
SMALL = Preprocess(32, 32, "center", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
LARGE = Preprocess(200, 250, "center", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.fixture
def first_filters(compose: Callable) -> Callable[..., Tensor]:
    """The first filters of a WhitenedResNet, as a run with these settings has them before its first step."""

    def build(*overrides: str) -> Tensor:
        cfg = compose("data=shapes", "model=whitened_resnet", "data.batch_size=32", *overrides)
        seed_everything(cfg.seed, verbose=False)
        return build_task(cfg, small_fit.build_data(cfg)).net.whitening.weight.detach()

    return build


def test_the_first_filters_come_from_the_first_training_batch(first_filters: Callable):
    filters = first_filters()
    torch.testing.assert_close(filters[:12], -filters[12:])
    torch.testing.assert_close(first_filters(), filters, rtol=0, atol=0)
    assert not torch.allclose(first_filters("seed=1"), filters)


def test_a_resumed_run_does_not_compute_first_filters(first_filters: Callable):
    filters = first_filters("resume=somewhere")
    assert not torch.allclose(filters[:12], -filters[12:])


@pytest.mark.parametrize(
    ("task", "channels_last", "is_fast"), [("", True, True), ("", False, False), ("Plain", True, False)]
)
def test_images_and_network_have_one_memory_format(compose: Callable, task: str, channels_last: bool, is_fast: bool):
    cfg = compose("data=shapes", "model.hidden_features=16", f"channels_last={channels_last}")
    if task:
        cfg.task._target_ = f"own_tasks.{task}"
    data = small_fit.build_data(cfg)
    module = build_task(cfg, data)
    images, _ = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert images.is_contiguous(memory_format=torch.channels_last) == is_fast
    if not task:
        weight = next(value for value in module.net.parameters() if value.ndim == 4 and value.shape[1] > 1)
        assert weight.is_contiguous(memory_format=torch.channels_last) == is_fast


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "mode"), [("true", None), ("reduce-overhead", "reduce-overhead")])
def test_the_network_is_compiled_in_place_for_each_shape(
    compose: Callable, monkeypatch: pytest.MonkeyPatch, typed: str, mode: str | None
):
    calls: list[tuple[Any, dict]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **settings: calls.append((self, settings)))
    cfg = compose("data=shapes", "model.hidden_features=16", f"compile={typed}")
    task = build_task(cfg, small_fit.build_data(cfg))
    assert calls == [(task.net, {"mode": mode, "dynamic": False})]


def test_a_resumed_run_continues_its_run_of_wandb(compose, tmp_path):
    def wandb_id(name: str, **typed: str) -> str:
        cfg = compose("data=shapes")
        cfg.callbacks = {}
        cfg.logger = {"wandb": {"_target_": "own_tasks.WandbLogger", "save_dir": str(tmp_path), **typed}}
        (tmp_path / name).mkdir(exist_ok=True)
        trainer = build_trainer(cfg, "32-true", RunDirectory(tmp_path / name, tmp_path), LightningModule())
        return trainer.logger.id  # type: ignore[union-attr]

    first = wandb_id("a")
    assert wandb_id("a") == first
    assert first
    assert wandb_id("a", id="mine") == "mine"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("LearningRateFinder", "tune=lr"),
        ("BatchSizeFinder", "data.batch_size=N"),
        ("GradientAccumulationScheduler", "trainer.accumulate_grad_batches=N"),
    ],
)
def test_callbacks_that_train_beside_the_schedule_are_refused_with_what_to_type(compose, tmp_path, name, remedy):
    cfg = compose("data=shapes")
    arguments = {"scheduling": {0: 2}} if name.startswith("Gradient") else {}
    cfg.callbacks = {"mine": {"_target_": f"lightning.pytorch.callbacks.{name}", **arguments}}
    with pytest.raises(ConfigError, match=f"^callbacks: {name} would train beside the schedule; type {remedy}"):
        build_trainer(cfg, "32-true", RunDirectory(tmp_path, tmp_path), LightningModule())


@pytest.mark.parametrize(
    ("typed", "weights", "data", "expected", "origin"),
    [
        ({}, None, SMALL, {}, "from the dataset"),
        ({}, IMAGENET, LARGE, IMAGENET, "from the pretrained weights"),
        ({}, IMAGENET, SMALL, STATISTICS, "from the dataset, mean and std from the pretrained weights"),
        ({}, OF_A_RUN, SMALL, OF_A_RUN, "from the pretrained weights"),
        ({"mean": [0.5] * 3}, IMAGENET, LARGE, IMAGENET | {"mean": [0.5] * 3}, "mean as typed, else from the pre"),
        ({"size": 100}, None, LARGE, {"size": 100, "resize": 125}, "size resize as typed, else from the dataset"),
        ({"size": 100, "resize": 110}, None, LARGE, {"size": 100, "resize": 110}, "size resize as typed"),
    ],
    ids=["dataset", "weights", "small images keep their size", "weights of small images", "mean", "size", "resize"],
)
def test_images_are_prepared_as_typed_else_for_the_weights_else_as_the_dataset_says(
    typed: dict, weights: dict | None, data: Preprocess, expected: dict, origin: str
):
    record, description = choose_preprocess(NOTHING | typed, weights, data)
    assert record.to_dict() == data.to_dict() | expected
    assert description.startswith(origin)


@pytest.mark.parametrize("typed", [{"foo": 1}, {"mean": ["a", "b", "c"]}, {"size": 100, "resize": 10}, {"crop": "x"}])
def test_preprocess_settings_that_do_not_fit_are_refused(typed: dict):
    with pytest.raises(ConfigError, match="^preprocess: these settings do not fit together"):
        choose_preprocess(NOTHING | typed, None, LARGE)


def test_a_run_without_a_best_checkpoint_tests_its_last_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("WARNING", "imago"):
        assert final_checkpoint(tmp_path) is None
    assert "testing the last weights" in caplog.text


class Seen(Callback):
    """Record the pixel sums of the training batches of each epoch."""

    def __init__(self) -> None:
        self.batches: dict[int, list[float]] = defaultdict(list)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches[trainer.current_epoch].append(batch[0].double().sum().item())


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "num_batches"), [(2, 2), (0.1, 1), (1.0, 10)])
def test_overfit_batches_repeats_the_first_batches_and_leaves_the_validation_alone(
    compose, tmp_path, limit: float, num_batches: int
):
    seen = Seen()
    settings = ("trainer.max_epochs=2", f"++trainer.overfit_batches={limit}", "augment=none")
    trainer = fit_run(compose(*small_fit.SMALL, *settings, *QUICK), tmp_path, seen)
    assert len(seen.batches) == 2
    assert [len(batches) for batches in seen.batches.values()] == [num_batches] * 2
    assert len(set(map(tuple, seen.batches.values()))) == 1
    assert len(set(seen.batches[0])) == num_batches
    assert trainer.num_val_batches == [4]  # 100 images


@pytest.mark.parametrize(
    ("settings", "interval"),
    [
        ("", 2),  # of 10 steps
        ("trainer.limit_train_batches=3", 1),
        ("trainer.accumulate_grad_batches=2", 1),
        ("data.batch_size=1", 20),
        ("trainer.log_every_n_steps=30", 30),
    ],
)
def test_an_epoch_has_five_points_in_the_curves_unless_another_interval_is_typed(
    compose, tmp_path, settings: str, interval: int
):
    *_, trainer, _ = small_fit.build_whole_run(compose(*small_fit.SMALL, *QUICK[:2], *settings.split()), tmp_path)
    assert trainer.log_every_n_steps == interval


class Lrs(Callback):
    """Record the learning rate of each batch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ("trainer.max_epochs=2", range(20)),
        ("trainer.max_epochs=4 ++trainer.max_steps=7", range(7)),
        ("trainer.max_epochs=null ++trainer.max_steps=13", range(13)),
        ("trainer.max_epochs=1 ++trainer.max_steps=13", range(10)),
        ("trainer.max_epochs=2 trainer.limit_train_batches=3", range(6)),
        pytest.param("trainer.max_epochs=2 task._target_=own_tasks.Manual", range(20), marks=pytest.mark.soak),
        ("trainer.max_epochs=4 ++trainer.max_steps=7 task._target_=own_tasks.Manual", range(7)),  # 2 steps per batch
        (
            "trainer.max_epochs=9 ++trainer.max_steps=6 trainer.accumulate_grad_batches=3",
            [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5, 5],
        ),
    ],
)
def test_the_schedule_ends_with_the_last_step(compose, tmp_path, settings: str, steps: Sequence[int]):
    lrs, schedule = Lrs(), ("schedule.warmup_epochs=0", "optimizer.lr=1e-3")
    fit_run(compose(*small_fit.SMALL, *QUICK, *schedule, *settings.split()), tmp_path, lrs)
    assert lrs.seen == pytest.approx([1e-3 * (1 + math.cos(math.pi * step / steps[-1])) / 2 for step in steps])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*")
def test_a_manual_run_that_has_done_its_steps_trains_no_further_until_it_gets_more(compose, tmp_path):
    def fit(max_steps: int) -> int:
        lrs = Lrs()
        settings = ("task._target_=own_tasks.Manual", "trainer.max_epochs=4", f"++trainer.max_steps={max_steps}")
        fit_run(compose(*small_fit.SMALL, *QUICK, *settings), tmp_path, lrs)
        return len(lrs.seen)

    assert [fit(7), fit(7), fit(12)] == [7, 0, 5]


class CountsHooks(Callback):
    """Counts the calls of one hook, and has another one as an attribute of the object."""

    def __init__(self) -> None:
        self.num_calls = {"end": 0, "backward": 0}
        self.on_after_backward = lambda *_: self._count("backward")

    def on_train_batch_end(self, *_):
        self._count("end")

    def _count(self, name: str) -> None:
        self.num_calls[name] += 1


def test_hooks_of_a_step_that_do_nothing_are_not_called_and_all_others_are(compose, tmp_path, monkeypatch):
    called = []
    start = "lightning.pytorch.profilers.PassThroughProfiler.start"
    monkeypatch.setattr(start, lambda _, name: called.append(name) if name.startswith("[Callback]") else None)
    counting = CountsHooks()
    _skip_empty_hooks([counting])
    assert counting.on_train_batch_start is None
    trainer = fit_run(compose(*small_fit.SMALL, *QUICK), tmp_path, counting)
    assert counting.num_calls == {"end": 10, "backward": 10}
    of_class = {type(callback).__name__: type(callback) for callback in trainer.callbacks}
    for name in set(called):
        kind, hook = of_class[re.split(r"[.{]", name.removeprefix("[Callback]"))[0]], name.rpartition(".")[2]
        is_step_hook = hook.startswith(("on_train_batch", "on_before", "on_after_backward"))
        assert kind is CountsHooks or not is_step_hook or getattr(kind, hook) is not getattr(Callback, hook), name
    assert len([name for name in called if name.endswith("on_train_batch_end")]) >= 10 * 3
