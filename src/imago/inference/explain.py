"""Explain predictions with Grad-CAM overlays, computed by captum on the last feature map of the network."""

from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

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

    Source: Selvaraju et al. 2017 (arXiv:1610.02391).
    """
    from captum.attr import LayerAttribution, LayerGradCam

    device = classifier.normalize.mean.device
    layer = classifier.net.get_submodule(target_layer(classifier))
    # Gradients of the input make autograd record every layer, also frozen ones.
    inputs = classifier.normalize(images.to(device)).requires_grad_()
    with torch.enable_grad():
        small = LayerGradCam(classifier.net, layer).attribute(inputs, target=classes.to(device), relu_attributions=True)
    maps = LayerAttribution.interpolate(small.detach(), tuple(images.shape[-2:]), interpolate_mode="bilinear")[:, 0]
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, maps / largest.clamp_min(torch.finfo(maps.dtype).tiny), 0).float().cpu()


def target_layer(classifier: Classifier) -> str:
    """Return the name of the last module before the head whose output is a map (N, C, H, W), larger than 1 x 1.

    Raises:
        ConfigError: if there is none, as in a network that processes the image as a sequence of patches.
    """
    body = getattr(classifier.net, "body", classifier.net)
    heads = [body.get_submodule(name) for name in head_names(classifier.net)]
    names_of_heads = [name for name, module in classifier.net.named_modules() if module in heads]
    calls = list(takewhile(lambda call: call[0] not in names_of_heads, _record_calls(classifier)))
    names = [name for name, _ in calls]
    maps = [index for index, (name, shape) in enumerate(calls) if _is_map(shape) and names.count(name) == 1]
    if not maps or any(_is_sequence(shape) for _, shape in calls[maps[-1] :]):
        raise ConfigError(
            f"explain=true: {type(classifier.net).__name__} has no feature map of the image before its head, which "
            "Grad-CAM needs; convolutional networks have one."
        )
    return names[maps[-1]]


def _record_calls(classifier: Classifier) -> list[tuple[str, torch.Size]]:
    """Return the module's name and output shape of each call in a forward pass, in the order in which calls end."""
    calls: list[tuple[str, torch.Size]] = []
    names = {module: name for name, module in classifier.net.named_modules() if name}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, Tensor):
            calls.append((names[module], output.shape))

    hooks = [module.register_forward_hook(record) for module in names]
    size, device = classifier.preprocess.size, classifier.normalize.mean.device
    try:
        with torch.inference_mode():
            classifier(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _is_map(shape: torch.Size) -> bool:
    """Return whether a shape is (N, C, H, W) with H = W, as images are square; Swin's (N, H, W, C) is not."""
    return len(shape) == 4 and shape[2] == shape[3] > 1


def _is_sequence(shape: torch.Size) -> bool:
    return (len(shape) == 3 and shape[1] > 1) or (len(shape) == 4 and shape[1] == shape[2] > 1 and shape[3] != shape[2])
