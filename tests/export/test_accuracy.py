"""The accuracy check of lossy precisions, alone and as `export.py precision=int8` and `eval.py` run it."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from imago.data.dataset import ArrayDataset, LabeledArray
from imago.errors import ConfigError, DataError, UserError
from imago.export.accuracy import compare_accuracy
from imago.export.export import _options
from imago.export.export import export as export_command
from imago.images import Preprocess
from imago.model.classifier import Classifier

SIZE = 2
ERRORS = {"operator_errors": {"conv_9": 0.5, "conv_1": 0.25, "gemm": 0.125, "conv_2": 0.0625}}


class Identity(nn.Module):
    """Logits that are the first channel of the first pixels, so that a test chooses them."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 0, 0] * 255


def classifier() -> Classifier:
    return Classifier(Identity(), list("abc"), Preprocess(SIZE, SIZE, "center", (0.0,) * 3, (1.0,) * 3)).eval()


def with_labels(labels: np.ndarray) -> np.ndarray:
    """Return images for which the classifier predicts these labels, by a margin of 100."""
    images = np.zeros((len(labels), 3, SIZE, SIZE), np.uint8)
    images[np.arange(len(labels)), labels] = 100
    return images


def file_with(wrong: np.ndarray, change: Callable = lambda logits: logits) -> Callable:
    """Return the function of a file that predicts the next class for the images whose last pixel is in `wrong`."""

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = images[:, :, 0, 0].astype(np.float32)
        marked = np.isin(images[:, 0, 1, 1], wrong)
        logits[marked] = np.roll(logits[marked], 1, axis=1)
        return change(logits), logits

    return predict


