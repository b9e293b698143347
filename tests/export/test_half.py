"""Files of precision fp16: half the size, a network in float16 between float32 normalization and logits."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from imago.errors import UserError
from imago.export.accuracy import compare_accuracy
from imago.export.formats import Options
from imago.export.metadata import build_metadata
from imago.export.onnx import load, write
from imago.images import Preprocess
from imago.model.classifier import Classifier

SIZE = 16
PREPROCESS = Preprocess(SIZE, SIZE, "center", mean=(0.3, 0.4, 0.5), std=(0.2, 0.25, 0.3))
pytestmark = pytest.mark.slow  # an export takes two seconds


def classifier(scale: float = 1.0) -> Classifier:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten()]
    model = Classifier(nn.Sequential(*layers, nn.LazyLinear(4)), list("abcd"), PREPROCESS, 0.5)
    images = torch.from_numpy(samples(8))
    with torch.no_grad():
        model.train()(images)
        model.net[0].weight *= scale
    return model.eval()


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


def export(model: Classifier, path: Path) -> None:
    write(model, path, build_metadata(model, {"run_id": "r", "metrics": {}}, {"onnx": "1"}), Options("onnx", "fp16"))


def test_weights_are_float16_and_normalization_and_outputs_float32(tmp_path: Path):
    model = classifier()
    export(model, tmp_path / "model_fp16.onnx")
    graph = onnx.load(tmp_path / "model_fp16.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types["net.3.weight"] == types["net.5.weight"] == onnx.TensorProto.FLOAT16
    assert types["normalize.mean"] == types["calibration_temperature"] == onnx.TensorProto.FLOAT
    num_bytes = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert num_bytes < (tmp_path / "model_fp16.onnx").stat().st_size < 1.2 * num_bytes
    assert next(model.parameters()).dtype == torch.float32  # the classifier is unchanged

    logits, probabilities = load(tmp_path / "model_fp16.onnx", 1)(samples(9))
    assert logits.dtype == probabilities.dtype == np.float32
    expected = model(torch.from_numpy(samples(9))).detach()
    np.testing.assert_allclose(logits, expected, atol=0.02)
    np.testing.assert_allclose(probabilities, torch.from_numpy(logits / 0.5).softmax(dim=1), atol=1e-5)


def test_attention_in_float16_runs(tmp_path: Path):
    """onnxruntime 1.31 crashes on it unless one of its optimizations is disabled."""
    torch.manual_seed(0)
    net = VisionTransformer(SIZE, 8, 2, 2, 32, 64, num_classes=4)
    nn.init.normal_(net.heads.head.weight)  # zeros by default
    model = Classifier(net, list("abcd"), PREPROCESS).eval()
    export(model, tmp_path / "model_fp16.onnx")
    expected = model(torch.from_numpy(samples(9))).detach()
    np.testing.assert_allclose(load(tmp_path / "model_fp16.onnx", 1)(samples(9))[0], expected, atol=0.1)


@pytest.mark.filterwarnings("ignore:overflow")
def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path):
    model = classifier(scale=1e6)
    export(model, tmp_path / "model_fp16.onnx")
    with pytest.raises(UserError, match="outputs of the file contain NaN or infinity, so it was not kept"):
        compare_accuracy(model, load(tmp_path / "model_fp16.onnx", 1), [(samples(9), np.zeros(9, np.int64))], 0.5, {})
