"""Write a network as a program of `torch.export`, which runs without the network's code, and read it back."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imago.errors import UserError
from imago.export.formats import Options, Outputs, Predict
from imago.export.metadata import read_metadata
from imago.model.classifier import Classifier
from imago.text import first_line

_FILE = "model.pt2"


class ImagesToProbabilities(nn.Module):
    """Map uint8 images (N, 3, S, S) to logits and calibrated probabilities, float32 (N, K) each."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities."""
        logits = self.classifier(images)
        return logits, (logits / self.classifier.calibration_temperature).softmax(dim=1)


def example_images(classifier: Classifier, num_images: int = 2) -> Tensor:
    """Return the images that a network is traced with; a batch of one would become a constant."""
    size = classifier.preprocess.size
    return torch.zeros(num_images, 3, size, size, dtype=torch.uint8)


def name_of(classifier: Classifier) -> str:
    """Return the name of the network in its library, e.g. resnet18, or else its class."""
    return str(getattr(classifier.net, "name", type(classifier.net).__name__))


def export_program(classifier: Classifier, max_batch_size: int | None = None) -> torch.export.ExportedProgram:
    """Trace a classifier in eval mode, for batches of any size, or of up to `max_batch_size`.

    The largest one is traced: torch chooses another convolution below 16 images, which ExecuTorch takes for a bound.

    Raises:
        UserError: if it cannot be traced; it names the class of the network and the reason.
    """
    try:
        return torch.export.export(
            ImagesToProbabilities(classifier),
            (example_images(classifier, max_batch_size or 2),),
            dynamic_shapes=({0: torch.export.Dim("N", max=max_batch_size)},),
            strict=False,
        )
    except Exception as error:  # torch.export raises what the forward raises, and several classes of its own
        reason = first_line(error)
        raise UserError(
            f"{name_of(classifier)} cannot be traced by torch.export: {reason}; change its forward."
        ) from error


def write(classifier: Classifier, path: Path, metadata: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Write PATH/model.pt2, see `imago.export.onnx.write`."""
    path.mkdir()
    buffer = BytesIO()  # as in `imago.export.weights`
    torch.export.save(export_program(classifier), buffer)
    (path / _FILE).write_bytes(buffer.getbuffer())
    return {}


def load(path: Path, num_threads: int) -> Predict:
    """Load a program that this process has written; torch evaluates expressions of such a file.

    It runs on the threads of torch.
    """
    read_metadata(path)  # which checks the file
    return as_predict(torch.export.load(path / _FILE).module())


def as_predict(compute: Callable[[torch.Tensor], Sequence[torch.Tensor]]) -> Predict:
    """Return the function on arrays of a function from images to the tensors of logits and probabilities."""

    def predict(images: np.ndarray) -> Outputs:
        with torch.inference_mode():
            logits, probabilities = compute(torch.from_numpy(images))
        return logits.numpy(), probabilities.numpy()

    return predict