def compare(num_images: int, num_worse: int, num_better: int, report: dict = ERRORS, **settings: float) -> dict:
    """Compare a checkpoint that is right on 90 % with a file that is worse and better on so many images."""
    labels = np.arange(num_images) % 3
    is_wrong = np.arange(num_images) >= num_images * 9 // 10
    images = with_labels((labels + 2 * is_wrong) % 3)
    images[:num_worse, 0, 1, 1] = images[num_images - num_better :, 0, 1, 1] = 7
    halves = [
        (images[: num_images // 3], labels[: num_images // 3]),
        (images[num_images // 3 :], labels[num_images // 3 :]),
    ]
    return compare_accuracy(classifier(), file_with(np.array([7])), halves, settings.get("max_drop", 0.5), report)


def test_the_report_has_both_accuracies_and_the_paired_interval():
    found = compare(3000, 20, 12)
    assert found["num_images"] == 3000
    assert found["checkpoint_acc"] == pytest.approx(0.9)
    assert found["acc"] == pytest.approx((2700 - 20 + 12) / 3000)
    assert found["acc_difference"] == pytest.approx(-8 / 3000)
    assert found["label_agreement"] == pytest.approx(1 - 32 / 3000)
    half_width = 1.96 * math.sqrt(32 - 64 / 3000) / 3000  # Wald's, of a paired difference
    expected = (-8 / 3000 - half_width, -8 / 3000 + half_width)
    assert found["acc_difference_interval_95"] == pytest.approx(expected, abs=half_width / 10)
    assert found["max_abs_diff_logits"] == 100


@pytest.mark.parametrize(("num_worse", "is_kept"), [(0, True), (15, True), (22, True), (23, False), (40, False)])
def test_a_loss_is_refused_when_it_is_significantly_above_the_limit(num_worse: int, is_kept: bool):
    # The lower end of Wilson's interval of a rare event, in images; 0.5 points of 3,000 images are 15.
    low = num_worse + 1.96**2 / 2 - 1.96 * math.sqrt(num_worse + 1.96**2 / 4)
    assert is_kept == (low < 15)
    if is_kept:
        assert compare(3000, num_worse, 0)["acc_difference"] == pytest.approx(-num_worse / 3000)
    else:
        with pytest.raises(UserError, match="max_accuracy_drop=0.5 allows less"):
            compare(3000, num_worse, 0)


def test_a_refusal_has_the_numbers_and_the_ways_out():
    with pytest.raises(UserError) as caught:
        compare(3000, 40, 0)
    text = str(caught.value)
    assert text.startswith(
        "the file was not kept: 88.67% on 3,000 images, the checkpoint 90.00%: 1.33 points lost (95 %"
    )
    assert "max_accuracy_drop=0.5 allows less. The largest errors are those of conv_9 50.0%, conv_1 25.0%" in text
    assert "keep_float=[conv_9,conv_1,gemm] computes these in float; or type precision=fp16." in text
    assert "\n" not in text
    assert compare(3000, 40, 0, max_drop=1.0)["acc_difference"] == pytest.approx(-40 / 3000)


def test_without_operator_errors_the_way_out_is_fp32():
    with pytest.raises(UserError, match=r"allows less\. Type precision=fp32\.$"):
        compare(300, 100, 0, {})


def test_a_better_file_is_kept():
    assert compare(3000, 0, 200)["acc_difference"] == pytest.approx(200 / 3000)


def test_outputs_that_are_not_finite_are_refused():
    images, labels = with_labels(np.arange(9) % 3), np.arange(9) % 3
    predict = file_with(np.array([]), lambda logits: logits * np.float32("nan"))
    with pytest.raises(UserError, match="outputs of the file contain NaN or infinity, so it was not kept"):
        compare_accuracy(classifier(), predict, [(images, labels)], 0.5, {})


@pytest.mark.parametrize("size", [1, 2, 7])
def test_labels_that_depend_on_the_batch_size_are_refused(size: int):
    images, labels = with_labels(np.arange(30) % 3), np.arange(30) % 3

    def change(logits: np.ndarray) -> np.ndarray:
        return np.roll(logits, 1, axis=1) if len(logits) == size else logits

    with pytest.raises(UserError, match=f"30 of 30 labels depend on the batch size, most with {size};"):
        compare_accuracy(classifier(), file_with(np.array([]), change), [(images, labels)], 0.5, {})


@pytest.mark.parametrize(("error", "is_tie"), [(2, True), (0.5, False)])
def test_another_label_at_one_batch_size_is_a_tie_within_the_error_of_the_file(error: float, is_tie: bool):
    images, labels = with_labels(np.arange(30) % 3), np.arange(30) % 3
    images[0, :, 0, 0] = (100, 99, 0)  # logits that are 1 apart

    def change(logits: np.ndarray) -> np.ndarray:
        is_near = len(logits) == 1 and logits[0, 1] == 99
        return (logits[:, [1, 0, 2]] if is_near else logits) + np.float32(error)

    predict = file_with(np.array([]), change)
    if is_tie:
        assert compare_accuracy(classifier(), predict, [(images, labels)], 0.5, {})["num_ties"] == 1
    else:
        with pytest.raises(UserError, match="1 of 30 labels depend on the batch size, most with 1;"):
            compare_accuracy(classifier(), predict, [(images, labels)], 0.5, {})


@pytest.fixture(scope="module")
def settings(compose: Callable) -> DictConfig:
    return compose("run=x", config_name="export")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"calibration_samples": 9}, "calibration_samples=9 is a setting of precision=int8."),
        ({"calibration_samples": 9, "precision": "fp16"}, "calibration_samples=9 is a setting of precision=int8."),
        ({"calibration_samples": 0, "precision": "int8"}, "calibration_samples=0 must be 1 or more training images."),
        ({"keep_float": ["Gemm", "a*"]}, "keep_float=[Gemm,a*] is a setting of precision=int8."),
        ({"max_accuracy_drop": -0.5, "precision": "fp16"}, "max_accuracy_drop=-0.5 must be from 0 to 100 points."),
        ({"max_accuracy_drop": 2}, "max_accuracy_drop=2 is a setting of the other precisions than fp32."),
        ({"precision": "int4"}, "precision=int4 is not one of fp32, fp16, int8 of format=onnx; did you mean int8?"),
        (
            {"precision": "int8", "format": "openvino"},
            "precision=int8 is not one of fp32, fp16, bf16 of format=openvino.",
        ),
    ],
)
def test_an_invalid_setting_is_one_line(settings: DictConfig, changes: dict, text: str, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("config.yaml", "checkpoints/best.ckpt"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        export_command(OmegaConf.merge(settings, {"run": str(tmp_path)} | changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "export").exists()


def labeled(num_images: int) -> LabeledArray:
    labels = np.arange(num_images)
    images = np.broadcast_to(labels[:, None, None, None].astype(np.uint8), (num_images, 3, 2, 2))
    return LabeledArray(images, labels, tuple(map(str, labels)))


def data_with(num_train: int) -> SimpleNamespace:
    return SimpleNamespace(
        splits=SimpleNamespace(train=labeled(num_train)),
        dataset=lambda split: {"train": ArrayDataset(labeled(num_train))}[split],
    )


def test_calibration_images_are_evenly_spread_over_the_training_split_only(settings: DictConfig):
    cfg = OmegaConf.merge(settings, {"precision": "int8", "calibration_samples": 4, "keep_float": ["Gemm", 5]})
    options = _options(cfg, "onnx", "int8", data_with(10))
    assert options.keep_float == ("Gemm", "5")
    for _ in range(2):  # each call starts again
        assert [int(image[0, 0, 0]) for batch in options.calibration_images() for image in batch] == [0, 2, 5, 7]
    assert _options(cfg, "onnx", "fp16", data_with(10)).calibration_images is None


def test_int8_without_training_images_is_one_line(settings: DictConfig):
    with pytest.raises(
        DataError, match="precision=int8 needs training images, and run=x has none; type precision=fp16"
    ):
        _options(settings, "onnx", "int8", data_with(0))


@pytest.mark.slow
def test_int8_file_has_the_accuracy_of_its_report_in_eval_and_the_run_keeps_no_other(
    finished_run: Path, tmp_path: Path, command: Callable
):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    typed = (f"run={run}", f"paths.log_dir={tmp_path}", "precision=int8", "calibration_samples=50")
    done = command("src/export.py", *typed, "keep_float=[node_linear_1]")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    report = json.loads((run / "export" / "export_report_int8.json").read_text())
    assert (report["split"], report["num_images"], report["num_calibration_images"]) == ("val", 1000, 50)
    assert report["int8_operators"]["Gemm"] == report["float_operators"]["Gemm"] == 1
    assert report["num_bytes"] < 0.3 * sum(p.numel() * 4 for p in _parameters(run))
    assert report["checkpoint_acc"] == json.loads((run / "summary.json").read_text())["val"]["acc"]
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["checkpoint", "data", "quantized", "written", "accuracy"]
    file = run / "export" / "model_int8.onnx"
    done = command("src/eval.py", f"run={file}", "split=val", f"output={tmp_path}/val", f"paths.log_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "val" / "metrics.json").read_text())["acc"] == report["acc"]

    before = file.read_bytes()
    assert command("src/export.py", *typed).returncode == 2  # it exists
    done = command("src/export.py", *typed, "overwrite=true", "keep_float=[nothing]")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert file.read_bytes() == before


def _parameters(run: Path) -> list[torch.Tensor]:
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    return [value for name, value in state.items() if name.startswith("net.")]
