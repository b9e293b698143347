"""The task under a real Trainer: loss curve, syncs per step, optimizer, schedule, checkpoint, overflows, resuming.

`tests/golden/loss_curve.json` holds the loss of 20 steps. A refactoring does not change it. A change that is meant to
change it writes the file again, and the commit says why:

    IMAGO_UPDATE_GOLDEN=1 .venv/bin/python -m pytest tests/task/test_base.py -k golden
"""

import json
import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig
from short_runs import csv_rows
from small_fit import QUIET, SMALL, DrawnShapes, EachStep, build_data, build_task, build_trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from imago.data import shapes
from imago.data.datamodule import ClassNamesAndSplits
from imago.errors import ConfigError
from imago.inference.load import load_classifier
from imago.paths import PROJECT_ROOT
from imago.task.base import ImageTask
from imago.task.classification import ClassificationTask
from imago.training.build import build_task as build_of_a_run
from imago.training.console import usable_commands

GOLDEN = PROJECT_ROOT / "tests" / "golden" / "loss_curve.json"
HOST_SYNC = "_local_scalar_dense"  # the operation behind .item(), float() and bool() of a tensor
SELF_LOG = "self.log"
SET_ATTRIBUTE = "Module.__setattr__"  # 1 µs: it looks for tensors and modules

pytestmark = [
    pytest.mark.filterwarnings(text)
    for text in (
        *QUIET,
        "ignore:.*before `optimizer.step",
        "ignore:.*exists and is not empty",
        "ignore:.*ended before the epoch ended",
    )
]


def fit(
    cfg: DictConfig,
    run_dir: Path,
    *callbacks: Callback,
    data: DrawnShapes | None = None,
    resume: Path | None = None,
    **settings: Any,
) -> tuple[ImageTask, Trainer]:
    """Train with all parts built again, as in a new process."""
    data = data or build_data(cfg)
    task, trainer = build_task(cfg, data, **settings), build_trainer(cfg, run_dir, *callbacks)
    num_batches = data.batches_per_epoch(cfg.trainer.limit_train_batches)
    task.steps_per_epoch = math.ceil(num_batches / cfg.trainer.accumulate_grad_batches)  # as the run counts them
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    return task, trainer


def saved(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


# The golden curve


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The order of a sum depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_twenty_steps_follow_the_golden_loss_curve(compose, tmp_path: Path, one_thread: None):
    cfg = compose("data=shapes", "model=simple_cnn", "trainer.max_epochs=2", "trainer.log_every_n_steps=1")
    fit(cfg, tmp_path, data=build_data(cfg, DrawnShapes))
    rows = csv_rows(tmp_path / "metrics.csv")
    losses = [float(row["train/loss_step"]) for row in rows if row["train/loss_step"]]
    if os.environ.get("IMAGO_UPDATE_GOLDEN") == "1":
        write_golden(losses)
        pytest.fail(f"{GOLDEN} was written again: read the difference, then run without IMAGO_UPDATE_GOLDEN.")
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())["losses"], rel=1e-3)


def write_golden(losses: list[float]) -> None:
    content = {
        "what": "loss of each step: SimpleCNN, 1,280 drawn shapes, batches of 128, AdamW, warmup and cosine, seed 0",
        "where": f"torch {torch.__version__}, fp32, one thread, {platform.machine()}",
        "losses": losses,
    }
    GOLDEN.write_text(json.dumps(content, indent=2) + "\n")


# What a step costs, counted: the same on every machine, under any load

LOG_EVERY = 4


