"""Int8 files: which operators compute in int8, how weights are rounded, and what the file contains."""

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from imago.errors import ConfigError, UserError
from imago.export import quantize
from imago.export.formats import Options
from imago.export.metadata import build_metadata
from imago.export.onnx import write
from imago.images import Preprocess
from imago.model.classifier import Classifier
from imago.model.simple_cnn import SimpleCNN
from imago.onnx_classifier import OnnxClassifier

SIZE = 32
PREPROCESS = Preprocess(SIZE, SIZE, "center", mean=(0.3, 0.4, 0.5), std=(0.2, 0.25, 0.3))
pytestmark = pytest.mark.slow  # an export takes two seconds


def classifier(net: nn.Module) -> Classifier:
    return Classifier(net, [f"class {number}" for number in range(10)], PREPROCESS, 2.0).eval()


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


def export(model: Classifier, path: Path, images: np.ndarray | None = None, keep_float: tuple[str, ...] = ()) -> dict:
    metadata = build_metadata(model, {"run_id": "r", "metrics": {}}, {"onnx": "1"})
    batches = [samples(37) if images is None else images]
    return write(model, path, metadata, Options("onnx", "int8", None, lambda: iter(batches), keep_float))


@pytest.fixture(scope="module")
def small() -> Classifier:
    torch.manual_seed(0)
    return classifier(SimpleCNN(num_classes=10, image_size=SIZE, hidden_features=16, dropout=0.5))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("int8") / "model_int8.onnx"


@pytest.fixture(scope="module")
def report(small: Classifier, path: Path) -> dict:
    return export(small, path)


def run(path: Path, images: np.ndarray, level: str, optimized: str = "") -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath, options.log_severity_level = optimized, 4
    return onnxruntime.InferenceSession(path, options).run(None, {"images": images})


def test_normalization_logits_and_softmax_stay_in_float(report: dict, path: Path, tmp_path: Path):
    assert report["int8_operators"] == {"Conv": 2, "MaxPool": 2, "Gemm": 2, "Reshape": 1}
    assert report["float_operators"] == {"Cast": 1, "Sub": 1, "Div": 1}
    graph = onnx.load(path).graph
    types = [node.op_type for node in graph.node if not node.op_type.endswith("Linear")]
    assert types[:4] == ["Cast", "Sub", "Div", "Conv"]  # the pixels are rounded once, after the normalization
    assert types[-3:] == ["Gemm", "Div", "Softmax"]  # nothing rounds the logits
    run(path, samples(2), "ORT_ENABLE_EXTENDED", str(tmp_path / "optimized.onnx"))
    computed = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert (computed.count("QLinearConv"), computed.count("QGemm"), computed.count("Conv")) == (2, 2, 0)


def test_weights_are_rounded_to_seven_bits_for_each_output_channel(report: dict, small: Classifier, path: Path):
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    names = [name for name in values if name.endswith("weight_quantized")]
    assert len(names) == 4
    for name in names:
        rounded, weight = values[name], small.get_parameter(name.removesuffix("_quantized")).detach().numpy()
        scale = values[name.replace("_quantized", "_scale")].reshape(-1, *[1] * (weight.ndim - 1))
        assert rounded.dtype == np.int8
        assert np.abs(rounded).max() <= 64  # 2 * 255 * 64 fits in 16 bits, in which CPUs without VNNI add
        assert scale.shape[0] == weight.shape[0]
        assert (np.abs(rounded * scale - weight) <= scale * 0.501).all()


def test_outputs_are_near_those_of_the_checkpoint_also_where_products_are_largest(tmp_path: Path, path: Path):
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for layer in (net[0], net[2]):
        nn.init.constant_(layer.weight, 0.1)  # all weights are the largest, and so are the activations of white images
    model = classifier(net)
    white = np.full((3, 3, SIZE, SIZE), 255, np.uint8)
    export(model, tmp_path / "model.onnx", white)
    expected = model(torch.from_numpy(white)).detach().numpy()
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):  # the second computes in int8
        np.testing.assert_allclose(run(tmp_path / "model.onnx", white, level)[0], expected, rtol=0.1)


