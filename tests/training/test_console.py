"""Class weights at the start of a run; at its end accuracy with interval, what was left out, and the next commands."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Trainer
from small_fit import SMALL, build_data, build_whole_run

from imago.training.build import build_task
from imago.training.console import end_lines, extension_settings, start_table

MORE = "trainer.max_epochs=6"
SUMMARY = {
    "epochs": 3,
    "steps": 30,
    "best_epoch": 2,
    "val": {"acc": 0.9, "monitor": "val/acc"},
    "test": {"acc": 0.85, "interval_95": [0.8, 0.9], "num_images": 1000, "num_left_out": 0},
    "images_per_s": 1234.5,
    "data_wait_share": 0.25,
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("trainer.max_time=00:01:00:00", "trainer.max_time=00:01:00:00; the schedule does not end there, but after 10"),
        (
            "trainer.limit_val_batches=1 data.batch_size=32",
            "limits         32 of 100 val images, drawn by class, the same",
        ),
        ("trainer.limit_test_batches=0.5 data.batch_size=16", "limits         48 of 100 test images, drawn by class"),
        ("++trainer.overfit_batches=2", "trainer.overfit_batches: every epoch has the batches of the first one"),
    ],
)
def test_the_start_table_has_what_limits_the_training(compose: Callable, tmp_path: Path, settings: str, line: str):
    def table(*settings: str) -> str:
        cfg = compose("model.hidden_features=16", *settings)
        return start_table(cfg, *build_whole_run(cfg, tmp_path)[:3], "", "")

    assert line in table(*settings.split())
    assert line not in table()


@pytest.mark.parametrize(
    ("size", "num_images", "settings", "is_advised"),
    [
        (96, 100, (), True),
        (32, 100, (), False),
        (96, 5_000, (), False),
        (96, 100, ("model.weights=other.ckpt",), False),
        (96, 100, ("resume=RUN",), False),
    ],
)
def test_few_photographs_without_pretrained_weights_are_answered_with_the_recipe_for_them(
    compose: Callable, tmp_path: Path, size: int, num_images: int, settings: tuple[str, ...], is_advised: bool
):
    cfg = compose("data=shapes", *SMALL, *settings, f"paths.run_dir={tmp_path}")
    data = build_data(cfg)
    task = build_task(compose("data=shapes", *SMALL), data)
    data.preprocess = replace(data.preprocess, size=size, resize=size)
    data.splits = replace(
        data.splits, train=data.splits.train.take(np.resize(np.arange(len(data.splits.train)), num_images))
    )
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu")
    table = start_table(cfg, data, task, trainer, "typed", "typed")
    advice = r"^advice +100 images are few for a network from scratch: experiment=finetune_folder data\.root=DIR fine"
    assert bool(re.search(advice, table, re.MULTILINE)) == is_advised


def test_the_accuracy_has_its_interval_and_number_of_images(run_dir: Path):
    first, speed, *_ = end_lines(SUMMARY, run_dir, MORE).splitlines()
    accuracy = "test accuracy 85.00%, 95 % interval 80.00% to 90.00%, n = 1,000"
    assert first == f"{accuracy} (best checkpoint: epoch 2, val accuracy 90.00%)"
    assert speed == "1,234 images/s, 25% of the training time spent waiting for data"


def test_test_time_augmentation_and_left_out_images_are_printed(run_dir: Path):
    test = SUMMARY["test"] | {"tta": "flip", "num_left_out": 40}
    text = end_lines(SUMMARY | {"test": test}, run_dir, MORE)
    assert "test accuracy, mean over several views of each image (tta=flip), 85.00%" in text
    assert "only a part of the test split: trainer.limit_test_batches left out 40 images" in text


def test_a_val_accuracy_far_above_that_of_the_test_is_noted_with_the_setting(run_dir: Path):
    text = end_lines(SUMMARY | {"val": SUMMARY["val"] | {"acc": 0.99, "num_images": 500}}, run_dir, MORE)
    assert "\nnote: val accuracy 99.00% is far above test 85.00%: the initial weights were trained on these" in text
    assert "calibrate=none leaves them as they are\n" in text
    assert "note:" not in end_lines(SUMMARY | {"val": SUMMARY["val"] | {"acc": 0.87, "num_images": 500}}, run_dir, MORE)


def test_commands_that_need_a_checkpoint_are_printed_only_if_it_exists(run_dir: Path):
    assert "eval.py" not in end_lines(SUMMARY, run_dir, MORE)
    assert "resume=" not in end_lines(SUMMARY, run_dir, MORE)
    for name in ("best", "last"):
        (run_dir / "checkpoints" / f"{name}.ckpt").touch()
    text = end_lines(SUMMARY, run_dir, MORE)
    assert all(f"python src/{name}.py run=" in text for name in ("eval", "predict", "export"))
    assert "trainer.max_epochs=6" in text


def test_further_metrics_of_the_test_and_another_monitored_value_are_printed(run_dir: Path):
    val, test = SUMMARY["val"] | {"f1": 0.75, "monitor": "val/f1"}, SUMMARY["test"] | {"f1": 0.93124, "auroc": 1.0}
    first, second, *_ = end_lines(SUMMARY | {"val": val, "test": test}, run_dir, MORE).splitlines()
    assert first.endswith("(best checkpoint: epoch 2, val accuracy 90.00%, val/f1 0.7500)")
    assert second == "test f1 0.9312, auroc 1.0000"


def test_a_task_may_lack_accuracy_interval_and_number_of_images(run_dir: Path):
    summary = {"epochs": 3, "best_epoch": 2, "val": {"loss": 0.5, "monitor": "val_loss"}}
    first = "test loss 0.2500 (best checkpoint: epoch 2, val/loss 0.5000)"
    assert end_lines(summary | {"test": {"loss": 0.25}}, run_dir, MORE) == first  # no file: nothing comes next
    assert end_lines(summary | {"test": {"acc": 0.5}}, run_dir, MORE).startswith(
        "test accuracy 50.00% (best checkpoint: "
    )
    (run_dir / "tensorboard").mkdir()
    assert end_lines({"epochs": 3, "test": {}}, run_dir, MORE).startswith("next:\n")


EARLY = ("callbacks=early_stopping", "callbacks.early_stopping.patience=4")
PATIENCE, NO_PATIENCE = ({"stopped_early": {"monitor": "val/acc", "patience": patience}} for patience in (4, None))


@pytest.mark.parametrize(
    ("settings", "summary", "max_epochs", "expected"),
    [
        ([], {}, 3, "trainer.max_epochs=6"),
        (["++trainer.max_steps=30"], {}, 3, "trainer.max_steps=60"),
        (["++trainer.max_steps=31"], {}, 3, "trainer.max_epochs=6"),
        (["trainer.max_time=00:00:01:00"], {}, 9, "trainer.max_time=null"),
        (["trainer.max_time=00:00:01:00"], {}, 3, "trainer.max_epochs=6"),
        (EARLY, {}, 3, "trainer.max_epochs=6"),
        (EARLY, PATIENCE, 9, "callbacks.early_stopping.patience=8"),
        (EARLY, NO_PATIENCE, 9, "callbacks.early_stopping=null"),  # a value that is not finite, or a threshold
        (EARLY, PATIENCE, 3, "callbacks.early_stopping.patience=8 trainer.max_epochs=6"),
        ([*EARLY, "++trainer.max_steps=30"], PATIENCE, 3, "callbacks.early_stopping.patience=8 trainer.max_steps=60"),
        ([*EARLY, "trainer.max_time=00:00:01:00"], PATIENCE, 9, "callbacks.early_stopping.patience=8"),
    ],
)
def test_the_command_to_continue_changes_what_has_ended_the_run(
    compose: Callable, settings: list[str], summary: dict, max_epochs: int, expected: str
):
    assert extension_settings(compose(*settings), SUMMARY | summary, max_epochs) == expected


def test_the_start_table_shows_the_weight_of_each_class(compose, tmp_path: Path):
    """Drawn shapes with numbers for class names, in the order of texts."""
    names = ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7")
    typed = ", ".join(f"{name}: {int(name) + 1}" for name in reversed(names))
    cfg = compose("data=shapes", *SMALL, f"loss.weight={{{typed}}}", f"paths.run_dir={tmp_path}")
    data = build_data(cfg)
    data.splits = replace(data.splits, class_names=names)
    task = build_task(cfg, data)
    assert task.loss.weight.tolist() == [int(name) + 1 for name in names]
    assert task.hparams["loss"]["weight"] == task.loss.weight.tolist()  # plain data, for the checkpoint
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu")
    table = start_table(cfg, data, task, trainer, "typed", "typed")
    assert re.search(r"^class weights +0: 1, 1: 2, 10: 11, 11: 12, 2: 3, .*, 7: 8$", table, re.MULTILINE)
