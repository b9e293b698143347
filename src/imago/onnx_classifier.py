"""Read an exported ONNX file; define the names of its input, outputs and metadata.

One file holds network, normalization, calibration, class names and preprocess record. This module needs no torch, so
machines without torch import it. A file may be untrusted, so it is checked before onnxruntime reads it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imago.errors import DataError
from imago.images import CROPS, INTERPOLATIONS, Preprocess
from imago.statistics.calibration import TEMPERATURE_KEY  # also the name of the constant in the graph

# N images, S side of an image in pixels, K classes
INPUT = "images"  # uint8 (N, 3, S, S), N free
LOGITS = "logits"  # float32 (N, K), as the network returns them
PROBABILITIES = "probabilities"  # float32 (N, K), softmax of logits / calibration_temperature

# Keys of the file's metadata. Every value is JSON except the run id, which is plain text.
CLASS_NAMES_KEY = "class_names"
PREPROCESS_KEY = "preprocess"
RUN_ID_KEY = "run_id"
METRICS_KEY = "metrics"
VERSIONS_KEY = "versions"
SCHEMA_KEY = "schema"
SCHEMA_VERSION = 1

_HOW_TO_EXPORT = "export one with python src/export.py run=RUN"


class OnnxClassifier:
    """An exported classifier that maps pixels to logits and probabilities.

    Args:
        path: a file written by `export.py`.
        num_threads: CPU threads of one call; 0 lets onnxruntime use every core.

    Attributes:
        class_names: K names; the index of a name is its label.
        preprocess: how an image becomes (3, S, S); normalization is inside the file.
        calibration_temperature: divisor of the logits before the softmax in the file; 1 if none was fitted.
        metadata: all decoded metadata by the keys of this module.

    Raises:
        DataError: the file is missing, damaged, not of this project, or keeps weights in another file.
    """

    def __init__(self, path: Path, num_threads: int = 0) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; {_HOW_TO_EXPORT}.") from error
        self.metadata = _unpack_metadata(_read_metadata(content, path), path)
        self.class_names: tuple[str, ...] = tuple(self.metadata[CLASS_NAMES_KEY])
        self.preprocess = Preprocess.from_dict(self.metadata[PREPROCESS_KEY])
        self.calibration_temperature = float(self.metadata[TEMPERATURE_KEY])
        self._session = _start_session(content, path, num_threads)
        self._check_graph(path)

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map images uint8 (N, 3, S, S) to logits and probabilities, float32 (N, K) each.

        Raises:
            ValueError: images of another shape or type.
        """
        size = self.preprocess.size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"expected images of uint8 (N, 3, {size}, {size}), got {images.dtype} {images.shape}.")
        logits, probabilities = self._session.run([LOGITS, PROBABILITIES], {INPUT: images})
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


def _read_metadata(content: bytes, path: Path) -> dict[str, str]:
    """Decode the protobuf and return its metadata; raise if it keeps weights in another file."""
    import onnx  # slow to import, and not needed for the names above
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        model.Clear()
    if not model.graph.node:
        raise DataError(f"{path} is truncated or not an ONNX file ({len(content):,} bytes); {_HOW_TO_EXPORT}.")
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            location = next((item.value for item in tensor.external_data if item.key == "location"), "?")
            raise DataError(f"{path} keeps weights in another file ({location!r}), which is refused; {_HOW_TO_EXPORT}.")
    return {item.key: item.value for item in model.metadata_props}


def _tensors(message: Any) -> Iterator[Any]:
    """Yield every TensorProto, also in the branches of an If, in functions and in sparse tensors."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if hasattr(value, "append") else (value,):  # repeated, or one
                yield from _tensors(child)


def _unpack_metadata(texts: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Decode and check the output of `pack_metadata`."""
    if SCHEMA_KEY not in texts:
        raise DataError(f"{path} was not exported by this project (no {SCHEMA_KEY} in its metadata); {_HOW_TO_EXPORT}.")
    try:
        values: dict[str, Any] = {key: text if key == RUN_ID_KEY else json.loads(text) for key, text in texts.items()}
        if values[SCHEMA_KEY] != SCHEMA_VERSION:
            raise ValueError(f"{SCHEMA_KEY} is {values[SCHEMA_KEY]}, this version of imago reads {SCHEMA_VERSION}")
        _check_values(values[CLASS_NAMES_KEY], Preprocess.from_dict(values[PREPROCESS_KEY]), values[TEMPERATURE_KEY])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path} has invalid metadata ({error}); export it again.") from error
    return values


def _check_values(class_names: Any, preprocess: Preprocess, temperature: Any) -> None:
    if not isinstance(class_names, list) or len(class_names) < 2 or not all(isinstance(n, str) for n in class_names):
        raise ValueError(f"{CLASS_NAMES_KEY} is not a list of at least two names")
    is_valid = all(type(side) is int and side > 0 for side in (preprocess.size, preprocess.resize))
    is_known = preprocess.crop in CROPS and preprocess.interpolation in INTERPOLATIONS
    if not is_valid or not is_known or preprocess.resize < preprocess.size:
        raise ValueError(f"{PREPROCESS_KEY} is {preprocess}")
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ValueError(f"{TEMPERATURE_KEY} is {temperature!r}")


def _start_session(content: bytes, path: Path, num_threads: int) -> Any:
    """Return an onnxruntime session on the bytes that were checked, never on the path: the file could change."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors only: its warnings bypass Python's logging and streams
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no other common base class
        reason, _, _ = str(error).partition("\n")
        raise DataError(
            f"{path} cannot be run by onnxruntime {onnxruntime.__version__} ({reason}); {_HOW_TO_EXPORT}."
        ) from error