def test_the_file_has_our_metadata_only_and_is_the_same_each_time(
    report: dict, small: Classifier, path: Path, tmp_path: Path
):
    model = OnnxClassifier(path)
    assert (model.metadata["precision"], model.calibration_temperature) == ("int8", 2.0)
    saved = onnx.load(path)
    assert not [item.key for item in saved.metadata_props if item.key.startswith("onnx")]
    assert [(operators.domain, operators.version) for operators in saved.opset_import] == [("", 20)]
    assert saved.producer_name == "pytorch"
    used = {name for node in saved.graph.node for name in node.input}
    assert {tensor.name for tensor in saved.graph.initializer} <= used
    handlers = list(logging.root.handlers)
    export(small, tmp_path / "again.onnx")
    assert logging.root.handlers == handlers
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_errors_are_measured_on_as_many_images_however_many_calibrate(
    small: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compared: list[int] = []
    monkeypatch.setattr(quantize, "operator_errors", lambda *args: compared.append(len(args[-1])) or {})
    for num_images in (16, 500, 1000):
        assert export(small, tmp_path / "a.onnx", samples(num_images))["num_calibration_images"] == num_images
    assert compared == [1, 32, 32]


def test_operators_stay_in_float_by_name_or_type(small: Classifier, tmp_path: Path):
    found = export(small, tmp_path / "a.onnx", samples(1), keep_float=("Gemm", "node_conv2d_*"))
    assert found["int8_operators"] == {"Conv": 1, "MaxPool": 1}  # what follows a float operator is float
    assert found["float_operators"]["Gemm"] == 2
    assert list(found["operator_errors"]) == ["node_conv2d"]
    assert found["num_calibration_images"] == 1


@pytest.mark.parametrize(
    ("patterns", "error", "text"),
    [
        (
            ("gemm",),
            ConfigError,
            r"keep_float=\[gemm\] matches no operator; this network has Cast, Conv, .*node_conv2d",
        ),
        (("Conv", "Gemm"), UserError, "no operator would compute in int8"),
    ],
)
def test_a_pattern_that_fits_nothing_or_everything_is_one_line(
    small: Classifier, tmp_path: Path, patterns: tuple[str, ...], error: type, text: str
):
    with pytest.raises(error, match=text) as caught:
        export(small, tmp_path / "model.onnx", keep_float=patterns)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Means(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 3))[:, :10]


def test_a_network_without_products_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="precision=int8: no operator would compute in int8"):
        export(classifier(Means()), tmp_path / "model.onnx")


@pytest.mark.parametrize("num_images", [16, 33])
def test_every_image_is_read_with_an_uneven_last_batch(small: Classifier, tmp_path: Path, num_images: int):
    assert export(small, tmp_path / "model.onnx", samples(num_images))["num_calibration_images"] == num_images


def test_the_error_of_an_operator_is_that_of_its_rounded_inputs_and_weights(
    report: dict, small: Classifier, path: Path
):
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    images = small.normalize(torch.from_numpy(samples(37)[::16])).numpy()  # the first of each 16
    layer = small.net.features[0]
    scale, zero = values["div_scale"], values["div_zero_point"].astype(np.float32)
    rounded = (np.clip(np.rint(images / scale) + zero, 0, 255) - zero) * scale
    name = "net.features.0.weight"
    weight = values[f"{name}_quantized"] * values[f"{name}_scale"].reshape(-1, 1, 1, 1)
    with torch.inference_mode():
        exact = layer(torch.from_numpy(images))
        computed = layer._conv_forward(torch.from_numpy(rounded), torch.from_numpy(weight), layer.bias)
    expected = float((computed - exact).norm() / exact.norm())
    assert report["operator_errors"]["node_conv2d"] == pytest.approx(expected, rel=0.01)
    assert list(report["operator_errors"].values()) == sorted(report["operator_errors"].values(), reverse=True)
