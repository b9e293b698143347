"""Read an exported ONNX file; define the names of its input, outputs and metadata.

One file holds network, normalization, calibration, class names and preprocess record. This module needs no torch, so
machines without torch import it. A file may be untrusted, so it is checked before onnxruntime reads it.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imago.errors import DataError
from imago.images import Preprocess
from imago.statistics.calibration import TEMPERATURE_KEY  # also the name of the constant in the graph
from imago.statistics.conformal import PREDICTION_SETS_KEY, PredictionSets
from imago.statistics.unknown_images import UNKNOWN_DETECTOR_KEY, UnknownDetector
from imago.text import first_line, join_names

# N images, S side of an image in pixels, K classes
INPUT = "images"  # uint8 (N, 3, S, S), N free
LOGITS = "logits"  # float32 (N, K), as the network returns them
PROBABILITIES = "probabilities"  # float32 (N, K), softmax of logits / calibration_temperature

# Keys of the file's metadata. Every value is JSON except the run id, which is plain text.
CLASS_NAMES_KEY = "class_names"
PREPROCESS_KEY = "preprocess"
PREDICTS_CLASSES_KEY = "predicts_classes"  # false for a task with targets of its own; a file without it has true
RUN_ID_KEY = "run_id"
METRICS_KEY = "metrics"
VERSIONS_KEY = "versions"
PRECISION_KEY = "precision"  # of the weights, as JSON; files of before have none, and fp32
SCHEMA_KEY = "schema"
SCHEMA_VERSION = 1

DIGEST_KEY = "digest"  # SHA-256 of all bytes before its own entry, the last one; files of the first edition have none

# What torch's exporter writes for the networks of torchvision, timm and this project, and their plain relatives. Left
# out are operators that run other graphs (If, Loop, Scan); ConstantOfShape may only fill a small, fixed shape.
_OPERATOR_NAMES = """
Abs Add And ArgMax AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant Conv ConvTranspose Cos
CumSum DepthToSpace DequantizeLinear Div Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements
GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish
Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
LpNormalization MatMul Max MaxPool Min Mish Mod Mul Neg Not Or PRelu Pad Pow QuantizeLinear RMSNormalization Range
Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape
Resize Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus SpaceToDepth Split
Sqrt Squeeze Sub Sum Swish Tan Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
OPERATORS = frozenset(_OPERATOR_NAMES.split())
_MAX_CONSTANT = 2**24  # values; 65 MB as float32; our own choice
_REFUSED_MESSAGES = ("FunctionProto", "SparseTensorProto", "TrainingInfoProto")  # parts of a model that no export has
_TYPED_DATA = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")  # of a TensorProto

# Optimizations with which onnxruntime 1.31 ends in a segmentation fault for attention in float16, on CPUs.
_CRASH_IN_HALF = ["MatmulTransposeFusion"]

_HOW_TO_EXPORT = "export one with python src/export.py run=RUN"


