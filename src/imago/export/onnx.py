"""From a classifier to one ONNX file that needs nothing else: pixels in, probabilities out, facts in its metadata."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from imago import artifact
from imago.errors import UserError
from imago.model.classifier import Classifier

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
_EXAMPLE_IMAGES = 2  # one would be taken for a constant


class ExportError(UserError):
    """A network that cannot be written as ONNX in the way that was asked for."""


def export_onnx(
    classifier: Classifier,
    path: Path,
    facts: Mapping[str, Any],
    opset: int | None = None,
) -> int:
    """Write `classifier` to `path` in the form that `imago.artifact` describes.

    The same classifier gives the same bytes: no time, and no path of this machine, goes into the file.

    Args:
        classifier: in eval mode, float32, on the CPU; its temperature goes into the graph.
        path: is written over.
        facts: further metadata by the keys of `imago.artifact`: `run_id` and `metrics`.
        opset: version of the operator set; None leaves the choice to torch.

    Returns:
        The opset of the file.

    Raises:
        ExportError: the network has no ONNX form, at all or with this opset or for batches of any size.
    """
    if classifier.training:
        raise ValueError("the classifier is in training mode, where dropout is random; call its .eval() first.")
    model = _trace(classifier, opset)
    _refuse_unfit(model, classifier, opset)
    _append_probabilities(model, len(classifier.class_names), classifier.calibration_temperature)
    _strip(model.graph)
    del model.metadata_props[:]
    helper.set_model_props(model, artifact.pack_metadata(_metadata(classifier, facts)))
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return _opset(model)


def _trace(classifier: Classifier, opset: int | None) -> onnx.ModelProto:
    """Give the graph from `images` to `logits`, every weight inside."""
    size = classifier.preprocess.size
    example = torch.zeros(_EXAMPLE_IMAGES, 3, size, size, dtype=torch.uint8)
    try:
        program = torch.onnx.export(
            classifier,
            (example,),
            input_names=[artifact.INPUT],
            output_names=[artifact.LOGITS],
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            external_data=False,
        )
    except torch.onnx.OnnxExporterError as error:
        name = type(classifier.net).__name__
        raise ExportError(f"{name} cannot be exported to ONNX: {_first_cause(error)}") from error
    assert program is not None, "dynamo=True gives a program"
    return program.model_proto


def _first_cause(error: BaseException) -> str:
    """One line on what went wrong at the bottom; the exporter's own text is pages of advice for its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()


def _refuse_unfit(model: onnx.ModelProto, classifier: Classifier, opset: int | None) -> None:
    """The exporter only warns when it cannot give the opset, and is content with a batch as large as the example."""
    name = type(classifier.net).__name__
    if opset is not None and _opset(model) != opset:
        raise ExportError(
            f"opset={opset}: {name} could only be written with opset {_opset(model)}; type opset={_opset(model)}, or "
            "leave it out for torch's own choice."
        )
    (images,), (logits,) = model.graph.input, model.graph.output
    if not images.type.tensor_type.shape.dim[0].dim_param:
        raise ExportError(f"{name} works for {_EXAMPLE_IMAGES} images at a time only: its forward fixes the batch.")
    dims = [dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim]
    if dims[1:] != [len(classifier.class_names)] or logits.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise ExportError(
            f"{name} gives {dims}, not float32 logits (N, {len(classifier.class_names)}), one for each class."
        )


def _append_probabilities(model: onnx.ModelProto, num_classes: int, temperature: float) -> None:
    """Add softmax(logits / temperature); written out, for the exporter would drop a division by 1."""
    constant = np.array(temperature, np.float32)
    divided = "calibrated_logits"
    model.graph.initializer.append(numpy_helper.from_array(constant, artifact.TEMPERATURE))
    model.graph.node.append(helper.make_node("Div", [artifact.LOGITS, artifact.TEMPERATURE], [divided], "calibrate"))
    model.graph.node.append(helper.make_node("Softmax", [divided], [artifact.PROBABILITIES], "softmax", axis=1))
    shape = [model.graph.input[0].type.tensor_type.shape.dim[0].dim_param, num_classes]
    info = helper.make_tensor_value_info(artifact.PROBABILITIES, onnx.TensorProto.FLOAT, shape)
    model.graph.output.append(info)


def _metadata(classifier: Classifier, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        artifact.CLASS_NAMES: list(classifier.class_names),
        artifact.PREPROCESS: classifier.preprocess.to_dict(),
        artifact.TEMPERATURE: classifier.calibration_temperature,
        artifact.VERSIONS: {name: version(name) for name in _PACKAGES},
        **facts,
    }


def _strip(graph: onnx.GraphProto) -> None:
    """Drop what only debugs the exporter.

    Its notes hold source lines and paths of this machine; its list of shapes names weights too, on which the quantiser
    of onnxruntime stumbles (issue 25890).
    """
    del graph.value_info[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):  # the branches of an If
                _strip(attribute.g)


def _opset(model: onnx.ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
