"""Explain predictions with Grad-CAM overlays of the feature map that the head of the network pools."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from imago.analysis.plots import plot_explanation, save_figure
from imago.errors import ConfigError
from imago.files import report_unwritable
from imago.inference.load import Predictor, TorchPredictor
from imago.inference.predictions import Prediction
from imago.inference.results import MAX_NAME_CHARS
from imago.model.classifier import Classifier
from imago.model.layers import head_names


class Explainer:
    """Write a Grad-CAM overlay for each image to `directory`, named by the image's number and name.

    Attributes:
        layer: name of the module whose output is explained.

    Raises:
        ConfigError: if Grad-CAM cannot explain this network.
    """

    def __init__(self, predictor: Predictor, directory: Path) -> None:
        assert isinstance(predictor, TorchPredictor), "the settings check refuses ONNX files"
        self.directory = directory
        self.layer = target_layer(predictor.classifier)
        self._classifier = predictor.classifier
        self._num_written = 0
        with report_unwritable(directory):
            for file in directory.glob(f"{'[0-9]' * 5}_*.png"):  # of an earlier prediction
                file.unlink()

    def write(self, images: np.ndarray, predictions: list[Prediction]) -> None:
        """Write the overlays of a batch, the inputs of the network uint8 (N, 3, S, S), for the best classes.

        Raises:
            DataError: if the overlays cannot be written.
        """
        classes = [self._classifier.class_names.index(prediction.best_classes[0][0]) for prediction in predictions]
        maps = grad_cam(self._classifier, torch.from_numpy(images), torch.tensor(classes)).numpy()
        with report_unwritable(self.directory, "; choose another file with output=FILE.csv"):
            self.directory.mkdir(parents=True, exist_ok=True)
            for image, heatmap, prediction in zip(images.transpose(0, 2, 3, 1), maps, predictions, strict=True):
                self._num_written += 1
                name = f"{self._num_written:05d}_{prediction.image.stem[:MAX_NAME_CHARS]}.png"
                class_name, probability = prediction.best_classes[0]
                save_figure(plot_explanation(image, heatmap, f"{class_name} {probability:.1%}"), self.directory / name)


def grad_cam(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    """Compute the Grad-CAM heatmap of one class, int64 (N,), for each image, uint8 (N, 3, S, S), on any device.

    Returns:
        float32 (N, S, S) on the CPU, in [0, 1]; an image's largest value is 1, or 0 if nothing contributes.

    Raises:
        ConfigError: if the network has no feature map.
        ValueError: images of another type or shape.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391), equations 1 and 2.
    """
    classifier.preprocess.check_batch(images)
    # Gradients of the input make autograd record every layer, also frozen ones.
    inputs = classifier.normalize(images.to(classifier.normalize.mean.device)).requires_grad_()
    with torch.enable_grad():
        logits, pooled = _run(classifier, inputs)
        chosen = logits.gather(1, classes.to(logits.device)[:, None])
        (gradients,) = torch.autograd.grad(chosen.sum(), pooled.map, allow_unused=True)
    if gradients is None:
        raise ConfigError(f"explain=true: the logits do not depend on the output of {pooled.layer}, the last map.")
    small = (gradients.mean(dim=(2, 3), keepdim=True) * pooled.map.detach()).sum(dim=1, keepdim=True).relu()
    maps = functional.interpolate(small.float(), tuple(images.shape[-2:]), mode="bilinear")[:, 0]
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, maps / largest.clamp_min(torch.finfo(maps.dtype).tiny), 0).cpu()


def target_layer(classifier: Classifier) -> str:
    """Return the name of the last module before the head whose output is a map (N, C, H, W), larger than 1 x 1.

    What is explained is the map that the head pools: functions of the network may follow the module, as in DenseNet.

    Raises:
        ConfigError: if there is none, as in a network that processes the image as a sequence of patches.
    """
    size, device = classifier.preprocess.size, classifier.normalize.mean.device
    with torch.no_grad():
        return _run(classifier, torch.zeros(1, 3, size, size, device=device))[1].layer


class _LastMap(TorchFunctionMode):
    """Record the last map that functions and modules return before the head is called, and the module it is from."""

    def __init__(self) -> None:
        super().__init__()
        self.map: Any = None
        self.layer = ""
        self.is_sequence = False  # whether a module has turned the map into a sequence
        self.in_head = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.in_head and isinstance(output, Tensor) and _is_map(output.shape):
            self.map, self.is_sequence = output, False
        return output

    def end_module(self, name: str, output: object) -> None:
        if self.in_head or not isinstance(output, Tensor):
            return
        if _is_map(output.shape):
            self.layer = name
        elif _is_sequence(output.shape):
            self.is_sequence = True


def _run(classifier: Classifier, inputs: Tensor) -> tuple[Tensor, _LastMap]:
    """Return the logits of normalized images, and the map that the head pools; errors as in `target_layer`."""
    net, pooled = classifier.net, _LastMap()
    body = getattr(net, "body", net)
    hooks = [
        body.get_submodule(name).register_forward_pre_hook(lambda *_: setattr(pooled, "in_head", True))
        for name in head_names(net)
    ]
    for name, module in net.named_modules():
        if name:
            hooks.append(module.register_forward_hook(lambda *call, name=name: pooled.end_module(name, call[-1])))
    try:
        with pooled:
            logits = net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not pooled.layer or pooled.is_sequence:
        raise ConfigError(
            f"explain=true: {type(net).__name__} has no feature map of the image before its head, which Grad-CAM "
            "needs; convolutional networks have one."
        )
    return logits, pooled


def _is_map(shape: torch.Size) -> bool:
    """Return whether a shape is (N, C, H, W) with H = W, as images are square; Swin's (N, H, W, C) is not."""
    return len(shape) == 4 and shape[2] == shape[3] > 1


def _is_sequence(shape: torch.Size) -> bool:
    return (len(shape) == 3 and shape[1] > 1) or (len(shape) == 4 and shape[1] == shape[2] > 1 and shape[3] != shape[2])
