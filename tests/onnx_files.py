"""Write small ONNX files of this project without torch: the logits are the mean of each color channel."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from imago.images import Preprocess
from imago.onnx_classifier import pack_metadata


def write_channel_means(
    path: Path,
    size: int = 8,
    names: Sequence[str] = ("red", "green", "blue"),
    scale: float = 0.1,
    run_id: str = "1",
    head: str = "Softmax",
    **more: Any,
) -> Path:
    """Write a network whose logits are `scale` times the means, in 0 .. 255, of the three channels.

    `head` is the operator that maps them to probabilities; `more` are further metadata.
    """
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["logits"], keepdims=0),
        helper.make_node(head, ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "channel_means",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 3, size, size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(np.float32(scale), "scale"), numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = {
        "class_names": list(names),
        "preprocess": Preprocess(size, size, "center", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).to_dict(),
        "calibration_temperature": 1.0,
        "run_id": run_id,
        "metrics": {"val": {"acc": 0.5}},
        "versions": {},
    }
    helper.set_model_props(model, pack_metadata(metadata | more))
    path.write_bytes(model.SerializeToString())
    return path
