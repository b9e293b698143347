"""TorchvisionNet: any classifier of torchvision by its name."""

from functools import partial
from typing import Any

from torch import Tensor
from torchvision import models

from imago.errors import ConfigError
from imago.model.library_net import LibraryNet, PublishedWeights, check_arguments, check_name, download
from imago.model.weights import is_path

# Auxiliary heads of these networks, which the loss does not use; they, and their weights in a file, are left out.
_AUXILIARY_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# Published weights of these expect pixels in -1 .. 1, which `transform_input` computes.
_AUXILIARY_SETTINGS = {"aux_logits": False, "transform_input": True, "init_weights": False}


class TorchvisionNet(LibraryNet):
    """A torchvision network with a head for the classes of the data and a stem for the size of its images.

    Args:
        num_classes, image_size: as in `LibraryNet`.
        name: of the network in `torchvision.models`, e.g. "resnet18".
        **arguments: further ones of that network, e.g. `zero_init_residual`.
    """

    def __init__(self, num_classes: int, image_size: int, name: str, **arguments: Any) -> None:
        check_arguments(arguments)
        extra: dict[str, Any] = _AUXILIARY_SETTINGS if name in _AUXILIARY_HEADS else {}
        network = models.get_model(name, weights=None, num_classes=num_classes, **extra, **arguments)
        super().__init__(network, name, num_classes, image_size, supported_size_px=224)

    def convert_weights(self, state: dict[str, Tensor], weights: str) -> dict[str, Tensor]:
        """Leave out the tensors of auxiliary heads."""
        auxiliary_heads = _AUXILIARY_HEADS.get(self.name, ())
        return {key: value for key, value in state.items() if not key.startswith(auxiliary_heads)}

    @staticmethod
    def published(name: str, weights: str | None) -> PublishedWeights:
        """Look up published weights; for None or a path only the preprocess record.

        Raises:
            ConfigError: torchvision has no such network or weights.
        """
        check_name(str(name), models.list_models(module=models), "torchvision", "resnet18, vgg16 or efficientnet_b0")
        entries = models.get_model_weights(name).__members__
        entry = entries.get("DEFAULT" if weights == "default" else str(weights))
        if entry is None and weights is not None and not is_path(weights):
            known = ", ".join(["default", *(key for key in entries if key != "DEFAULT")])
            raise ConfigError(
                f"model.weights={weights}: for {name} it can be {known}, null or a file or run directory."
            )
        transforms = (entry or entries["DEFAULT"]).transforms()
        record = {
            "size": transforms.crop_size[0],
            "resize": transforms.resize_size[0],
            "crop": "center",
            "interpolation": transforms.interpolation.value,
            "mean": list(transforms.mean),
            "std": list(transforms.std),
        }
        return PublishedWeights(partial(download, entry.url) if entry else None, record)
