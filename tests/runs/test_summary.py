"""The metrics in a summary: by their logged names, finite numbers only."""

import math

from imago.runs.summary import summary_metrics


def test_metrics_have_their_logged_names_and_only_finite_numbers_count():
    val = {"acc": 0.5, "f1": 0.25, "monitor": "val/f1", "interval_95": [0.1, 0.9], "num_images": 10}
    test = {"loss": 1, "auroc": math.nan, "f1": None, "huge": 10**400, "ok": True, "num_left_out": 0, "tta": "flip"}
    assert summary_metrics({"val": val, "test": test}) == {"val/acc": 0.5, "val/f1": 0.25, "test/loss": 1}


def test_a_run_without_validation_or_test_has_none():
    assert summary_metrics({"val": None}) == {}
