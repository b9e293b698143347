"""The ONNX artifact: what its parts are called, and the reader that every user of such a file goes through.

One file holds network, normalization, calibration, class names and preprocess record. No torch: the service and small
machines import this module. What is read may come from a stranger, so it is checked before onnxruntime sees it.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imago.errors import DataError
from imago.images import INTERPOLATIONS, Preprocess

# N images, S side of an image in pixels, K classes
INPUT = "images"  # uint8 (N, 3, S, S), N free
LOGITS = "logits"  # float32 (N, K), as the network gives them
PROBABILITIES = "probabilities"  # float32 (N, K), softmax of logits / calibration_temperature

# Keys of the file's metadata. Every value is JSON but the run id, which is plain text.
CLASS_NAMES = "class_names"
PREPROCESS = "preprocess"
TEMPERATURE = "calibration_temperature"  # and the name of the constant in the graph
RUN_ID = "run_id"
METRICS = "metrics"
VERSIONS = "versions"
SCHEMA = "schema"
SCHEMA_VERSION = 1

# Of onnxruntime's messages: a code, and often the place in its own C++ source.
_ORT_PREFIX = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : (/\S+:\d+ .*?\) )?")
_HOW_TO_MAKE = "python src/export.py run=RUN writes RUN/export/model.onnx"


class OnnxClassifier:
    """An exported classifier: raw pixels in, logits and probabilities out.

    Args:
        path: a file that `export.py` wrote.
        num_threads: of one call; 0 leaves it to onnxruntime, which takes every core.

    Attributes:
        class_names: K names; the place of a name is its label.
        preprocess: how an image is brought to (3, S, S); normalization is inside the file.
        calibration_temperature: what the file divides logits by before the softmax; 1 where none was fitted.
        metadata: all of the file's metadata by the keys of this module, decoded.

    Raises:
        DataError: the file is missing, damaged, not of this project, or keeps weights in another file.
    """

    def __init__(self, path: Path, num_threads: int = 0) -> None:
        self.path = path
        content = _read(path)
        model = _parse(content, path)
        self.metadata = _unpack_metadata({item.key: item.value for item in model.metadata_props}, path)
        self.class_names: tuple[str, ...] = tuple(self.metadata[CLASS_NAMES])
        self.preprocess = Preprocess.from_dict(self.metadata[PREPROCESS])
        self.calibration_temperature = float(self.metadata[TEMPERATURE])
        self._session = _start(content, path, num_threads)
        self._refuse_other_graph()

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give logits and probabilities, both float32 (N, K), of images uint8 (N, 3, S, S).

        Raises:
            ValueError: images of another shape or type.
        """
        size = self.preprocess.size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"{self.path.name} takes {INPUT} of uint8 (N, 3, {size}, {size}), got {images.dtype} {images.shape}."
            )
        logits, probabilities = self._session.run([LOGITS, PROBABILITIES], {INPUT: images})
        return logits, probabilities

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Give float32 (N, K) for images uint8 (N, 3, S, S)."""
        return self.predict(images)[0]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Give float32 (N, K), rows summing to 1, for images uint8 (N, 3, S, S)."""
        return self.predict(images)[1]

    def _refuse_other_graph(self) -> None:
        """Hold the graph against the metadata: a name or size that does not fit would fail later, or lie."""
        size, num_classes = self.preprocess.size, len(self.class_names)
        inputs = {node.name: (node.type, node.shape[1:]) for node in self._session.get_inputs()}
        outputs = {node.name: (node.type, node.shape[1:]) for node in self._session.get_outputs()}
        wanted_inputs = {INPUT: ("tensor(uint8)", [3, size, size])}
        wanted_outputs = dict.fromkeys((LOGITS, PROBABILITIES), ("tensor(float)", [num_classes]))
        if any(node.shape and isinstance(node.shape[0], int) for node in self._session.get_inputs()):
            raise DataError(f"{self.path} takes batches of one fixed size only.")
        for found, wanted in ((inputs, wanted_inputs), (outputs, wanted_outputs)):
            if found != wanted:
                raise DataError(f"{self.path} has {found}, but by its metadata {wanted}; {_HOW_TO_MAKE}.")


def pack_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """Turn metadata by the keys of this module into the texts that an ONNX file keeps; adds the schema.

    The schema comes last, and so do the metadata in a file: one that was cut off anywhere has none.
    """
    texts = {key: value if key == RUN_ID else json.dumps(value) for key, value in values.items()}
    return texts | {SCHEMA: json.dumps(SCHEMA_VERSION)}


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the file, e.g. {path / 'export' / 'model.onnx'}.")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; {_HOW_TO_MAKE}.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _parse(content: bytes, path: Path) -> Any:
    """Decode the protobuf: an onnx.ModelProto whose weights are all inside."""
    import onnx  # not needed by those who only want the names above
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise DataError(f"{path} is truncated or no ONNX file ({len(content):,} bytes); {_HOW_TO_MAKE}.") from error
    if not model.graph.node:
        raise DataError(f"{path} is no ONNX file, it holds no graph ({len(content):,} bytes); {_HOW_TO_MAKE}.")
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            place = next((item.value for item in tensor.external_data if item.key == "location"), "?")
            raise DataError(f"{path} keeps weights in another file ({place!r}), which is refused; {_HOW_TO_MAKE}.")
    return model


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto, also in the branches of an If, in functions and in sparse tensors."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for below in value if hasattr(value, "append") else (value,):  # repeated, or one
                yield from _tensors(below)


def _unpack_metadata(texts: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Decode and check what `pack_metadata` wrote."""
    missing = [key for key in (SCHEMA, CLASS_NAMES, PREPROCESS, TEMPERATURE, RUN_ID) if key not in texts]
    if missing:
        raise DataError(f"{path} was not exported by this project (no {missing[0]} in its metadata); {_HOW_TO_MAKE}.")
    try:
        values: dict[str, Any] = {key: text if key == RUN_ID else json.loads(text) for key, text in texts.items()}
        if values[SCHEMA] != SCHEMA_VERSION:
            raise DataError(
                f"{path} has schema {values[SCHEMA]}, this version of imago reads {SCHEMA_VERSION}; export it again."
            )
        _check_class_names(values[CLASS_NAMES])
        _check_preprocess(Preprocess.from_dict(values[PREPROCESS]))
        _check_temperature(values[TEMPERATURE])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path} has metadata that cannot be read ({error}); export it again.") from error
    return values


def _check_class_names(names: Any) -> None:
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{CLASS_NAMES} is no list of at least two names")


def _check_preprocess(record: Preprocess) -> None:
    is_sound = all(type(side) is int and side > 0 for side in (record.size, record.resize))
    is_known = record.crop in ("center", "squash") and record.interpolation in INTERPOLATIONS
    if not is_sound or not is_known or record.resize < record.size:
        raise ValueError(f"{PREPROCESS} is {record}")


def _check_temperature(temperature: Any) -> None:
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ValueError(f"{TEMPERATURE} is {temperature!r}")


def _start(content: bytes, path: Path, num_threads: int) -> Any:
    """Give an onnxruntime session on the bytes that were checked: never on the path, which could change meanwhile."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors only: its warnings go to the screen, past every log
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but this one
        reason = _ORT_PREFIX.sub("", str(error).partition("\n")[0])
        raise DataError(f"{path} cannot be run by onnxruntime {onnxruntime.__version__}: {reason}") from error
