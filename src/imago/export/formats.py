"""The formats of `export.py`: their files, the packages they need, and the programs that run them; loads no torch."""

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np

from imago.paths import PROJECT_ROOT

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
        packages: that must be installed.
        install: the command that installs them.
        precisions: of the weights and of the arithmetic.
        environment: directory in the project's root of the environment that has the packages; "" for the present one.
    """

    module: str
    file: str
    runs_in: str
    runtime: str = "torch"
    packages: tuple[str, ...] = ()
    install: str = "make setup"
    precisions: tuple[str, ...] = (LOSSLESS,)
    environment: str = ""

    def file_of(self, precision: str) -> str:
        """Return the name of the file or directory of a precision, e.g. model_int8.onnx."""
        stem, dot, suffix = self.file.partition(".")
        return f"{stem}{'' if precision == LOSSLESS else f'_{precision}'}{dot}{suffix}"

    def versions(self) -> dict[str, str]:
        """Return the version of each of the packages that is installed."""
        directories = (PROJECT_ROOT / self.environment).glob("lib/python*/site-packages")
        search: dict[str, Any] = {"path": [*map(str, directories)]} if self.environment else {}
        found = {name: next(iter(distributions(name=name, **search)), None) for name in self.packages}
        return {name: package.version for name, package in found.items() if package}

    def missing_packages(self) -> list[str]:
        """Return the packages that are not installed."""
        return [name for name in self.packages if name not in self.versions()]

    def load_module(self) -> Any:
        """Import the module that writes and loads it, or return an object that runs it in another environment."""
        if not self.environment:
            return importlib.import_module(f"imago.export.{self.module}")
        from imago.export.environment import RemoteFormat

        return RemoteFormat(self.module, Path(self.python))

    @property
    def python(self) -> str:
        """The interpreter that can import its packages."""
        return str(PROJECT_ROOT / self.environment / "bin" / "python") if self.environment else sys.executable


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
    "state_dict": Format("weights", "state_dict", "PyTorch, with the code of the network"),
    "safetensors": Format(
        "weights",
        "safetensors",
        "PyTorch, with the code of the network, or in timm; the file executes nothing",
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
    "executorch": Format(
        "executorch",
        "executorch",
        "ExecuTorch with XNNPACK, on phones and embedded CPUs",
        runtime="executorch",
        packages=("executorch",),
        install="make export-env FORMAT=executorch",
        environment=".venv-executorch",
    ),
    "paddle": Format(
        "paddle",
        "paddle",
        "Paddle Inference on servers; the weights also in Paddle for training",
        runtime="paddlepaddle",
        packages=("paddlepaddle", "x2paddle"),
        install="make export-env FORMAT=paddle",
        environment=".venv-paddle",
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


def report_file(options: Options) -> str:
    """Return the name of the report of an artefact, e.g. export_report.json or export_report_openvino_bf16.json."""
    names = [options.format, options.precision]
    others = [name for name in names if name not in ("onnx", LOSSLESS)]
    return "_".join(["export_report", *others]) + ".json"