class CountedOps(TorchDispatchMode):
    """Record the name of every aten operation, one list per batch: from its arrival to that of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = [[]]

    def new_batch(self) -> None:
        self.batches.append([])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.batches[-1].append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def count_steps(cfg: DictConfig, folder: Path, **settings: Any) -> list[list[str]]:
    """Return operations, calls of `self.log` and `Module.__setattr__` of each of 10 steps under the Trainer.

    Every fourth logs.
    """
    data, count = build_data(cfg), CountedOps()
    data.on_arrival = count.new_batch
    task, trainer = build_task(cfg, data, **settings), build_trainer(cfg, folder)
    log = task.log
    task.log = lambda *args, **kwargs: (count.batches[-1].append(SELF_LOG), log(*args, **kwargs))
    set_attribute = nn.Module.__setattr__
    with count, pytest.MonkeyPatch.context() as patch:
        counted = lambda *args: (count.batches[-1].append(SET_ATTRIBUTE), set_attribute(*args))[1]  # noqa: E731
        patch.setattr(nn.Module, "__setattr__", counted)
        trainer.fit(task, datamodule=data)
    assert any(SET_ATTRIBUTE in ops for ops in count.batches), "the calls are not counted"
    assert any(SELF_LOG in ops for ops in count.batches), "self.log, which logs the epoch, is not counted"
    return count.batches[1:11]


@pytest.fixture(scope="module", params=["to a file", "on a terminal"])
def steps(request, compose, tmp_path_factory) -> list[list[str]]:
    cfg = compose("data=shapes", *SMALL, f"trainer.log_every_n_steps={LOG_EVERY}")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "on a terminal":
            patch.setattr(sys.stdout, "isatty", lambda: True)
        return count_steps(cfg, tmp_path_factory.mktemp("steps"))


def split_by_logging(steps: list[list[str]]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Return the steps that do not log and those that do, by number from 1.

    The first creates the optimizer's state and the last ends the epoch: both are left out.
    """
    numbered = list(enumerate(steps, start=1))[1:-1]
    quiet = {number: ops for number, ops in numbered if number % LOG_EVERY}
    return quiet, {number: ops for number, ops in numbered if number % LOG_EVERY == 0}


def assert_quiet(steps: list[list[str]]) -> None:
    quiet, _ = split_by_logging(steps)
    waits = {number: [op for op in ops if op in (HOST_SYNC, SELF_LOG)] for number, ops in quiet.items()}
    assert waits == {number: [] for number in quiet}


def test_a_step_that_does_not_log_never_syncs_and_never_calls_self_log(steps):
    assert_quiet(steps)


def test_a_step_that_does_not_log_sets_no_attribute_of_a_module(steps):
    quiet, _ = split_by_logging(steps)
    assert {number: ops.count(SET_ATTRIBUTE) for number, ops in quiet.items()} == dict.fromkeys(quiet, 0)


def test_a_logging_step_syncs_at_most_four_times(steps):
    _, logging = split_by_logging(steps)
    syncs = {number: ops.count(HOST_SYNC) for number, ops in logging.items()}
    assert list(syncs) == [4, 8]
    assert min(syncs.values()) >= 1, "the counter records no logging"
    assert max(syncs.values()) <= 4, syncs


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_logging_step_leaves_one_point_on_each_curve(compose, tmp_path: Path, accumulate: int):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = compose("data=shapes", *SMALL, "trainer.log_every_n_steps=2", f"trainer.accumulate_grad_batches={accumulate}")
    fit(cfg, tmp_path)
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    steps = {tag: [point.step for point in curves.Scalars(tag)] for tag in ("train/loss_step", "lr", "images_per_s")}
    assert steps == dict.fromkeys(steps, [1, 3] if accumulate == 2 else [1, 3, 5, 7, 9])  # counted from 0


MIXING = (
    "augment.mixup_alpha=0.4",
    "augment.cutmix_alpha=1.0",
    "augment.erase_probability=0.5",
    "augment.brightness=0.2",
)


@pytest.mark.parametrize("weight", ["null", "balanced"])
def test_soft_labels_and_class_weights_never_sync(compose, tmp_path: Path, weight: str):
    cfg = compose("data=shapes", *SMALL, *MIXING, f"loss.weight={weight}", f"trainer.log_every_n_steps={LOG_EVERY}")
    assert_quiet(count_steps(cfg, tmp_path, class_counts=[32] * 10))


def test_averaging_weights_never_syncs(compose, tmp_path: Path):
    cfg = compose("data=shapes", *SMALL, "callbacks=ema", f"trainer.log_every_n_steps={LOG_EVERY}")
    assert_quiet(count_steps(cfg, tmp_path))


# What reaches the schedule, the optimizer and the checkpoint


