"""Write a network for OpenVINO, from its ONNX file, and run it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imago import onnx_classifier
from imago.export.formats import LOSSLESS, Options, Outputs, Predict
from imago.export.metadata import PRECISION_KEY, read_metadata

if TYPE_CHECKING:
    from imago.model.classifier import Classifier

_FILE, _ONNX_FILE = "model.xml", "model.onnx"


def write(classifier: "Classifier", path: Path, metadata: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Write PATH/model.xml and PATH/model.bin, see `imago.export.onnx.write`.

    With precision fp16 the weights are stored in half precision and computed in float32; with bf16, see `load`.
    """
    import openvino

    from imago.export import onnx

    path.mkdir()
    report = onnx.write(classifier, path / _ONNX_FILE, metadata, replace(options, precision=LOSSLESS))
    # The reader of the runtime, which, unlike `openvino.convert_model`, reports nothing to a server.
    model = openvino.Core().read_model(path / _ONNX_FILE)
    openvino.save_model(model, path / _FILE, compress_to_fp16=options.precision == "fp16")
    (path / _ONNX_FILE).unlink()
    return report


def load(path: Path, num_threads: int) -> Predict:
    """Compile the network for the CPU and for its precision; by default OpenVINO computes in bf16 on some CPUs."""
    import openvino

    precision = read_metadata(path)[PRECISION_KEY]
    hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    if num_threads:
        hints["INFERENCE_NUM_THREADS"] = num_threads
    compiled = openvino.Core().compile_model(path / _FILE, "CPU", hints)

    def predict(images: np.ndarray) -> Outputs:
        outputs = compiled(images)
        return outputs[onnx_classifier.LOGITS].copy(), outputs[onnx_classifier.PROBABILITIES].copy()

    return predict
