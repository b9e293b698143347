"""A small network of known outputs as ONNX file, and the service in a process of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from imago.images import Preprocess
from imago.onnx_classifier import pack_metadata
from imago.paths import PROJECT_ROOT

SIZE = 96
HOSTILE = "<img src=x onerror=document.title='changed'>"


def write_model(path: Path) -> Path:
    """Write a network whose logits are 1/50 of the channel means, in 0 .. 255, with one class for each channel."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 3, SIZE, SIZE])
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3]) for n in ("logits", "probabilities")]
    constants = [numpy_helper.from_array(np.float32(0.02), "scale"), numpy_helper.from_array(np.array([2, 3]), "axes")]
    graph = helper.make_graph(nodes, "channel_means", [images], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = {
        "class_names": ["red", "green", HOSTILE],
        "preprocess": Preprocess(SIZE, SIZE, "center", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).to_dict(),
        "calibration_temperature": 1.0,
        "run_id": "123",
        "metrics": {},
        "versions": {},
    }
    helper.set_model_props(model, pack_metadata(metadata))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def run_service(*arguments: str, **environment: str) -> Iterator[str]:
    """Start the service on a free port; yield its address; stop it."""
    command = [sys.executable, "src/serve.py", "port=0", "threads=1", "decoders=1", *arguments]
    variables = {name: value for name, value in os.environ.items() if name != "IMAGO_API_KEY"} | environment
    with subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if address := re.search(r"http://127\.0\.0\.1:[1-9]\d*", line):
                yield address[0] + "/"
                break
        else:
            pytest.fail("".join(lines))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
