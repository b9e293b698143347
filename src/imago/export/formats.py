"""The formats of `export.py`: their files, the packages they need, and the programs that run them; loads no torch."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

# N images, S side in pixels, K classes
Outputs = tuple[np.ndarray, np.ndarray]  # logits and probabilities, each float32 (N, K)
Predict = Callable[[np.ndarray], Outputs]  # of images uint8 (N, 3, S, S)
LOSSLESS = "fp32"  # other precisions change labels; see `imago.export.accuracy`


@dataclass(frozen=True)
class Format:
    """A format of exported networks.

    Attributes:
        module: of this package, with the functions `write` and `load` as in `imago.export.onnx`.
        file: its name below RUN/export: one file, or a directory with metadata.json and the files.
        runs_in: the programs that run it.
        runtime: the Python package that runs it.
        packages: modules that must be installed.
        install: the command that installs them.
        precisions: of the weights and of the arithmetic.
    """

    module: str
    file: str
    runs_in: str
    runtime: str = "torch"
    packages: tuple[str, ...] = ()
    install: str = "make setup"
    precisions: tuple[str, ...] = (LOSSLESS,)

    def file_of(self, precision: str) -> str:
        """Return the name of the file or directory of a precision, e.g. model_int8.onnx."""
        stem, dot, suffix = self.file.partition(".")
        return f"{stem}{'' if precision == LOSSLESS else f'_{precision}'}{dot}{suffix}"

    def missing_packages(self) -> list[str]:
        """Return the packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def load_module(self) -> Any:
        """Import the module that writes and loads it."""
        return importlib.import_module(f"imago.export.{self.module}")


FORMATS = {
    "onnx": Format(
        "onnx",
        "model.onnx",
        "ONNX Runtime on CPU, GPU, phone and web; predict.py and eval.py; TensorRT and Core ML through ONNX Runtime",
        runtime="onnxruntime",
        packages=("onnx", "onnxscript", "onnxruntime"),
        precisions=(LOSSLESS, "fp16", "int8"),
    ),
    "torch_export": Format("torch_export", "torch_export", "PyTorch without the code of the network (torch.export)"),
    "state_dict": Format("weights", "state_dict", "PyTorch, with the code of the network; model.weights=FILE"),
    "safetensors": Format(
        "weights",
        "safetensors",
        "as state_dict, in a format that executes nothing; timm.create_model('local-dir:DIR')",
        packages=("safetensors",),
    ),
    "openvino": Format(
        "openvino",
        "openvino",
        "OpenVINO on Intel CPUs, GPUs and NPUs",
        runtime="openvino",
        packages=("openvino", "onnx", "onnxscript"),
        precisions=(LOSSLESS, "fp16", "bf16"),
    ),
}


@dataclass(frozen=True)
class Options:
    """Settings of one export.

    Attributes:
        format: a key of `FORMATS`.
        precision: one of the format's.
        opset: version of ONNX's operators; None for torch's choice.
        calibration_images: yields batches uint8 (B, 3, S, S) of training images, for int8.
        keep_float: patterns of operators that stay in float, for int8.
    """

    format: str = "onnx"
    precision: str = LOSSLESS
    opset: int | None = None
    calibration_images: Callable[[], Iterator[np.ndarray]] | None = None
    keep_float: tuple[str, ...] = ()
