"""The advice for a run that waits for data, and early stops; other results are tested with whole runs (end_to_end)."""

import json
import warnings
from types import SimpleNamespace

import pytest
from lightning.pytorch import Callback
from small_fit import QUIET, SMALL, fit_run

from imago.augment.settings import Augment
from imago.callbacks.run_summary import data_wait_advice

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]
IN_MEMORY = SimpleNamespace(augment=Augment())
NEVER_KEPT = SimpleNamespace(is_cached=False, cache="none", augment=Augment())
TOO_LARGE = SimpleNamespace(is_cached=False, cache="auto", augment=Augment(random_resized_crop_scale=(0.3, 1.0)))


@pytest.mark.parametrize(
    ("data", "num_workers", "num_cores", "advice"),
    [
        (NEVER_KEPT, 0, 8, "data.cache=auto or data.num_workers=8"),
        (NEVER_KEPT, 8, 8, "data.cache=auto"),
        (NEVER_KEPT, 0, 0, "data.cache=auto"),  # the network computes on the CPU
        (TOO_LARGE, 8, 8, "data.decoded_px=256 data.cache=auto"),
        (IN_MEMORY, 2, 8, "data.num_workers=8"),
        (IN_MEMORY, 8, 8, "fewer augmentations or a smaller preprocess.size (both change the result)"),
    ],
)
def test_the_most_helpful_setting_comes_first(data, num_workers: int, num_cores: int, advice: str):
    assert data_wait_advice(data, num_workers, num_cores) == advice


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stops", "reason", "patience", "num_epochs"),
    [
        ("++callbacks.early_stopping.stopping_threshold=-1", "Stopping threshold reached: val/acc", None, 1),
        ("callbacks.early_stopping.patience=1", "Monitored metric val/acc did not improve", 1, 2),
    ],
)
def test_an_early_stop_is_logged_once_also_in_the_first_epoch(
    compose, tmp_path, caplog, stops: str, reason: str, patience: int | None, num_epochs: int
):
    quick = ("trainer.limit_train_batches=1", "callbacks.image_grid=null", "logger.tensorboard=null")
    still = ("callbacks=early_stopping", "optimizer.lr=1e-30", "schedule=constant")

    def fit(*settings: str) -> tuple[str, dict]:
        caplog.clear()
        with caplog.at_level("INFO", "imago"), warnings.catch_warnings(action="ignore", category=UserWarning):
            fit_run(compose(*SMALL, *quick, *still, *settings), tmp_path)
        return caplog.text, json.loads((tmp_path / "summary.json").read_text())

    text, summary = fit("trainer.max_epochs=9", stops)
    assert text.count(f"stopped early: {reason}") == 1
    assert (summary["epochs"], summary["stopped_early"]) == (num_epochs, {"monitor": "val/acc", "patience": patience})
    text, summary = fit("trainer.max_epochs=3", "callbacks.early_stopping.patience=9")
    assert "stopped early" not in text
    assert (summary["epochs"], summary["stopped_early"]) == (3, None)


class RaiseInEpoch(Callback):
    """End a run with an error in its fourth epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 3:
            raise ZeroDivisionError


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "is_replaced"), [("1e-3", True), ("1e-30", False)])
def test_results_of_a_best_checkpoint_that_a_resumed_run_has_replaced_are_forgotten(
    compose, tmp_path, lr: str, is_replaced: bool
):
    quick = ("callbacks.image_grid=null", "logger.tensorboard=null", "callbacks.best_checkpoint.monitor=val/loss")
    settings = (*SMALL, *quick, "schedule=constant", f"optimizer.lr={lr}")
    fit_run(compose(*settings, "trainer.max_epochs=1"), tmp_path)
    file = tmp_path / "summary.json"
    before = json.loads(file.read_text()) | {"test": {"acc": 0.5}}
    file.write_text(json.dumps(before))
    with pytest.raises(ZeroDivisionError), warnings.catch_warnings(action="ignore", category=UserWarning):
        fit_run(compose(*settings, "trainer.max_epochs=9"), tmp_path, RaiseInEpoch())
    after = json.loads(file.read_text())
    results = {"val", "test", "best_epoch", "best_value"}
    assert before.keys() - after.keys() == (results if is_replaced else set())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "is_replaced"),
    [
        (("optimizer.lr=1e-3",), True),
        (("optimizer.lr=1e-30",), False),
        (("optimizer.lr=1e-3", "callbacks.best_checkpoint=null"), True),  # the last weights are tested
    ],
)
def test_a_test_of_weights_that_the_last_epoch_has_replaced_is_forgotten_before_the_next_test(
    compose, tmp_path, settings: tuple[str, ...], is_replaced: bool
):
    quick = ("callbacks.image_grid=null", "logger.tensorboard=null")
    has_best = "callbacks.best_checkpoint=null" not in settings
    monitor = ("callbacks.best_checkpoint.monitor=val/loss",) if has_best else ()
    every = (*SMALL, *quick, *monitor, "schedule=constant", *settings)
    fit_run(compose(*every, "trainer.max_epochs=1"), tmp_path)
    file = tmp_path / "summary.json"
    before = json.loads(file.read_text()) | {"test": {"acc": 0.5}}
    file.write_text(json.dumps(before))
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        fit_run(compose(*every, "trainer.max_epochs=2"), tmp_path)
    after = json.loads(file.read_text())
    assert ("test" not in after) == is_replaced
    assert after["steps"] == 2 * before["steps"]
    if has_best:
        assert (after["best_epoch"], after["val"] != before["val"]) == ((2, True) if is_replaced else (1, False))