@pytest.mark.parametrize(("accumulate", "is_counted"), [(1, False), (2, True), (3, True), (3, False)])
@pytest.mark.slow
def test_the_schedule_reaches_its_last_value_at_the_last_step(
    compose, tmp_path: Path, accumulate: int, is_counted: bool
):
    """10 batches per epoch: 10 steps, 5, and 4 of which the last is shorter; the Trainer counts them, or the run."""
    own = (f"trainer.accumulate_grad_batches={accumulate}", "schedule.final_factor=0.25", "optimizer.lr=0.004")
    cfg = compose("data=shapes", *SMALL, *own, "trainer.max_epochs=2")
    data = build_data(cfg)
    task = build_task(cfg, data)
    num_steps = math.ceil(10 / accumulate)
    task.steps_per_epoch = num_steps if is_counted else None
    lrs: list[float] = []
    record = EachStep(lambda trainer: lrs.append(trainer.optimizers[0].param_groups[0]["lr"]))
    build_trainer(cfg, tmp_path, record).fit(task, datamodule=data)
    assert len(lrs) == 2 * num_steps
    assert lrs[-1] == pytest.approx(0.25 * 0.004)
    assert lrs[-2] > 1.02 * lrs[-1]
    assert max(lrs) == pytest.approx(0.004)


@pytest.mark.parametrize("monitor", ["val/acc", "val/f1"])
def test_a_plateau_schedule_and_early_stopping_react_when_validation_does_not_improve(
    compose, tmp_path: Path, monitor: str
):
    lrs: list[float] = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            lrs.append(trainer.optimizers[0].param_groups[0]["lr"])

    limits = ("trainer.max_epochs=3", "trainer.limit_train_batches=1", "optimizer.lr=1e-9")
    monitors = (f"schedule.monitor={monitor}", f"callbacks.early_stopping.monitor={monitor}")
    stop = ("callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=2", "trainer.max_epochs=9")
    _, trainer = fit(compose(*SMALL, "data=shapes", *PLATEAU, *limits, *stop, *monitors), tmp_path, Watch())
    assert lrs == pytest.approx([1e-9, 1e-9, 0.3e-9])  # a network that does not move does not improve
    assert trainer.lr_scheduler_configs[0].scheduler.num_bad_epochs == 0


@pytest.mark.slow
def test_the_test_computes_in_fp32_after_training_in_bf16(compose, tmp_path: Path):
    cfg = compose("data=shapes", *SMALL, "trainer.precision=bf16-mixed", "trainer.limit_train_batches=2")
    data = build_data(cfg)
    task, trainer = build_task(cfg, data), build_trainer(cfg, tmp_path)
    seen: dict[str, set[torch.dtype]] = {"fit": set(), "test": set()}
    for module in task.net.modules():
        module.register_forward_hook(lambda _module, _inputs, output: seen[trainer.state.fn].add(output.dtype))
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    assert torch.bfloat16 in seen["fit"]
    assert seen["test"] == {torch.float32}


@pytest.mark.parametrize(("precision", "algorithm"), [("32-true", "value"), ("bf16-mixed", "null")])
def test_gradients_are_clipped_before_a_fused_step_in_every_precision(
    compose, tmp_path: Path, precision: str, algorithm: str
):
    own = ("optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0.0", "optimizer.nesterov=false")
    how = ("optimizer.weight_decay=0.0", "schedule=constant", f"trainer.gradient_clip_algorithm={algorithm}")
    clip = ("trainer.gradient_clip_val=0.001", f"trainer.precision={precision}", "trainer.limit_train_batches=1")
    cfg = compose("data=shapes", *SMALL, *own, *how, *clip)
    assert cfg.optimizer.fused
    data = build_data(cfg)
    before = torch.cat([value.detach().flatten() for value in build_task(cfg, data).parameters()])
    task, _ = fit(cfg, tmp_path, data=data)
    moved = torch.cat([value.detach().flatten() for value in task.parameters()]) - before
    size = moved.norm() if algorithm == "null" else moved.abs().max()
    assert size.item() == pytest.approx(0.001, rel=1e-2)


# Tasks of the user's own


def epoch_values(run_dir: Path, name: str) -> list[float]:
    return [float(row[name]) for row in csv_rows(run_dir / "metrics.csv") if row.get(name)]


def test_a_training_step_that_returns_the_loss_alone_leaves_out_the_training_accuracy(compose, tmp_path: Path):
    cfg = compose("data=shapes", *SMALL, "trainer.log_every_n_steps=2")
    fit(cfg, tmp_path / "both")
    cfg.task._target_ = "own_tasks.LossOnly"
    fit(cfg, tmp_path / "loss")
    for name in ("train/loss", "train/loss_step", "val/acc", "val/f1"):
        assert epoch_values(tmp_path / "loss", name) == epoch_values(tmp_path / "both", name) != []
    for name in ("train/acc", "train/acc_step"):
        assert (epoch_values(tmp_path / "loss", name), epoch_values(tmp_path / "both", name) != []) == ([], True)


