"""Classifier: a trained network with its class names, preprocess record and calibration temperature."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imago.images import Preprocess, read_image, resize_and_crop
from imago.model.layers import head_names
from imago.normalize import Normalize


class Classifier(nn.Module):
    """Map raw pixels to logits; the normalization is part of the module.

    Args:
        net: maps normalized float images (N, 3, H, W) to logits (N, K).
        class_names: K names; the index of a name is its label.
        preprocess: how images were prepared when the network was evaluated.
        calibration_temperature: logits are divided by it before the softmax; above 0, and 1 if none was fitted.

    Attributes:
        network_settings: `_target_` and arguments of the network, if it was loaded from a checkpoint.
        prediction_sets: a `PredictionSets` of `imago.statistics.conformal`; None if none were fitted.
        unknown_detector: an `UnknownDetector` of `imago.statistics.unknown_images`; None if none was fitted.
        metrics: `_target_` and settings of the metrics of the training, by name.
        predicts_classes: whether the outputs are the classes of the data, and not those of another objective.
    """

    def __init__(
        self, net: nn.Module, class_names: Sequence[str], preprocess: Preprocess, calibration_temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.normalize = Normalize(preprocess)
        self.net = net
        self.class_names = tuple(class_names)
        self.preprocess = preprocess
        self.calibration_temperature = calibration_temperature
        self.network_settings: Mapping[str, Any] = {}
        self.prediction_sets: Any = None
        self.unknown_detector: Any = None
        self.metrics: Mapping[str, Any] = {}
        self.predicts_classes = True

    def forward(self, images: Tensor | np.ndarray) -> Tensor:
        """Map uint8 images (N, 3, size, size) to logits (N, K).

        Raises:
            ValueError: images of another type or shape.
        """
        self.preprocess.check_batch(images)
        if isinstance(images, np.ndarray):
            images = torch.tensor(images.copy(), device=self.normalize.mean.device)
        return self.net(self.normalize(images))

    def read(self, *files: str | Path) -> np.ndarray:
        """Decode image files, resize and crop them as in evaluation: uint8 (N, 3, size, size).

        Raises:
            DataError: a file cannot be read.
        """
        images = [resize_and_crop(read_image(Path(file)), self.preprocess) for file in files]
        return np.stack(images).transpose(0, 3, 1, 2)

    def probabilities(self, images: Tensor | np.ndarray) -> Tensor:
        """Map uint8 images (N, 3, size, size) to calibrated probabilities (N, K); rows sum to 1."""
        return (self(images) / self.calibration_temperature).softmax(dim=1)

    def features(self, images: Tensor | np.ndarray) -> Tensor:
        """Map uint8 images (N, 3, size, size) to features, the inputs of the head, (N, D).

        The inputs of a convolution, as in SqueezeNet, are averaged over height and width.

        Raises:
            ValueError: the network has no linear layer or convolution, or images of another type or shape.
        """
        names = head_names(self.net)
        if not names:
            raise ValueError(f"{type(self.net).__name__} has no linear layer or convolution as its head.")
        head = getattr(self.net, "body", self.net).get_submodule(names[-1])
        inputs: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        try:
            self(images)
        finally:
            hook.remove()
        return inputs[0].mean(dim=(2, 3)) if isinstance(head, nn.Conv2d) else inputs[0]
