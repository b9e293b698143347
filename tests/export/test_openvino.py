"""OpenVINO computes in float32 unless another precision is typed, and the metadata say which."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from imago.export import openvino as openvino_format
from imago.model.classifier import Classifier

openvino = pytest.importorskip("openvino")
pytestmark = pytest.mark.slow


def test_a_plain_reader_gives_the_probabilities_with_the_hint_f32(
    export: Callable, trained: Classifier, val_images: np.ndarray
):
    path, report = export("openvino")
    assert {file.name for file in path.iterdir()} == {"model.xml", "model.bin", "metadata.json"}
    compiled = openvino.Core().compile_model(path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    probabilities = compiled(val_images)["probabilities"]
    np.testing.assert_allclose(probabilities, trained.probabilities(val_images).numpy(), atol=1e-5)
    assert report["opset"] == json.loads((path / "metadata.json").read_text())["opset"] == 20


def test_precisions_have_directories_and_metadata_of_their_own(
    export: Callable, trained: Classifier, val_images: np.ndarray
):
    expected, sizes = trained.probabilities(val_images).numpy(), {}
    for precision in ("fp32", "fp16", "bf16"):
        path, report = export("openvino", precision, verify=lambda predict, _: {})
        assert path.name == ("openvino" if precision == "fp32" else f"openvino_{precision}")
        assert json.loads((path / "metadata.json").read_text())["precision"] == report["precision"] == precision
        sizes[precision] = (path / "model.bin").stat().st_size
        labels = openvino_format.load(path, 1)(val_images)[1].argmax(axis=1)
        assert (labels == expected.argmax(axis=1)).mean() >= 0.97
    assert sizes["fp16"] < 0.51 * sizes["fp32"] == 0.51 * sizes["bf16"]
