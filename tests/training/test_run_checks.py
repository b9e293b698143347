"""A loss that cannot work, limits that leave nothing, and class names in the order of texts."""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import small_fit
from omegaconf import open_dict

from imago.data.splitting import SplitPlan
from imago.errors import ConfigError
from imago.training.build import build_task
from imago.training.checks import set_batch_limits
from imago.training.run_checks import (
    check_num_batches,
    warn_of_text_order,
    warn_of_unused_splits,
    warn_of_unvalidated_epochs,
)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["loss._target_=own_tasks.PerImageLoss"], r"PerImageLoss returns \[2\] for two images; return the mean"),
        (
            ["loss._target_=own_tasks.HardLabelLoss", "augment.mixup_alpha=0.2"],
            r"fails for labels that are probabilities",
        ),
        (
            ["loss._target_=torch.nn.Identity"],
            r"Identity fails for labels that",
        ),
        (
            ["loss._target_=torch.nn.functional.cross_entropy"],
            r"It is a function, whose result must be a Module; a class",
        ),
    ],
)
def test_a_loss_that_cannot_work_is_one_line_before_training(compose: Callable, settings: list[str], text: str):
    cfg = compose("data=shapes", "model.hidden_features=16", *settings)
    with open_dict(cfg.loss):
        del cfg.loss["label_smoothing"], cfg.loss["weight"]
    with pytest.raises(ConfigError, match=text):
        build_task(cfg, small_fit.build_data(cfg))


def test_a_loss_of_class_indices_works_without_mixing(compose: Callable):
    cfg = compose("data=shapes", "model.hidden_features=16", "loss._target_=own_tasks.HardLabelLoss")
    with open_dict(cfg.loss):
        del cfg.loss["label_smoothing"], cfg.loss["weight"]
    build_task(cfg, small_fit.build_data(cfg))


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("trainer.limit_train_batches=0.001", "leaves none of the 10 batches of an epoch"),
        ("trainer.limit_val_batches=0.001", "leaves none of the .* of validation; type a larger share"),
        ("trainer.limit_test_batches=0.001", "leaves none of the .* of the test; type a larger share"),
        ("trainer.limit_val_batches=0", None),
        ("trainer.val_check_interval=0.0001", "is less than one of the 10 batches of an epoch"),
        ("trainer.val_check_interval=11", "is more than the 10 batches of an epoch"),
        ("trainer.val_check_interval=10", None),
        ("trainer.limit_train_batches=0.1", None),
    ],
)
def test_limits_that_leave_no_batch_are_one_line(compose: Callable, setting: str, text: str | None):
    cfg = compose("data=shapes", *small_fit.SMALL, setting)
    data = small_fit.build_data(cfg)
    with pytest.raises(ConfigError, match=f"^{setting} {text}") if text else contextlib.nullcontext():
        check_num_batches(cfg, data)


def test_overfit_batches_are_named_as_typed(compose: Callable):
    cfg = compose("data=shapes", *small_fit.SMALL, "+trainer.overfit_batches=0.001")
    set_batch_limits(cfg)
    with pytest.raises(ConfigError, match=r"^trainer.overfit_batches=0.001 leaves none of the 10 batches"):
        check_num_batches(cfg, small_fit.build_data(cfg))


def test_null_limits_are_all_batches(compose: Callable):
    cfg = compose(*(f"trainer.limit_{split}_batches=null" for split in ("train", "val", "test")))
    set_batch_limits(cfg)
    assert [cfg.trainer[f"limit_{split}_batches"] for split in ("train", "val", "test")] == [1.0] * 3
    set_batch_limits(compose("~trainer.limit_test_batches"))


def test_a_batch_larger_than_the_training_set_is_announced(compose: Callable, caplog: pytest.LogCaptureFixture):
    cfg = compose("data=shapes", "data.batch_size=512")
    check_num_batches(cfg, small_fit.build_data(cfg))
    assert "data.batch_size=512 is more than the 320 training images" in caplog.text


@pytest.mark.parametrize(
    ("names", "is_warning"),
    [
        (("0", "1", "10", "2"), True),
        (("00", "01", "02", "10"), False),
        (("0", "1", "2"), False),
        (("1", "10", "a"), False),
    ],
)
def test_numbers_as_class_names_that_are_in_the_order_of_texts_are_a_warning(
    names: tuple[str, ...], is_warning: bool, caplog: pytest.LogCaptureFixture
):
    warn_of_text_order(names)
    assert [f"in the order of texts: {', '.join(names)}; a list" in text for text in caplog.messages] == [
        True
    ] * is_warning


@pytest.mark.parametrize(
    ("random_splits", "fold", "unused"),
    [
        ([], None, {"val_fraction", "test_fraction", "num_folds"}),
        (["test"], None, {"val_fraction", "num_folds"}),
        (["test", "val"], 1, {"val_fraction"}),
        (["test", "val"], None, {"num_folds"}),
    ],
)
def test_typed_settings_of_splits_that_are_not_drawn_are_named(
    random_splits: list[str], fold: int | None, unused: set[str], caplog: pytest.LogCaptureFixture
):
    data = SimpleNamespace(random_splits=random_splits, split_plan=SplitPlan(fold=fold))
    typed = ["data.val_fraction=0.2", "+data.test_fraction=0.1", "data.num_folds=3", "data.root=x"]
    warn_of_unused_splits(typed, data)  # type: ignore[arg-type]
    assert {text.split()[0] for text in caplog.messages} == {f"data.{name}" for name in unused}
    for plan, text in (
        (SplitPlan(split_file="a.csv"), "data.split_file has a val split"),
        (SplitPlan(val_as_test=True), "data.val_as_test=true makes val the test split"),
    ):
        caplog.clear()
        warn_of_unused_splits(typed, SimpleNamespace(random_splits=[], split_plan=plan))  # type: ignore[arg-type]
        assert text in caplog.text
    caplog.clear()
    warn_of_unused_splits(["data.root=x"], data)  # type: ignore[arg-type]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("max_epochs", "every", "text"),
    [
        (
            12,
            10,
            "no epoch after epoch 10 of 12 is validated or tested; type trainer.check_val_every_n_epoch=12",
        ),
        (
            2,
            10,
            "no epoch of 2 is validated, so that there is no best checkpoint; type trainer.check_val_every_n_epoch=2",
        ),
        (20, 10, ""),
        (3, None, ""),
    ],
)
def test_epochs_that_are_not_validated_are_named(max_epochs: int, every: int | None, text: str, caplog):
    trainer: Any = SimpleNamespace(max_epochs=max_epochs, check_val_every_n_epoch=every, limit_val_batches=1.0)
    trainer.checkpoint_callbacks = [SimpleNamespace(monitor="val/acc")]
    warn_of_unvalidated_epochs(trainer)
    assert [message.partition(": ")[2] for message in caplog.messages] == ([text] if text else [])
    trainer.checkpoint_callbacks = []
    caplog.clear()
    warn_of_unvalidated_epochs(trainer)
    assert caplog.messages == []
