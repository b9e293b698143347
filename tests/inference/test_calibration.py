"""The temperature of a checkpoint: it belongs to that file alone, and a missing one is always reported."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import nn

from imago import load_model
from imago.errors import DataError
from imago.inference.calibration import calibrate, describe_calibration, read_detector, read_sets, read_temperature
from imago.inference.load import load_predictor
from imago.paths import command, short_path
from imago.statistics.calibration import TEMPERATURE_KEY, fit_temperature, reliability
from imago.statistics.conformal import fit_sets
from imago.statistics.metrics import LabeledOutputs, softmax
from imago.statistics.unknown_images import fit_detector

NAMES = ("a", "b", "c")


@pytest.fixture
def result() -> LabeledOutputs:
    """The outputs of a network whose logits are three times too large."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 3)) * 2
    labels = (softmax(logits).cumsum(axis=1) < random.random((4000, 1))).sum(axis=1)
    scaled = (3 * logits).astype(np.float32)
    return LabeledOutputs(NAMES, labels, scaled, softmax(scaled).max(axis=1))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    return tmp_path / "checkpoints" / "best.ckpt"


def test_the_temperature_is_written_with_the_errors_before_and_after(checkpoint: Path, result: LabeledOutputs):
    entry = calibrate(checkpoint, result)
    assert json.loads((checkpoint.parent / "calibration.json").read_text()) == {"best.ckpt": entry}
    assert entry["calibration_temperature"] == fit_temperature(result.logits, result.labels) == pytest.approx(3, 0.1)
    assert entry["num_images"] == 4000
    assert entry["ece_before"] > 0.1 > 0.03 > entry["ece_after"]
    assert entry["nll_before"] == pytest.approx(log_loss(result.labels, softmax(result.logits)), rel=1e-3)
    assert entry["nll_before"] > entry["nll_after"]
    assert read_temperature(checkpoint) == (entry["calibration_temperature"], "")
    assert read_sets(checkpoint) == fit_sets(result.logits, result.labels)
    found, expected = read_detector(checkpoint, 3), fit_detector(result.logits, result.labels)
    np.testing.assert_array_equal(found.scores(result.logits), expected.scores(result.logits))
    assert describe_calibration(entry).endswith(f"{entry['nll_after']:.4f}")


def test_too_few_images_for_sets_are_part_of_the_line_and_damaged_sets_are_refused(
    checkpoint: Path, result: LabeledOutputs
):
    few = LabeledOutputs(NAMES, result.labels[:20], result.logits[:20], result.probability[:20])
    entry = calibrate(checkpoint, few)
    note = "; prediction sets need 38 images of val at 95 %; half of val has 10; unknown images are not marked: that"
    assert f"{note} needs 38 images of val" in describe_calibration(entry)
    assert read_detector(checkpoint, 3) is None
    assert list(read_sets(checkpoint).thresholds) == ["90"]
    file = checkpoint.with_name("calibration.json")
    for damage in ({}, 1, {"thresholds": {"90": 2}, "temperature": 1, "num_images": 20}):
        file.write_text(json.dumps({"best.ckpt": entry | {"prediction_sets": damage}}))
        with pytest.raises(DataError, match="calibration.json is damaged: prediction_sets of best.ckpt is "):
            read_sets(checkpoint)
    full = calibrate(checkpoint, result)
    file.write_text(json.dumps({"best.ckpt": full | {"unknown_detector": full["unknown_detector"] | {"mean": [0]}}}))
    with pytest.raises(DataError, match="calibration.json is damaged: unknown_detector of best.ckpt is ") as caught:
        read_detector(checkpoint, 3)
    assert len(str(caught.value)) < 400
    file.write_text(json.dumps({"best.ckpt": {key: entry[key] for key in entry if key != "prediction_sets"}}))
    assert read_sets(checkpoint) is None  # fitted before there were sets


def test_a_temperature_that_makes_the_probabilities_of_val_worse_is_not_applied(checkpoint: Path):
    # Of 1,000 images, 900 are right with 0.9 and 100 with 0.99, of which 5 are wrong by far: NLL falls, ECE rises.
    share = np.repeat([0.9, 0.99], [900, 100])
    logits = np.stack([np.log(share), np.log1p(-share)], axis=1).astype(np.float32)
    labels = (np.arange(1000) % 10 == 0).astype(np.int64)
    labels[900:] = np.arange(100) % 20 == 0
    entry = calibrate(checkpoint, LabeledOutputs(NAMES[:2], labels, logits, share))
    after = softmax(logits / entry["fitted_temperature"]).max(axis=1)
    eces = [reliability(p, labels == 0).ece for p in (share, after)]
    assert (entry["ece_before"], entry["ece_after"]) == pytest.approx(eces, abs=1e-6)
    assert eces[1] > eces[0]
    assert entry["nll_after"] < entry["nll_before"]
    assert entry[TEMPERATURE_KEY] == 1.0 != entry["fitted_temperature"]
    assert read_temperature(checkpoint) == (1.0, "")
    assert "would make the calibration error (ECE) on val worse: ECE " in describe_calibration(entry)
    assert "not applied" not in describe_calibration(entry | {TEMPERATURE_KEY: entry["fitted_temperature"]})