class OnnxClassifier:
    """An exported classifier that maps pixels to logits and probabilities.

    Args:
        path: a file written by `export.py`.
        num_threads: CPU threads of one call; 0 lets onnxruntime use every core.
        spin: let threads without work wait actively: a call is a little shorter, but other work gets less CPU time.

    Attributes:
        class_names: K names; the index of a name is its label.
        preprocess: how an image becomes (3, S, S); normalization is inside the file.
        calibration_temperature: divisor of the logits before the softmax in the file; 1 if none was fitted.
        prediction_sets: see `imago.statistics.conformal`; None if the file has none.
        unknown_detector: see `imago.statistics.unknown_images`; None if the file has none.
        predicts_classes: whether the outputs are the classes of the data, and not those of another objective.
        metadata: all decoded metadata by the keys of this module.

    Raises:
        DataError: the file is missing, damaged, not of this project, or keeps weights in another file.
    """

    def __init__(self, path: Path, num_threads: int = 0, spin: bool = True) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; {_HOW_TO_EXPORT}.") from error
        self.metadata = _unpack_metadata(_read_metadata(content, path), path)
        self.class_names: tuple[str, ...] = tuple(self.metadata[CLASS_NAMES_KEY])
        self.preprocess = Preprocess.from_dict(self.metadata[PREPROCESS_KEY])
        self.calibration_temperature = float(self.metadata[TEMPERATURE_KEY])
        self.prediction_sets = PredictionSets.from_dict(self.metadata.get(PREDICTION_SETS_KEY))
        detector = self.metadata.get(UNKNOWN_DETECTOR_KEY)
        self.unknown_detector = UnknownDetector.from_dict(detector, len(self.class_names))
        self.predicts_classes = bool(self.metadata.get(PREDICTS_CLASSES_KEY, True))
        self._path = path
        disabled = _CRASH_IN_HALF if self.metadata.get(PRECISION_KEY) == "fp16" else []
        self._session = _start_session(content, path, num_threads, spin, disabled)
        self._check_graph(path)

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map images uint8 (N, 3, S, S) to logits and probabilities, float32 (N, K) each.

        Raises:
            ValueError: images of another shape or type.
            DataError: the graph fails, or returns another number of rows.
        """
        self.preprocess.check_batch(images)
        try:
            logits, probabilities = self._session.run([LOGITS, PROBABILITIES], {INPUT: images})
        except Exception as error:  # as in `_start_session`
            fault = f"fails for {len(images)} images ({first_line(error)})"
            raise DataError(f"{self._path} {fault}; {_HOW_TO_EXPORT}.") from error
        if {len(logits), len(probabilities)} != {len(images)}:
            found = f"{len(logits)} rows of logits and {len(probabilities)} of probabilities"
            raise DataError(f"{self._path} returns {found} for {len(images)} images; {_HOW_TO_EXPORT}.")
        return logits, probabilities

    def _check_graph(self, path: Path) -> None:
        """Raise if names, types or sizes in the graph do not match the metadata: predictions would fail or be wrong."""
        size = self.preprocess.size
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if any(node.shape and isinstance(node.shape[0], int) for node in inputs):
            raise DataError(f"{path} takes batches of one fixed size only; {_HOW_TO_EXPORT}.")
        actual = {node.name: (node.type, node.shape[1:]) for node in (*inputs, *outputs)}
        expected = {INPUT: ("tensor(uint8)", [3, size, size])}
        expected |= dict.fromkeys((LOGITS, PROBABILITIES), ("tensor(float)", [len(self.class_names)]))
        if actual != expected or len(inputs) != 1:
            raise DataError(f"{path} has {actual}, but its metadata expects {expected}; {_HOW_TO_EXPORT}.")


def pack_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """Convert metadata by the keys of this module to the texts that an ONNX file stores; add the schema.

    The schema is written last, and the metadata are at the end of the file, so a truncated file has no schema.
    """
    texts = {key: value if key == RUN_ID_KEY else json.dumps(value) for key, value in values.items()}
    return texts | {SCHEMA_KEY: json.dumps(SCHEMA_VERSION)}


def add_digest(content: bytes) -> bytes:
    """Append the entry `DIGEST_KEY` to the metadata of a serialized model: protobuf merges what is concatenated."""
    import onnx

    value = json.dumps(hashlib.sha256(content).hexdigest())
    entry = onnx.StringStringEntryProto(key=DIGEST_KEY, value=value)
    return content + onnx.ModelProto(metadata_props=[entry]).SerializeToString()


def _check_digest(content: bytes, names: Collection[str], path: Path) -> None:
    num_bytes = len(add_digest(b""))
    # The name is searched in the bytes too: a damaged file may be decoded without its last entry.
    has_digest = DIGEST_KEY in names or DIGEST_KEY.encode() in content[-num_bytes:]
    if has_digest and add_digest(content[:-num_bytes]) != content:
        raise DataError(
            f"{path} is damaged or was changed after its export: its digest does not match; {_HOW_TO_EXPORT}. If you "
            f"changed it on purpose, remove the entry {DIGEST_KEY} from its metadata."
        )


def _read_metadata(content: bytes, path: Path) -> dict[str, str]:
    """Decode the protobuf, check its graph, and return its metadata; raise if it keeps weights in another file."""
    import onnx  # slow to import, and not needed for the names above
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        model.Clear()
    if not model.graph.node:
        raise DataError(f"{path} is truncated or not an ONNX file ({len(content):,} bytes); {_HOW_TO_EXPORT}.")
    _check_digest(content, [item.key for item in model.metadata_props], path)
    for tensor in _messages(model, "TensorProto"):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            location = next((item.value for item in tensor.external_data if item.key == "location"), "?")
            raise DataError(f"{path} keeps weights in another file ({location!r}), which is refused; {_HOW_TO_EXPORT}.")
        if not _is_complete(tensor):
            raise DataError(f"{path} is damaged: {tensor.name!r} has not {list(tensor.dims)} values; {_HOW_TO_EXPORT}.")
    # Networks with shifted windows, such as Swin, fill masks of a small fixed size.
    shapes = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT64]
    values = {shape.name: onnx.numpy_helper.to_array(shape).ravel().tolist() for shape in shapes}
    small = {("ConstantOfShape", name) for name in values if abs(math.prod(values[name])) <= _MAX_CONSTANT}
    nodes = [node for node in _messages(model, "NodeProto") if (node.op_type, *node.input) not in small]
    names = {f"{node.domain}.{node.op_type}".lstrip(".") for node in nodes}
    names |= {message.DESCRIPTOR.name for kind in _REFUSED_MESSAGES for message in _messages(model, kind)}
    if refused := sorted(names - OPERATORS):
        raise DataError(
            f"{path} has parts that no export of this project has: {join_names(refused)}; {_HOW_TO_EXPORT}."
        )
    return {item.key: item.value for item in model.metadata_props}


def _is_complete(tensor: Any) -> bool:
    """Return whether a TensorProto holds as many numbers as its dimensions say: more memory would be allocated."""
    import onnx

    if tensor.data_type not in onnx.helper.get_all_tensor_dtypes() or min(tensor.dims, default=0) < 0:
        return False
    num_bytes = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    num_typed = sum(len(getattr(tensor, name)) for name in _TYPED_DATA)
    return math.prod(tensor.dims) * num_bytes == (len(tensor.raw_data) or num_typed * num_bytes)


def _messages(message: Any, name: str) -> Iterator[Any]:
    """Yield every message of a type, also in the branches of an If, in functions and in sparse tensors."""
    if message.DESCRIPTOR.name == name:
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if hasattr(value, "append") else (value,):  # repeated, or one
                yield from _messages(child, name)


def _unpack_metadata(texts: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Decode and check the output of `pack_metadata`."""
    if SCHEMA_KEY not in texts:
        raise DataError(f"{path} was not exported by this project (no {SCHEMA_KEY} in its metadata); {_HOW_TO_EXPORT}.")
    try:
        values: dict[str, Any] = {key: text if key == RUN_ID_KEY else json.loads(text) for key, text in texts.items()}
        if values[SCHEMA_KEY] != SCHEMA_VERSION:
            raise ValueError(f"{SCHEMA_KEY} is {values[SCHEMA_KEY]}, this version of imago reads {SCHEMA_VERSION}")
        _check_values(values[CLASS_NAMES_KEY], values[TEMPERATURE_KEY])
        Preprocess.from_dict(values[PREPROCESS_KEY])
        PredictionSets.from_dict(values.get(PREDICTION_SETS_KEY))
        UnknownDetector.from_dict(values.get(UNKNOWN_DETECTOR_KEY), len(values[CLASS_NAMES_KEY]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} has invalid metadata ({error}); export it again.") from error
    return values


def _check_values(class_names: Any, temperature: Any) -> None:
    if not isinstance(class_names, list) or len(class_names) < 2 or not all(isinstance(n, str) for n in class_names):
        raise ValueError(f"{CLASS_NAMES_KEY} is not a list of at least two names")
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ValueError(f"{TEMPERATURE_KEY} is {temperature!r}")


def _start_session(content: bytes, path: Path, num_threads: int, spin: bool, disabled: list[str]) -> Any:
    """Return an onnxruntime session on the bytes that were checked, never on the path: the file could change."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.log_severity_level = 4  # nothing: its messages bypass Python's logging, and errors are raised too
    try:
        return onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
    except Exception as error:  # its exceptions have no other common base class
        fault = f"cannot be run by onnxruntime {onnxruntime.__version__} ({first_line(error)})"
        raise DataError(f"{path} {fault}; {_HOW_TO_EXPORT}.") from error
