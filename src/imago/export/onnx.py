"""Export a classifier to one ONNX file that contains normalization, softmax and metadata."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from imago import onnx_classifier
from imago.errors import UserError
from imago.export.formats import Options, Predict
from imago.export.metadata import PRECISION_KEY
from imago.export.quantize import quantize
from imago.export.torch_export import example_images, name_of
from imago.model.classifier import Classifier
from imago.text import first_line


def write(classifier: Classifier, path: Path, metadata: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Write `classifier` to `path` in the form that `imago.onnx_classifier` defines.

    The same classifier gives the same bytes: the file contains no time, and no path of this machine.

    Args:
        classifier: in eval mode, in float32, on the CPU; its temperature becomes part of the graph.
        path: the file; other formats create a directory.
        metadata: from `imago.export.metadata.build_metadata`.
        options: `opset` is torch's choice if it is None; `precision` is fp32, fp16 (of the network) or int8.

    Returns:
        Values for the report: the opset of the file, and of int8 those of `imago.export.quantize`.

    Raises:
        UserError: if the network cannot be exported, or not with this opset or for batches of any size.
    """
    report: dict[str, Any] = {}
    model = _trace(_Half(classifier).eval() if options.precision == "fp16" else classifier, classifier, options.opset)
    _check_graph(model, classifier, options.opset)
    _strip_debug_info(model.graph)
    del model.metadata_props[:]
    if options.precision == "int8":
        model, report = quantize(model, options)
    _append_probabilities(model, len(classifier.class_names), classifier.calibration_temperature)
    helper.set_model_props(model, onnx_classifier.pack_metadata({**metadata, PRECISION_KEY: options.precision}))
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(onnx_classifier.add_digest(model.SerializeToString()))
    return {"opset": _opset_of(model), **report}


def load(path: Path, num_threads: int) -> Predict:
    """Return a function from images uint8 (N, 3, S, S) to logits and probabilities, which the file's runtime computes.

    Raises:
        DataError: if the file is not valid, see `OnnxClassifier`.
    """
    return onnx_classifier.OnnxClassifier(path, num_threads).predict


class _Half(torch.nn.Module):
    """Compute the network of a classifier in float16; the normalization and the logits stay in float32."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.normalize = classifier.normalize
        self.net = copy.deepcopy(classifier.net).half()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images (N, 3, S, S) to float32 logits (N, K)."""
        return self.net(self.normalize(images).half()).float()


def _trace(module: torch.nn.Module, classifier: Classifier, opset: int | None) -> onnx.ModelProto:
    """Return the graph from `images` to `logits`, with all weights inside."""
    try:
        program = torch.onnx.export(
            module,
            (example_images(classifier),),
            input_names=[onnx_classifier.INPUT],
            output_names=[onnx_classifier.LOGITS],
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            external_data=False,
        )
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error  # the exporter's own message is several pages long
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(
            f"{name_of(classifier)} cannot be exported to ONNX: {first_line(cause)}; change its forward."
        ) from error
    assert program is not None, "dynamo=True returns a program"
    return program.model_proto


def _check_graph(model: onnx.ModelProto, classifier: Classifier, opset: int | None) -> None:
    """Raise for another opset, which the exporter only warns about, for a fixed batch size, or for other outputs."""
    name, num_classes, written = name_of(classifier), len(classifier.class_names), _opset_of(model)
    if opset not in (None, written):
        raise UserError(
            f"opset={opset}: {name} could only be written with opset {written}; type opset={written}, or leave it out "
            "for torch's own choice."
        )
    (images,), (logits,) = model.graph.input, model.graph.output
    if not images.type.tensor_type.shape.dim[0].dim_param:
        raise UserError(
            f"{name} works only for {len(example_images(classifier))} images at a time; "
            "its forward must not fix the batch size."
        )
    dims = [dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim]
    if dims[1:] != [num_classes] or logits.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise UserError(f"{name} returns {dims}, not float32 logits (N, {num_classes}), one for each class; change it.")


def _append_probabilities(model: onnx.ModelProto, num_classes: int, temperature: float) -> None:
    """Append softmax(logits / temperature); as nodes, because the exporter would drop a division by 1."""
    divided = "calibrated_logits"
    model.graph.initializer.append(
        numpy_helper.from_array(np.array(temperature, np.float32), onnx_classifier.TEMPERATURE_KEY)
    )
    model.graph.node.append(
        helper.make_node("Div", [onnx_classifier.LOGITS, onnx_classifier.TEMPERATURE_KEY], [divided], "calibrate")
    )
    model.graph.node.append(helper.make_node("Softmax", [divided], [onnx_classifier.PROBABILITIES], "softmax", axis=1))
    shape = [model.graph.input[0].type.tensor_type.shape.dim[0].dim_param, num_classes]
    model.graph.output.append(
        helper.make_tensor_value_info(onnx_classifier.PROBABILITIES, onnx.TensorProto.FLOAT, shape)
    )


def _strip_debug_info(graph: onnx.GraphProto) -> None:
    """Remove the exporter's debugging information.

    Its notes contain source lines and paths of this machine; its list of shapes includes weights, on which the
    quantizer of onnxruntime fails (issue 25890).
    """
    del graph.value_info[:]
    for element in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del element.metadata_props[:]
        element.doc_string = ""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):  # the branches of an If
                _strip_debug_info(attribute.g)


def _opset_of(model: onnx.ModelProto) -> int:
    return next(operators.version for operators in model.opset_import if operators.domain in ("", "ai.onnx"))
