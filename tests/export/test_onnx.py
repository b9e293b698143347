"""An exported file gives the same numbers and is self-contained; a failed export is an error of one line."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18, squeezenet1_0

from imago.errors import UserError
from imago.export import onnx as onnx_format
from imago.export.formats import FORMATS, Options
from imago.export.metadata import build_metadata
from imago.export.parity import compare_outputs
from imago.images import Preprocess
from imago.model.classifier import Classifier
from imago.model.simple_cnn import SimpleCNN
from imago.onnx_classifier import OnnxClassifier
from imago.paths import PROJECT_ROOT

SIZE = 32
PREPROCESS = Preprocess(SIZE, 40, "center", mean=(0.3, 0.4, 0.5), std=(0.2, 0.25, 0.3))
NAMES = [f"class {number}" for number in range(10)]
pytestmark = pytest.mark.slow  # an export takes two seconds
METADATA = {"run_id": "my run", "metrics": {"val": {"acc": 0.5, "num_images": 10}}}


def classifier(net: nn.Module) -> Classifier:
    return Classifier(net, NAMES, PREPROCESS).eval()


def write(classifier: Classifier, path: Path, opset: int | None = None) -> int:
    metadata = build_metadata(classifier, METADATA, FORMATS["onnx"].versions())
    return onnx_format.write(classifier, path, metadata, Options(opset=opset))["opset"]


def compare(classifier: Classifier, path: Path, images: np.ndarray) -> dict:
    return compare_outputs(classifier, onnx_format.load(path, 1), [images])


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


@pytest.fixture(scope="module")
def small() -> Classifier:
    torch.manual_seed(0)
    return classifier(SimpleCNN(num_classes=10, image_size=SIZE, hidden_features=16, dropout=0.5))


@pytest.fixture(scope="module")
def path(small: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    assert write(small, path) == 20
    return path


@pytest.mark.parametrize("build", [squeezenet1_0, resnet18], ids=lambda build: build.__name__)
def test_a_torchvision_network_gives_the_same_at_every_batch_size(build, tmp_path: Path):
    torch.manual_seed(0)
    model = classifier(build(weights=None, num_classes=10)).train()
    with torch.no_grad():
        for images in np.split(samples(64), 4):  # so that BatchNorm has statistics of its own
            model(torch.from_numpy(images))
    write(model.eval(), tmp_path / "model.onnx")
    report = compare(model, tmp_path / "model.onnx", samples(100))
    assert report["max_abs_diff_logits"] < 1e-4


def test_simple_cnn_gives_the_same_at_every_batch_size(small: Classifier, path: Path):
    assert compare(small, path, samples(100))["max_abs_diff_logits"] < 1e-5


def test_metadata_describe_the_file(small: Classifier, path: Path):
    model = OnnxClassifier(path)  # which checks names, types and sizes of input and outputs
    assert (model.class_names, model.preprocess) == (small.class_names, PREPROCESS)
    assert METADATA.items() <= model.metadata.items()
    assert model.metadata["calibration_temperature"] == 1.0
    assert model.predicts_classes is model.metadata["predicts_classes"] is True
    assert model.metadata["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_the_temperature_is_a_constant_in_the_graph_that_changes_the_probabilities_but_not_the_logits(
    small: Classifier, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert constants["calibration_temperature"] == 1.0
    monkeypatch.setattr(small, "calibration_temperature", 2.0)
    assert write(small, tmp_path / "model.onnx", opset=18) == 18
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 18
    softened, plain = OnnxClassifier(tmp_path / "model.onnx"), OnnxClassifier(path)
    images = samples(9)
    logits, probabilities = softened.predict(images)
    np.testing.assert_allclose(logits, plain.predict(images)[0], atol=1e-6)
    np.testing.assert_allclose(probabilities, torch.from_numpy(logits / 2).softmax(dim=1).numpy(), rtol=1e-5)
    assert softened.metadata["calibration_temperature"] == softened.calibration_temperature == 2.0
    compare(small, tmp_path / "model.onnx", images)


def test_the_same_classifier_gives_the_same_bytes_without_paths_of_this_machine(
    small: Classifier, path: Path, tmp_path: Path
):
    write(small, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert str(PROJECT_ROOT).encode() not in path.read_bytes()
    assert b"forward" not in path.read_bytes()
    assert len(onnx.load(path).graph.value_info) == 0  # onnxruntime's quantizer fails on a list of shapes


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


class NoSuchOperator(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.svd(images[:, 0])[1]


class FixedBatch(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)).view(2, 3).repeat(1, 4)[:, :10]


@pytest.mark.parametrize(
    ("net", "opset", "reason"),
    [
        (SimpleCNN(10, SIZE, 16), 99, "opset=99: SimpleCNN could only be written with opset 18; type opset=18"),
        (Branching(), None, "Branching cannot be exported to ONNX: Could not guard on data-dependent expression"),
        (NoSuchOperator(), None, "NoSuchOperator cannot be exported to ONNX: No ONNX function found for"),
        (FixedBatch(), None, "FixedBatch works only for 2 images at a time"),
        (SimpleCNN(11, SIZE, 16), None, "SimpleCNN returns ['N', 11], not float32 logits (N, 10)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_failed_export_is_one_line_and_leaves_no_file(net: nn.Module, opset: int | None, reason: str, tmp_path: Path):
    with pytest.raises(UserError) as caught:
        write(classifier(net), tmp_path / "model.onnx", opset)
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_lines_in_the_documentation_give_the_classifiers_probabilities(tmp_path: Path):
    net, photo = classifier(SimpleCNN(10, SIZE)), tmp_path / "photo.jpg"
    write(net, tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(pixels).resize((91, 57), Image.Resampling.BICUBIC).save(photo)
    page = (PROJECT_ROOT / "docs/python.md").read_text(encoding="utf-8")
    [code] = [block for block in page.split("```python\n")[1:] if "custom_metadata_map" in block]
    code = code.partition("```")[0].replace("RUN/export/model.onnx", str(tmp_path / "model.onnx"))
    names: dict[str, Any] = {}
    exec(code.replace("photo.jpg", str(photo)), names)
    np.testing.assert_allclose(names["probabilities"], net.probabilities(net.read(photo)).detach(), atol=1e-5)
    assert names["class_names"] == NAMES