@pytest.mark.slow
def test_with_manual_optimization_the_schedule_and_the_curves_count_batches(compose, tmp_path: Path):
    own = ("task._target_=own_tasks.Manual", "optimizer.lr=0.004", "schedule.final_factor=0.25")
    cfg = compose("data=shapes", *SMALL, *own, "trainer.log_every_n_steps=2", "trainer.max_epochs=2")
    _, trainer = fit(cfg, tmp_path)
    assert trainer.global_step == 40  # two steps per batch
    rows = [row for row in csv_rows(tmp_path / "metrics.csv") if row["train/loss_step"]]
    assert [int(row["step"]) for row in rows] == list(range(1, 20, 2))
    lrs = [float(row["lr"]) for row in rows]
    assert lrs[-1] == pytest.approx(0.25 * 0.004)
    assert max(lrs) == pytest.approx(0.004, rel=0.05)
    assert len({row["train/acc_step"] for row in rows} - {""}) > 1


@pytest.mark.parametrize("setting", ["accumulate_grad_batches=2", "gradient_clip_val=0.5"])
def test_what_only_automatic_optimization_can_do_is_refused_in_a_manual_task(compose, setting: str):
    cfg = compose("data=shapes", *SMALL, f"trainer.{setting}")
    cfg.task._target_ = "own_tasks.Manual"
    with pytest.raises(ConfigError, match=rf"^trainer\.{setting}: Manual steps its optimizers itself"):
        build_of_a_run(cfg, build_data(cfg))


@pytest.mark.parametrize(
    ("name", "predicts_classes", "commands"),
    [
        ("LossOnly", True, ("eval", "predict", "export")),
        ("Manual", True, ("eval", "predict", "export")),
        ("Rotation", False, ("predict", "export")),
        ("OwnTest", False, ("predict", "export")),
        ("OwnForward", True, ()),
    ],
)
def test_commands_use_a_task_only_as_far_as_its_outputs_are_those_of_the_network_for_the_classes(
    compose, tmp_path: Path, name: str, predicts_classes: bool, commands: tuple[str, ...]
):
    cfg = compose("data=shapes", *SMALL, "trainer.limit_train_batches=1", "trainer.limit_val_batches=1")
    cfg.task._target_ = f"own_tasks.{name}"
    task, _ = fit(cfg, tmp_path)
    assert task.hparams["predicts_classes"] == predicts_classes
    assert tuple(usable_commands(task)) == commands
    file = tmp_path / "checkpoints" / "last.ckpt"
    if commands:
        classifier = load_classifier(file)
        assert classifier.predicts_classes == predicts_classes
        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        torch.testing.assert_close(classifier(images), task.eval()(classifier.normalize(images)))
    else:
        with pytest.raises(ConfigError, match="which overrides `forward`: its network alone would give other outputs"):
            load_classifier(file)


def test_a_task_with_other_outputs_measures_and_saves_them(compose, tmp_path: Path):
    cfg = compose("data=shapes", *SMALL, "trainer.limit_train_batches=3")
    cfg.task._target_ = "own_tasks.Rotation"
    task, trainer = fit(cfg, tmp_path)
    assert task(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert not task.predicts_classes(shapes.CLASS_NAMES)
    hparams = saved(tmp_path)["hyper_parameters"]
    assert hparams["output_names"] == ["0 degrees", "90 degrees", "180 degrees", "270 degrees"]
    assert (hparams["predicts_classes"], hparams["class_names"]) == (False, list(shapes.CLASS_NAMES))
    # Every fourth image is in its own orientation; the batches of validation are counted again, one by one.
    correct = 0
    data = build_data(cfg)
    for batch in data.val_dataloader():
        images, _ = data.on_after_batch_transfer(batch, 0)
        rotated = torch.stack([torch.rot90(image, index % 4, (1, 2)) for index, image in enumerate(images)])
        with torch.no_grad():
            correct += (task.eval()(rotated).argmax(dim=1) == torch.arange(len(images)) % 4).sum().item()
    assert trainer.callback_metrics["val/acc"].item() == pytest.approx(correct / 100)


def test_class_weights_of_other_outputs_are_numbers_for_these_outputs(compose):
    own = ("data=shapes", *SMALL, "task._target_=own_tasks.Rotation")
    data = build_data(compose(*own))
    with pytest.raises(ConfigError, match="counts images of the classes, and Rotation has other outputs"):
        build_task(compose(*own, "loss.weight=balanced"), data, class_counts=[32] * 10)
    task = build_task(compose(*own, "loss.weight=[1,2,3,4]"), data, class_counts=[32] * 10)
    logits, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 1])
    losses, weights = -logits.log_softmax(1)[range(6), targets], targets + 1.0
    torch.testing.assert_close(task.loss(logits, targets), (losses * weights).sum() / weights.sum())


