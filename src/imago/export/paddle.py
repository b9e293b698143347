"""Write a network for Paddle Inference, from its trace by torch, and run it; in the environment .venv-paddle."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from imago.errors import UserError
from imago.export.formats import Options
from imago.export.parity import Outputs, Predict
from imago.export.torch_export import ImagesToProbabilities, example_images, name_of
from imago.model.classifier import Classifier
from imago.text import first_line

_MODEL, _WEIGHTS, _STATE = "model.json", "model.pdiparams", "model.pdparams"


def write(classifier: Classifier, path: Path, metadata: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Write PATH/model.json and model.pdiparams, and the weights for training, see `imago.export.onnx.write`.

    The size in the report is that of the first two, which Paddle Inference reads.
    """
    from x2paddle.convert import pytorch2paddle

    torch.set_grad_enabled(False)
    with TemporaryDirectory(dir=path.parent) as directory:
        try:
            pytorch2paddle(
                ImagesToProbabilities(classifier),
                directory,
                jit_type="trace",
                input_examples=[example_images(classifier)],
                disable_feedback=True,  # otherwise it reports to a server
            )
        except Exception as error:  # x2paddle raises this class for an operator that it does not know
            name, reason = name_of(classifier), first_line(error).rstrip(".!")
            raise UserError(
                f"{name} cannot be converted by x2paddle: {reason}; use another format, e.g. format=onnx."
            ) from error
        path.mkdir()
        Path(directory, _STATE).rename(path / _STATE)
        for name in (_MODEL, _WEIGHTS):
            Path(directory, "inference_model", name).rename(path / name)
    return {"num_bytes": sum((path / name).stat().st_size for name in (_MODEL, _WEIGHTS))}


def load(path: Path, num_threads: int) -> Predict:
    """Load the network into Paddle Inference on the CPU."""
    from paddle import inference

    config = inference.Config(str(path / _MODEL), str(path / _WEIGHTS))
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(num_threads or 1)
    predictor = inference.create_predictor(config)
    (input_name,), output_names = predictor.get_input_names(), predictor.get_output_names()
    inputs = predictor.get_input_handle(input_name)

    def predict(images: np.ndarray) -> Outputs:
        inputs.copy_from_cpu(np.ascontiguousarray(images))
        predictor.run()
        logits, probabilities = (predictor.get_output_handle(name).copy_to_cpu() for name in output_names)
        return logits, probabilities

    return predict
