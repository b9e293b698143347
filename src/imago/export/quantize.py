"""Quantize an ONNX graph to int8: uint8 activations, int8 weights for each output channel, with float at both ends."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from imago import onnx_classifier
from imago.data.stratified import evenly_spread
from imago.errors import ConfigError, UserError
from imago.export.formats import Options
from imago.text import join_names

log = logging.getLogger(__name__)

_PRODUCTS = ("Conv", "Gemm", "MatMul")  # the operators that take the time
# onnxruntime computes these in float on CPUs: to round what they read and write would only lose accuracy.
_FLOAT_ONLY = (
    *("BatchNormalization", "InstanceNormalization", "LayerNormalization"),
    *("ConvTranspose", "Gelu", "HardSigmoid", "HardSwish"),
)
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_NUM_AT_ONCE = 16  # images, whose activations are all in memory; our own choice
_MAX_SAMPLES = 32  # images, all of whose intermediate results are in memory; our own choice
_NUM_NAMED = 3  # operators in a message; our own choice


def quantize(model: onnx.ModelProto, options: Options) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the graph with QuantizeLinear and DequantizeLinear around its operators, and values for the report.

    The operators before the first convolution or matrix product, and the logits, stay in float: pixels and logits
    would lose more in 8 bits than any layer. Ranges of activations are their smallest and largest values.

    Args:
        model: from images to logits, without a list of shapes; it is not changed.
        options: `calibration_images` of the training split and `keep_float`.

    Raises:
        ConfigError: if a pattern of `keep_float` matches nothing.
        UserError: if no operator is left that could compute in int8.

    Source: onnxruntime's static quantization; Jacob et al. 2018 (arXiv:1712.05877) for the arithmetic.
    """
    assert options.calibration_images is not None, "the command refuses int8 without training images"
    reader = _Reader(options.calibration_images())
    with TemporaryDirectory() as directory, _handler_of_root_logger():
        exported, prepared, quantized = (Path(directory, f"{name}.onnx") for name in ("exported", "prepared", "int8"))
        onnx.save(model, exported)
        quant_pre_process(exported, prepared, skip_symbolic_shape=True)  # merges each BatchNorm with its convolution
        float_model = onnx.load(prepared)
        quantize_static(
            prepared,
            quantized,
            reader,
            QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # weights of 7 bits: x86 CPUs without VNNI add two products in 16 bits, and would clip
            nodes_to_exclude=_float_names(float_model.graph, options.keep_float),
            calibrate_method=CalibrationMethod.MinMax,
        )
        int8_model = onnx.load(quantized)
    _keep_logits_in_float(int8_model.graph)
    samples = [reader.samples[index] for index in evenly_spread(len(reader.samples), _MAX_SAMPLES)]
    errors = operator_errors(float_model, int8_model, np.stack(samples))
    counts = count_operators(int8_model, float_model)
    _strip(int8_model, model)
    log.info("quantized   %s operators compute in int8, %s in float", *(sum(part.values()) for part in counts.values()))
    return int8_model, {**counts, "num_calibration_images": reader.num_images, "operator_errors": errors}


class _Reader:
    """Pass images to the quantizer, `_NUM_AT_ONCE` at a time.

    Args:
        batches: uint8 (B, 3, S, S), of any sizes.

    Attributes:
        num_images: read so far.
        samples: one of each part.
    """

    def __init__(self, batches: Iterator[np.ndarray]) -> None:
        self._parts = (b[start : start + _NUM_AT_ONCE] for b in batches for start in range(0, len(b), _NUM_AT_ONCE))
        self.num_images = 0
        self.samples: list[np.ndarray] = []

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next images by the name of the input; None at the end."""
        images = next(self._parts, None)
        if images is None:
            return None
        self.num_images += len(images)
        self.samples.append(images[0].copy())  # a view would keep the whole batch
        return {onnx_classifier.INPUT: images}


@contextmanager
def _handler_of_root_logger() -> Iterator[None]:
    """Let the root logger have a handler: the quantizer's `logging.info` would add one that prints to stderr."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)


def _float_names(graph: onnx.GraphProto, keep_float: Sequence[str]) -> list[str]:
    """Return the names of the nodes that no convolution or matrix product precedes, and of those that match a pattern.

    A pattern is of names or of types of operators, such as Gemm.
    """
    after_product: set[str] = set()  # tensors
    names: set[str] = set()
    products = [node for node in graph.node if node.op_type in _PRODUCTS]
    for node in graph.node:  # sorted: an input is the output of an earlier node
        is_after = node.op_type in _PRODUCTS or not after_product.isdisjoint(node.input)
        after_product |= {*node.output} if is_after else set()
        names |= {node.name} if not is_after or node.op_type in _FLOAT_ONLY else set()
    for pattern in keep_float:
        matched = {n.name for n in graph.node if fnmatchcase(n.name, pattern) or fnmatchcase(n.op_type, pattern)}
        if not matched:
            raise ConfigError(
                f"keep_float=[{pattern}] matches no operator; this network has {join_names(sorted(_types(graph)))}, "
                f"named as {join_names([node.name for node in products[:_NUM_NAMED]])}."
            )
        names |= matched
    if not {node.name for node in products} - names:
        raise UserError(
            "precision=int8: no operator would compute in int8, only "
            f"{join_names(sorted(_types(graph)))} in float; type precision=fp32, or keep less by keep_float."
        )
    return sorted(names)


def _types(graph: onnx.GraphProto) -> set[str]:
    return {node.op_type for node in graph.node}