def test_frozen_parts_of_the_network_stay_in_eval_mode(compose):
    cfg = compose("data=shapes", "model=small_resnet", "model.freeze=backbone", "trainer.max_epochs=1")
    task = build_task(cfg, build_data(cfg)).eval().train()
    assert {name for name, module in task.net.named_modules() if module.training} == {"", "head"}


def test_the_settings_in_a_checkpoint_are_plain_data_and_rebuild_the_task(compose, tmp_path: Path):
    cfg = compose("data=shapes", *SMALL, "loss.weight=balanced", "trainer.limit_train_batches=1")
    counts = [10] * 5 + [54] * 5
    task, _ = fit(cfg, tmp_path, class_counts=counts)
    assert task.loss.weight.tolist() == pytest.approx([3.2] * 5 + [320 / 540] * 5)
    settings = saved(tmp_path)["hyper_parameters"]
    assert json.loads(json.dumps(settings)) == settings  # JSON turns tuples, enums and string subclasses into others
    assert kinds(settings) <= {dict, list, str, int, float, bool, type(None)}
    assert settings["net"] == {**cfg.model}
    assert settings["class_names"] == list(shapes.CLASS_NAMES)
    assert settings["class_counts"] == counts
    assert settings.pop("output_names") == settings["class_names"]
    assert settings.pop("predicts_classes")
    assert ClassificationTask(**settings).loss.weight.tolist() == task.loss.weight.tolist()


def kinds(value: object) -> set[type]:
    """Return the exact types of a value and everything in it."""
    below = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return {type(value)}.union(*map(kinds, below))


# Seeds and interrupted runs


@pytest.mark.slow
def test_the_seed_alone_determines_the_weights_whatever_was_drawn_before(compose, tmp_path: Path):
    class Draw(Callback):
        """Seeds torch's generator before training."""

        def __init__(self, seed: int) -> None:
            self.seed = seed

        def setup(self, trainer, pl_module, stage):
            torch.manual_seed(self.seed)

    def weights(seed: int, disturb: int) -> dict[str, Tensor]:
        limits = ("trainer.limit_train_batches=3", "callbacks.last_checkpoint=null")
        cfg = compose("data=shapes", *SMALL, "model.dropout=0.5", f"seed={seed}", *limits)
        return fit(cfg, tmp_path / f"{seed} {disturb}", Draw(disturb))[0].net.state_dict()

    ours, theirs, others = weights(3, disturb=1), weights(3, disturb=2), weights(4, disturb=1)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert not any(torch.equal(ours[name], others[name]) for name in ours)


class UnevenShapes(DrawnShapes):
    """94 shapes: 24 of each of the first three classes, and 3 or 4 of the rest, which balanced epochs repeat."""

    num_train = 240

    def load_dataset(self) -> ClassNamesAndSplits:
        class_names, found = super().load_dataset()
        train = found["train"]
        is_taken = (train.labels < 3) | (np.arange(len(train)) < 34)
        return class_names, found | {"train": train.take(np.flatnonzero(is_taken))}