def test_a_temperature_at_the_bound_of_the_search_is_not_kept(checkpoint: Path):
    logits = np.array([[1, 0], [1, 0], [1, 0]], np.float32)  # all wrong: the flatter, the better
    entry = calibrate(checkpoint, LabeledOutputs(NAMES[:2], np.array([1, 1, 1]), logits, softmax(logits).max(axis=1)))
    assert entry["fitted_temperature"] == pytest.approx(1000, rel=1e-3)
    assert read_temperature(checkpoint) == (1.0, "")
    assert describe_calibration(entry).startswith("not calibrated: the temperature ")


@pytest.mark.parametrize(
    ("name", "tta", "entry", "option"),
    [("last.ckpt", "none", "last.ckpt", "ckpt=last"), ("best.ckpt", "flip", "best.ckpt tta=flip", "tta=flip")],
)
def test_each_checkpoint_and_each_number_of_views_has_its_own_temperature(
    checkpoint: Path, result: LabeledOutputs, name: str, tta: str, entry: str, option: str
):
    file, other = checkpoint.with_name("calibration.json"), checkpoint.with_name(name)
    other.write_bytes(b"weights")
    first = calibrate(checkpoint, result)[TEMPERATURE_KEY]
    remedy = f"fit one with {command('eval')} run={short_path(checkpoint.parents[1])} {option} calibrate=fit"
    assert read_temperature(other, tta) == (1.0, f"{file} has no temperature for {entry}; {remedy}")
    second = calibrate(other, LabeledOutputs(NAMES, result.labels, result.logits / 2, result.probability), tta)[
        TEMPERATURE_KEY
    ]
    assert second == pytest.approx(first / 2)
    assert read_temperature(other, tta) == (second, "")
    assert read_temperature(checkpoint) == (first, "")


def test_a_replaced_checkpoint_does_not_get_the_old_temperature(checkpoint: Path, result: LabeledOutputs):
    calibrate(checkpoint, result)
    checkpoint.write_bytes(b"newer weights")
    temperature, reason = read_temperature(checkpoint)
    assert temperature == 1.0
    remedy = f"{command('eval')} run={short_path(checkpoint.parents[1])} calibrate=fit"
    assert f"calibration.json was fitted for another best.ckpt; fit one with {remedy}" in reason


@pytest.mark.parametrize("value", [0, -1, None, "2", float("nan"), [1]])
def test_a_temperature_that_is_not_a_positive_number_is_refused(checkpoint: Path, value):
    entry = {"best.ckpt": {"calibration_temperature": value}}
    (checkpoint.parent / "calibration.json").write_text(json.dumps(entry))
    with pytest.raises(DataError, match="calibration.json is damaged: calibration_temperature of best.ckpt is"):
        read_temperature(checkpoint)


@pytest.mark.slow
def test_a_run_is_calibrated_and_predictions_use_it(finished_run: Path, caplog: pytest.LogCaptureFixture):
    checkpoint = finished_run / "checkpoints" / "best.ckpt"
    temperature, reason = read_temperature(checkpoint)
    assert temperature != 1.0
    assert reason == ""
    with caplog.at_level(logging.WARNING, "imago"):
        predictor, model = load_predictor(finished_run, accelerator="cpu"), load_model(finished_run)
        assert caplog.messages == []
        load_model(finished_run / "checkpoints" / "last.ckpt")
    assert caplog.messages[0].startswith("probabilities are not calibrated: ")
    assert model.calibration_temperature == temperature
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    logits, probabilities = predictor.predict(images)
    np.testing.assert_allclose(probabilities, softmax(logits / temperature))
    found = model.probabilities(torch.from_numpy(images)).numpy()  # without a gradient
    np.testing.assert_array_equal(found, model.probabilities(images))
    np.testing.assert_allclose(found, probabilities, rtol=1e-4)
    assert isinstance(model.net, nn.Module)
