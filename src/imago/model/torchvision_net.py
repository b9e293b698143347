"""TorchvisionNet: any classifier of torchvision by its name."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision import models

from imago.errors import ConfigError
from imago.model.library_net import LibraryNet, check_name
from imago.model.pretrained import download
from imago.model.weights import is_path

# Auxiliary heads of these networks, which the loss does not use; they, and their weights in a file, are left out.
_AUXILIARY_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# Published weights of these expect pixels in -1 .. 1, which `transform_input` computes.
_AUXILIARY_SETTINGS = {"aux_logits": False, "transform_input": True, "init_weights": False}


def _find_entry(name: str, weights: str | None) -> Any | None:
    check_name(str(name), models.list_models(module=models), "torchvision", "resnet18, vgg16 or efficientnet_b0")
    if weights is None:
        return None
    entries = models.get_model_weights(name).__members__
    key = "DEFAULT" if weights == "default" else weights
    if key in entries or is_path(weights):
        return entries.get(key)
    known = ", ".join(["default", *(entry for entry in entries if entry != "DEFAULT")])
    raise ConfigError(f"model.weights={weights}: for {name} it can be {known}, null or a file or run directory.")


def _download_entry(entry: Any) -> Path:
    return download(entry.url)


def _entry_preprocess(name: str, entry: Any | None) -> dict[str, Any]:
    transforms = (entry or models.get_model_weights(name).DEFAULT).transforms()
    return {
        "size": transforms.crop_size[0],
        "resize": transforms.resize_size[0],
        "crop": "center",
        "interpolation": transforms.interpolation.value,
        "mean": list(transforms.mean),
        "std": list(transforms.std),
    }


class TorchvisionNet(LibraryNet):
    """A torchvision network with a head for the classes of the data and a stem for the size of its images.

    Args:
        num_classes: K, width of the head; comes from the data.
        image_size: side of the input in pixels; comes from the preprocess record.
        name: name of the network in torchvision.
    """

    find_entry = staticmethod(_find_entry)
    download_entry = staticmethod(_download_entry)
    entry_preprocess = staticmethod(_entry_preprocess)

    def __init__(self, num_classes: int, image_size: int, name: str) -> None:
        extra: dict[str, Any] = _AUXILIARY_SETTINGS if name in _AUXILIARY_HEADS else {}
        network = models.get_model(name, weights=None, num_classes=num_classes, **extra)
        super().__init__(network, name, num_classes, image_size, fitting_size=224)

    def convert_weights(self, state: dict[str, Tensor], weights: str) -> dict[str, Tensor]:
        auxiliary_heads = _AUXILIARY_HEADS.get(self.name, ())
        return {key: value for key, value in state.items() if not key.startswith(auxiliary_heads)}