class BreakAt(Callback):
    """Raise in a hook of one step."""

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self.raise_at_step)

    def raise_at_step(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            raise ZeroDivisionError("interrupted")


RANDOM_DRAWS = (  # in the loader per batch and per image, on the device, and in the network
    *("augment.crop_padding_px=4", "augment.policy=trivialaugment", "augment.brightness=0.4"),
    *("augment.erase_probability=0.5", "augment.mixup_alpha=0.4", "model.dropout=0.5"),
)
TEN_STEPS = ("data.sampler=balanced", "data.batch_size=16", "model.hidden_features=16", "trainer.max_epochs=2")


def fit_uneven(cfg: DictConfig, run_dir: Path, *callbacks: Callback, resume: Path | None = None) -> dict[str, Tensor]:
    """Return the weights after 2 epochs of 5 steps."""
    settings = {"num_workers": 0, "augment": dict(cfg.augment), "seed": cfg.seed, "sampler": cfg.data.sampler}
    data = UnevenShapes(cfg.data.batch_size, **settings)
    data.set_up_data()
    task, trainer = fit(cfg, run_dir, *callbacks, data=data, resume=resume)
    assert trainer.global_step == 10
    return task.net.state_dict()


@pytest.mark.slow
def test_a_run_interrupted_in_each_epoch_and_between_ends_with_the_weights_of_an_uninterrupted_one(
    compose, tmp_path: Path
):
    cfg = compose("data=shapes", "callbacks.last_checkpoint.every_minutes=0.0", *TEN_STEPS, *RANDOM_DRAWS)
    expected = fit_uneven(cfg, tmp_path / "whole")
    last, resume = tmp_path / "interrupted" / "checkpoints" / "last.ckpt", None
    # Lightning calls the callbacks that save last, so that a batch whose start raises has not been saved.
    for hook, step, saved_step in (
        ("train_batch_start", 2, 1),
        ("train_batch_start", 5, 5),
        ("before_optimizer_step", 7, 7),
    ):
        with pytest.raises(ZeroDivisionError):
            fit_uneven(cfg, tmp_path / "interrupted", BreakAt(f"on_{hook}", step), resume=resume)
        assert saved(tmp_path / "interrupted")["global_step"] == saved_step
        resume = last
    found = fit_uneven(cfg, tmp_path / "interrupted", resume=last)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


PLATEAU = ("schedule=plateau", "schedule.patience=0", "schedule.monitor=val/f1")
CASES = {
    "plateau": PLATEAU,
    "averaged weights": ("callbacks=ema", "callbacks.ema.decay=0.7", "schedule=one_cycle"),
    "muon": ("optimizer=muon", "schedule=linear", "schedule.warmup_epochs=null", "schedule.warmup_steps=3"),
    "adam with clipping": (
        *("optimizer=adam", "trainer.gradient_clip_val=0.1"),
        *("schedule=step", "schedule.every_epochs=1"),
    ),
    "sgd, accumulating": ("optimizer=sgd", "trainer.accumulate_grad_batches=2", "optimizer.lr=0.01"),
    "manual optimization": ("task._target_=own_tasks.Manual",),
    "unfreezing": (
        *("callbacks=backbone_finetuning", "callbacks.backbone_finetuning.epochs_per_layer=1"),
        *("optimizer.head_lr_multiplier=5", "optimizer.layer_lr_decay=0.7"),
    ),
    "any other": ("optimizer=torch", "optimizer._target_=torch.optim.NAdam"),
    "distillation": ("task=distillation", "task.teacher=some/run", "callbacks=ema"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_interrupted_twice_ends_with_the_same_weights_with_each_kind_of_optimizer(
    compose, tmp_path: Path, case: str
):
    limits = ("trainer.max_epochs=4", "trainer.limit_train_batches=4", "callbacks.last_checkpoint.every_minutes=0.0")
    cfg = compose(*SMALL, "data=shapes", "model.dropout=0.2", *limits, *CASES[case])
    torch.manual_seed(7)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    settings = {"teacher": teacher} if case == "distillation" else {}
    _, whole = fit(cfg, tmp_path / "whole", **settings)
    resume = None
    factor = 2 if case == "manual optimization" else 1  # steps per batch
    for hook, step in (("on_train_epoch_start", 4 * factor), ("on_train_batch_start", 7 * factor)):
        with pytest.raises(ZeroDivisionError):
            fit(cfg, tmp_path / "broken", BreakAt(hook, step), resume=resume, **settings)
        resume = tmp_path / "broken" / "checkpoints" / "last.ckpt"
    _, resumed = fit(cfg, tmp_path / "broken", resume=resume, **settings)
    ours, theirs = saved(tmp_path / "whole"), saved(tmp_path / "broken")
    for part in {"state_dict", "current_model_state"} & ours.keys():
        assert [name for name in ours[part] if not torch.equal(ours[part][name], theirs[part][name])] == []
    assert resumed.optimizers[0].param_groups[0]["lr"] == whole.optimizers[0].param_groups[0]["lr"]
    assert resumed.callback_metrics["val/acc"] == whole.callback_metrics["val/acc"]
