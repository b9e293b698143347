"""Samples of where a network looked: Grad-CAM over what it saw, as predict.py writes them."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imago.errors import ConfigError, DataError
from imago.inference.load import Predictor, TorchPredictor
from imago.inference.predictions import Prediction

if TYPE_CHECKING:
    from imago.model.classifier import Classifier

_MAX_STEM_CHARS = 60


class Explainer:
    """Writes an overlay for each image into a folder, named by the image's place and name.

    Args:
        predictor: the network; an exported file has no gradients.
        folder: made with the first image.

    Raises:
        ConfigError: if this network cannot be explained, or a package for it is missing.
    """

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        from imago.inference.grad_cam import target_layer

        if not isinstance(predictor, TorchPredictor):
            raise ConfigError("explain=true needs gradients, which an ONNX file has not; give the run or a checkpoint.")
        self.folder = folder
        self.layer = target_layer(predictor.model)
        self._model: Classifier = predictor.model
        self._num_written = 0

    def write(self, squares: np.ndarray, predictions: list[Prediction]) -> None:
        """Write the overlays of a batch, each for the most probable class.

        Args:
            squares: what the network saw, uint8 (N, 3, size, size).
            predictions: N of them.

        Raises:
            DataError: if they cannot be written.
        """
        import torch

        from imago.analysis.plots import draw_explanation, save_figure
        from imago.inference.grad_cam import grad_cam

        places = [self._model.class_names.index(prediction.class_names[0]) for prediction in predictions]
        device = self._model.normalize.mean.device
        maps = grad_cam(self._model, torch.from_numpy(squares).to(device), torch.tensor(places, device=device)).numpy()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for square, heat, prediction in zip(squares.transpose(0, 2, 3, 1), maps, predictions, strict=True):
                self._num_written += 1
                name = f"{self._num_written:05d}_{prediction.image.stem[:_MAX_STEM_CHARS]}.png"
                title = f"{prediction.class_names[0]} {prediction.probabilities[0]:.1%}"
                save_figure(draw_explanation(square, heat, title), self.folder / name)
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot be written: {error.strerror}; name another file, output=FILE.csv."
            ) from error
