"""Write a network as a program of `torch.export`, which runs without the network's code, and read it back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imago.errors import UserError
from imago.export.formats import Options, Outputs, Predict
from imago.model.classifier import Classifier

_FILE = "model.pt2"
_NUM_EXAMPLE_IMAGES = 2  # torch.export would treat a batch of one as a constant


class ImagesToProbabilities(nn.Module):
    """Map uint8 images (N, 3, S, S) to logits and calibrated probabilities, float32 (N, K) each."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities."""
        logits = self.classifier(images)
        return logits, (logits / self.classifier.calibration_temperature).softmax(dim=1)


def export_program(classifier: Classifier) -> torch.export.ExportedProgram:
    """Trace a classifier in eval mode, for batches of any size.

    Raises:
        UserError: if it cannot be traced; it names the class of the network and the reason.
    """
    size, name = classifier.preprocess.size, type(getattr(classifier.net, "body", classifier.net)).__name__
    images = torch.zeros(_NUM_EXAMPLE_IMAGES, 3, size, size, dtype=torch.uint8)
    try:
        return torch.export.export(
            ImagesToProbabilities(classifier), (images,), dynamic_shapes=({0: torch.export.Dim("N")},), strict=False
        )
    except Exception as error:  # torch.export raises what the forward raises, and several classes of its own
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{name} cannot be traced by torch.export: {reason}; change its forward.") from error


def write(classifier: Classifier, path: Path, metadata: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Write PATH/model.pt2, see `imago.export.onnx.write`."""
    path.mkdir()
    torch.export.save(export_program(classifier), path / _FILE)
    return {}


def load(path: Path, num_threads: int) -> Predict:
    """Load a program that this process has written; torch evaluates expressions of such a file.

    It runs on the threads of torch.
    """
    module = torch.export.load(path / _FILE).module()

    def predict(images: np.ndarray) -> Outputs:
        with torch.inference_mode():
            logits, probabilities = module(torch.from_numpy(images))
        return logits.numpy(), probabilities.numpy()

    return predict
