"""TorchvisionNet: any classifier of torchvision by its name, pretrained or not."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision import models

from imago.errors import ConfigError
from imago.model.adapt import AdaptableNet, adapt
from imago.model.pretrained import check_name, download
from imago.model.stem import check_image_size, fit_stem
from imago.model.weights import find_file, is_path, read_weights, recorded_preprocess

# Auxiliary heads of these networks, which the loss does not use; they, and their weights in a file, are left out.
_AUXILIARY_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# Published weights of these expect pixels in -1 .. 1, which `transform_input` computes.
_AUXILIARY_SETTINGS = {"aux_logits": False, "transform_input": True, "init_weights": False}


class TorchvisionNet(AdaptableNet):
    """A torchvision network with a head for the classes of the data and a stem for the size of its images.

    Args:
        num_classes: K, width of the head; comes from the data.
        image_size: side of the input in pixels; comes from the preprocess record.
        name: of the network in torchvision.
        weights: "default", a name such as IMAGENET1K_V1, a file, or None for random weights.
        freeze, in_channels: as in `AdaptableNet`.

    Raises:
        ConfigError: a name or a size that cannot work.
        DataError: weights that are missing, damaged or of another network.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        name: str,
        weights: str | None,
        freeze: str | None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        file = self.find_weights(name, weights)
        auxiliary_heads = _AUXILIARY_HEADS.get(name, ())
        extra: dict[str, Any] = _AUXILIARY_SETTINGS if auxiliary_heads else {}
        self.network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
        new_stem = fit_stem(self.network, image_size)
        check_image_size(self.network, name, image_size, 224, num_classes)
        state = {} if file is None else read_weights(file)
        state = {key: value for key, value in state.items() if not key.startswith(auxiliary_heads)}
        adapt(self, file, freeze, in_channels, name, new_stem=new_stem, state=state)

    @property
    def body(self) -> nn.Module:
        """The network as torchvision builds it."""
        return self.network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, K)."""
        return self.network(images)

    @staticmethod
    def find_weights(name: str | None, weights: str | None) -> Path | None:
        entry = _find_entry(name, weights)
        if weights is None:
            return None
        return find_file(weights) if entry is None else download(entry.url)

    @staticmethod
    def weights_preprocess(name: str | None, weights: str | None) -> dict[str, Any] | None:
        """Return the record of `imago.images.Preprocess` that the weights were evaluated with.

        A file that is no checkpoint with a record of its own is evaluated as the network's default weights, as
        torchvision's own files are.
        """
        entry = _find_entry(name, weights)
        if weights is None:
            return None
        if entry is None and (record := recorded_preprocess(Path(weights).expanduser())) is not None:
            return record
        transforms = (entry or models.get_model_weights(str(name)).DEFAULT).transforms()
        sides = {"size": transforms.crop_size[0], "resize": transforms.resize_size[0], "crop": "center"}
        sides["interpolation"] = transforms.interpolation.value
        return sides | {"mean": list(transforms.mean), "std": list(transforms.std)}


def _find_entry(name: str | None, weights: str | None) -> Any | None:
    """Return the published weights in torchvision's list; None for None or the path of a file.

    Raises:
        ConfigError: torchvision has no such network or weights.
    """
    check_name(str(name), models.list_models(module=models), "torchvision", "resnet18, vgg16 or efficientnet_b0")
    if weights is None:
        return None
    entries = models.get_model_weights(str(name)).__members__
    key = "DEFAULT" if weights == "default" else weights
    if key in entries or is_path(weights):
        return entries.get(key)
    known = ", ".join(["default", *(entry for entry in entries if entry != "DEFAULT")])
    raise ConfigError(f"model.weights={weights}: for {name} it can be {known}, null or a file or run directory.")
