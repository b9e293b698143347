"""Where a network looks: Grad-CAM, computed by captum, on the last layer that still has a map of the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from imago.errors import ConfigError
from imago.model.classifier import Classifier


@dataclass(frozen=True)
class _Call:
    """A module that was called, in the order in which the calls ended."""

    name: str
    module: nn.Module
    shape: torch.Size


def grad_cam(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    """Give for each image how much each place speaks for a class.

    Args:
        classifier: in eval mode.
        images: uint8 (N, 3, S, S), on the device of the classifier.
        classes: the class to ask for in each image, int64 (N,).

    Returns:
        float32 (N, S, S) on the CPU, in [0, 1]; an image's largest value is 1, or 0 if nothing speaks for the class.

    Raises:
        ConfigError: if the network has no layer with a map, or captum is not installed.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391).
    """
    try:
        from captum.attr import LayerAttribution, LayerGradCam
    except ModuleNotFoundError as error:
        raise ConfigError("explain=true needs captum; install it: pip install -e '.[analysis]'.") from error
    layer = classifier.net.get_submodule(target_layer(classifier))
    # Asking for the gradient of the images makes one of every layer, of frozen ones too.
    inputs = classifier.normalize(images).requires_grad_()
    with torch.enable_grad():
        small = LayerGradCam(classifier.net, layer).attribute(inputs, target=classes, relu_attributions=True)
    maps = LayerAttribution.interpolate(small.detach(), tuple(images.shape[-2:]), interpolate_mode="bilinear")[:, 0]
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, maps / largest.clamp_min(torch.finfo(maps.dtype).tiny), 0).float().cpu()


def target_layer(classifier: Classifier) -> str:
    """Give the name of the last module before the head whose output is a map (N, C, H, W), more than one place large.

    Raises:
        ConfigError: if there is none, as in a network that cuts the image into patches and mixes them as a sequence.
    """
    calls = _record_calls(classifier)
    head = _head_name(calls)
    calls = list(takewhile(lambda call: call.name != head, calls))
    called = [call.name for call in calls]
    maps = [place for place, call in enumerate(calls) if _is_map(call.shape) and called.count(call.name) == 1]
    if not maps or any(_is_sequence(call.shape) for call in calls[maps[-1] :]):
        raise ConfigError(
            f"explain=true: {type(classifier.net).__name__} has no layer with a map of the image in front of its "
            "head, which Grad-CAM needs; convolutional networks have one."
        )
    return calls[maps[-1]].name


def _record_calls(classifier: Classifier) -> list[_Call]:
    calls: list[_Call] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            if isinstance(output, Tensor):
                calls.append(_Call(name, module, output.shape))

        return module.register_forward_hook(note)

    hooks = [watch(name, module) for name, module in classifier.net.named_modules() if name]
    size, device = classifier.preprocess.size, classifier.normalize.mean.device
    try:
        with torch.inference_mode():
            classifier(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _head_name(calls: Sequence[_Call]) -> str:
    """The last linear layer; a network without one (SqueezeNet) ends in a convolution."""
    for kind in (nn.Linear, nn.Conv2d):
        names = [call.name for call in calls if isinstance(call.module, kind)]
        if names:
            return names[-1]
    return ""


def _is_map(shape: torch.Size) -> bool:
    """(N, C, H, W) with H = W, as images are square: Swin's (N, H, W, C) is none."""
    return len(shape) == 4 and shape[2] == shape[3] > 1


def _is_sequence(shape: torch.Size) -> bool:
    return (len(shape) == 3 and shape[1] > 1) or (len(shape) == 4 and shape[1] == shape[2] > 1 and shape[3] != shape[2])