def _keep_logits_in_float(graph: onnx.GraphProto) -> None:
    """Remove the two nodes that round the logits to 8 bits."""
    producers = {name: node for node in graph.node for name in node.output}
    dequantize = producers[onnx_classifier.LOGITS]
    if dequantize.op_type != _DEQUANTIZE:
        return
    quantize = producers[dequantize.input[0]]
    producers[quantize.input[0]].output[0] = onnx_classifier.LOGITS
    graph.node.remove(quantize)
    graph.node.remove(dequantize)


def _strip(model: onnx.ModelProto, exported: onnx.ModelProto) -> None:
    """Remove what is not used: constants, and metadata, shapes and versions of operators that the quantizer adds."""
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
    del model.metadata_props[:], model.graph.value_info[:], model.opset_import[:]
    model.opset_import.extend(exported.opset_import)
    model.producer_name, model.producer_version = exported.producer_name, exported.producer_version


def count_operators(int8_model: onnx.ModelProto, float_model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """Count the operators that compute in int8 and in float, by type; those that compute shapes are neither.

    onnxruntime merges an operator between DequantizeLinear and QuantizeLinear with them to one that computes in int8;
    a matrix product may also have outputs in float.
    """
    typed = (*float_model.graph.value_info, *float_model.graph.output)
    float_names = {value.name for value in typed if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    nodes = int8_model.graph.node
    dequantized = {node.output[0] for node in nodes if node.op_type == _DEQUANTIZE}
    quantized = {node.input[0] for node in nodes if node.op_type == _QUANTIZE}
    counts: dict[str, Counter[str]] = {"int8_operators": Counter(), "float_operators": Counter()}
    for node in nodes:
        rounded = node.input[: 2 if node.op_type in _PRODUCTS else 1]  # of a product, activations and weights
        ends_in_int8 = node.output[0] in quantized or node.op_type in ("Gemm", "MatMul")
        is_rounded = bool(rounded) and dequantized.issuperset(rounded) and ends_in_int8
        if is_rounded and node.op_type not in _FLOAT_ONLY:
            counts["int8_operators"][node.op_type] += 1
        elif node.op_type not in (_QUANTIZE, _DEQUANTIZE) and node.output[0] in float_names:
            counts["float_operators"][node.op_type] += 1
    return {kind: dict(counter.most_common()) for kind, counter in counts.items()}


def operator_errors(float_model: onnx.ModelProto, int8_model: onnx.ModelProto, images: np.ndarray) -> dict[str, float]:
    """Return the relative error that int8 adds to the output of each convolution and matrix product, largest first.

    Each gets the activations of the float model, rounded, and its rounded weights, so that no error of an earlier
    operator counts. The error is the norm of the difference over that of the output in float.

    Args:
        float_model: as prepared for the quantizer; its nodes have the names of those of `int8_model`.
        int8_model: its quantized form.
        images: uint8 (N, 3, S, S).
    """
    model = onnx.ModelProto()
    model.CopyFrom(float_model)
    graph, float_nodes = model.graph, {node.name: node for node in float_model.graph.node}
    known = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(tensor for tensor in int8_model.graph.initializer if tensor.name not in known)
    producers = {node.output[0]: node for node in int8_model.graph.node}
    del graph.output[:]
    names = []
    for node in (node for node in int8_model.graph.node if node.op_type in _PRODUCTS):
        if all(producers.get(name, node).op_type == _DEQUANTIZE for name in node.input[:2]):
            _append_error(graph, float_nodes[node.name], node, producers)
            names.append(node.name)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # nothing, as in `imago.onnx_classifier`
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    values = session.run(None, {onnx_classifier.INPUT: images})
    squares = np.array(values, np.float64).reshape(-1, 2)  # of the difference, of the output
    ratios = np.sqrt(squares[:, 0] / np.maximum(squares[:, 1], np.finfo(np.float32).tiny)).tolist()
    return dict(sorted(zip(names, ratios, strict=True), key=lambda item: -item[1]))


def _append_error(graph: onnx.GraphProto, node: onnx.NodeProto, int8_node: onnx.NodeProto, producers: Any) -> None:
    """Append a copy of `int8_node` with the activations of `node`, and as outputs the two squares of `operator_errors`.

    `producers` are the nodes of the int8 graph by their output.
    """
    copied, prefix = onnx.NodeProto(), f"error.{node.name}"
    copied.CopyFrom(int8_node)
    for index, name in enumerate(int8_node.input):
        source, chain = name, []  # weights are stored in int8: DequantizeLinear only; activations are rounded first
        while (producer := producers.get(source)) is not None and producer.op_type in (_QUANTIZE, _DEQUANTIZE):
            chain.append(producer)
            source = producer.input[0]
        source = node.input[index] if len(chain) == 2 else source
        for step, producer in enumerate(reversed(chain)):
            link = graph.node.add()
            link.CopyFrom(producer)
            link.name = link.output[0] = f"{prefix}.{index}.{step}"
            link.input[0] = source
            source = link.output[0]
        copied.input[index] = source
    copied.name = copied.output[0] = prefix
    graph.node.append(copied)
    graph.node.append(helper.make_node("Sub", [prefix, node.output[0]], [f"{prefix}.difference"]))
    for name in (f"{prefix}.difference", node.output[0]):
        graph.node.append(helper.make_node("ReduceSumSquare", [name], [f"{prefix}.{name}.square"], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(f"{prefix}.{name}.square", onnx.TensorProto.FLOAT, []))
