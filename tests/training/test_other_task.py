"""LightningModules that are no ImageTask train, save and resume; tests/own_tasks.py has three."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from own_tasks import ManualModule, Plain, Template
from short_runs import summary
from small_fit import build_data
from warm_python import warm_imago
from warm_runs import WarmRuns

from imago.analysis.evaluation import eval_command
from imago.errors import ConfigError
from imago.inference.load import load_classifier
from imago.runs.checkpoint import read_checkpoint
from imago.training.other_task import ScheduleIntervalCheck, build_other_task, is_image_task, unsavable_hyperparameters

SMALL = (
    *("data=shapes", "data.batch_size=32", "model.hidden_features=16", "model.dropout=0.1", "trainer.max_epochs=2"),
    *("trainer.limit_train_batches=3", "trainer.limit_val_batches=2", "trainer.limit_test_batches=1"),
    *("trainer.log_every_n_steps=1", "callbacks.last_checkpoint.every_minutes=0.0", "augment.brightness=0.2"),
)
BY_EPOCH = ("schedule=constant", "schedule._target_=torch.optim.lr_scheduler.ExponentialLR", "+schedule.gamma=0.5")
TRUST = "trust=[own_tasks,interruptions]"


def task_of(cfg: Any, name: str) -> Any:
    cfg.task._target_ = f"own_tasks.{name}"
    assert not is_image_task(cfg)
    return build_other_task(cfg, build_data(cfg))


def test_network_optimizer_and_scheduler_arrive_built(compose):
    cfg = compose("data=shapes", "model.hidden_features=16", "optimizer.lr=0.25")
    task = task_of(cfg, "Template")
    assert isinstance(task, Template)
    assert task(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    weights = list(task.parameters())
    optimizer = task.hparams["optimizer"](params=weights)
    assert (type(optimizer), optimizer.param_groups[0]["lr"]) == (torch.optim.AdamW, 0.25)
    assert task.hparams["scheduler"](optimizer=optimizer).get_last_lr()[0] < 0.25  # it warms up
    assert {*unsavable_hyperparameters(task)} == {"net", "optimizer", "scheduler"}
    assert isinstance(task_of(cfg, "ManualModule"), ManualModule)
    assert isinstance(task_of(cfg, "Plain"), Plain)
    task = task_of(compose("data=shapes", "+task.scheduler=null", "+task.compile=true"), "Template")
    assert (task.hparams["scheduler"], task.hparams["compile"]) == (None, True)
    task_of(compose("data=shapes", "resume=run", "model.weights=/no/such.pth"), "Template")  # the checkpoint has them


def test_a_module_whose_arguments_are_missing_or_which_cannot_do_something_is_one_line(compose):
    with pytest.raises(
        ConfigError, match="^tta=flip needs a task derived from imago.task.base.ImageTask; type tta=none"
    ):
        task_of(compose("data=shapes", "tta=flip"), "Template")
    cfg = compose("data=shapes")
    cfg.task._target_ = "torch.nn.Flatten"
    with pytest.raises(ConfigError, match="torch.nn.Flatten is not a LightningModule"):
        build_other_task(cfg, build_data(cfg))


def test_a_schedule_that_counts_steps_is_not_stepped_once_per_epoch(compose):
    task = task_of(compose("data=shapes"), "Template")
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    by_epoch = SimpleNamespace(interval="epoch", scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
    trainer: Any = SimpleNamespace(lr_scheduler_configs=[by_epoch])
    ScheduleIntervalCheck().on_train_start(trainer, task)
    by_epoch.scheduler = task.hparams["scheduler"](optimizer=optimizer)
    with pytest.raises(ConfigError, match="^schedule: Template steps its scheduler once per epoch, but WarmupCosine"):
        ScheduleIntervalCheck().on_train_start(trainer, task)


def steps_and_values(run: Path) -> list[dict[str, str]]:
    """Return the curves, without speed and memory, and without what a module itself sums over an epoch of training."""
    timed = ("images_per_s", "data_wait_share", "peak_memory_gib", "train/loss")
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    kept = [{name: text for name, text in row.items() if name not in timed and text} for row in rows]
    return [row for row in kept if row.keys() - {"step", "epoch"}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "extra", "left_out"),
    [
        ("Template", BY_EPOCH, "net, optimizer, scheduler"),
        ("ManualModule", (), "net, optimizer"),
        ("Plain", ("callbacks.best_checkpoint.monitor=val_acc", "callbacks.best_checkpoint.mode=max"), ""),
    ],
)
def test_a_module_is_trained_tested_and_resumed_to_the_same_weights(
    runs: WarmRuns, tmp_path: Path, name: str, extra: tuple[str, ...], left_out: str
):
    typed = (*SMALL, *extra, f"task._target_=own_tasks.{name}")
    done = runs.run(*typed, f"run_name={name}")
    assert (f"left out of the checkpoints, as they are not plain data: {left_out}\n" in done.stdout) == bool(left_out)
    whole, broken = runs.logs / "train" / name, runs.logs / "train" / f"{name}-broken"
    runs.run(*typed, "+callbacks.broken={_target_: interruptions.Raise, step: 4}", f"run_name={broken.name}", expect=1)
    if name == "Template":
        done = runs.run(f"resume={broken}", "callbacks.broken=null", expect=2)
        assert f"task._target_=own_tasks.{name} is neither a LightningModule of this project's src/" in done.stderr
    runs.run(f"resume={broken}", "callbacks.broken=null", TRUST)
    ours, theirs = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, broken))
    assert ours["imago"]["task"] == f"own_tasks.{name}"
    assert not {*left_out.split(", ")} & ours["hyper_parameters"].keys()
    assert [
        key for key in ours["state_dict"] if not torch.equal(ours["state_dict"][key], theirs["state_dict"][key])
    ] == []
    assert steps_and_values(whole) == steps_and_values(broken)
    found, again = summary(whole), summary(broken)
    assert (found["status"], found["steps"], found["epochs"]) == ("finished", 6, 2)
    assert {key: found[key] for key in ("val", "test", "best_epoch")} == {
        key: again[key] for key in ("val", "test", "best_epoch")
    }
    assert 0 <= found["test"]["acc"] <= 1
    assert "interval_95" not in found["test"]

    image = tmp_path / "x.png"
    for command in ("eval", "export", "predict") if name == "Plain" else ():
        arguments = [f"run={whole}", *([f"input={image}"] if command == "predict" else [])]
        image.write_bytes(b"not read")
        refused = warm_imago().run(f"src/{command}.py", *arguments, f"paths.log_dir={tmp_path}")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert f"was saved by own_tasks.{name}, which is not derived from imago.task.base.ImageTask" in refused.stderr
    with pytest.raises(ConfigError, match="it has no settings to rebuild its network from"):
        load_classifier(whole)
    assert eval_command(whole) == ""


@pytest.mark.slow
def test_a_monitored_name_that_is_not_logged_is_one_line_and_the_last_weights_are_tested(runs: WarmRuns):
    done = runs.run(*SMALL, "task._target_=own_tasks.Plain", "run_name=unmonitored")
    line = "callbacks.best_checkpoint.monitor=val/acc is not logged, so best.ckpt is not saved and the last weights"
    assert done.text.count(line) == 1
    assert "logged are val_acc" in done.text
    found = summary(runs.logs / "train" / "unmonitored")
    assert (found["status"], "val" in found) == ("finished", False)
    assert json.dumps(found["test"]).startswith('{"acc": ')
    stop = ("callbacks=[default,early_stopping]", "callbacks.early_stopping.mode=max")
    done = runs.run(*SMALL, "task._target_=own_tasks.Plain", *stop, expect=2)
    (line,) = [text for text in done.stderr.splitlines() if not text.endswith(": left out.")]
    assert line.startswith("error: early stopping: monitor=val/acc is not logged by Plain; it logs val_acc;")
