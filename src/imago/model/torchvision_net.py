"""Any of torchvision's classifiers by its name, pretrained or not, with a head for the data and a stem for its size."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision import models

from imago.errors import ConfigError
from imago.model import pretrained
from imago.model.adaptable_net import AdaptableNet
from imago.model.input_size import refuse_size
from imago.model.stem import fit_stem
from imago.model.weights import local_file, looks_like_path, read_weights, recorded_preprocess

# These train with further heads, for which the loss has no place; they, and their weights in a file, are left out.
_WITH_FURTHER_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


class TorchvisionNet(AdaptableNet):
    """A torchvision network whose head has the data's class count, and which takes small images too (`fit_stem`).

    Args:
        num_classes: K, width of the head; comes from the data.
        image_size: side of the input in pixels; comes from the preprocess record.
        name: of the network, as torchvision spells it.
        weights: "default", a name such as IMAGENET1K_V1, the path of a .pth, .safetensors or .ckpt file, or None for
            random weights.
        freeze: "backbone" trains the head (and a new stem) only; everything else stays in eval mode, so its BatchNorm
            statistics stay as they are. A glob such as `layer[12].*` freezes the parameters it names. None trains
            everything.
        in_channels: 3, or 1 for the luminance of the images.

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
        self.network = _build(name, num_classes)
        new_stem = fit_stem(self.network, image_size)
        refuse_size(self.network, name, image_size, fitting_size=224, num_classes=num_classes)
        state = {} if file is None else read_weights(file)
        further_heads = _WITH_FURTHER_HEADS.get(name, ())
        state = {key: value for key, value in state.items() if not key.startswith(further_heads)}
        self.adapt(name, file, freeze, in_channels, new_stem=new_stem, state=state)

    @property
    def body(self) -> nn.Module:
        """The network as torchvision builds it."""
        return self.network

    @staticmethod
    def find_weights(name: str | None, weights: str | None) -> Path | None:
        """Give the file that `model.weights` means, downloaded if need be; None for None.

        Args:
            name: of the network, as torchvision spells it.
            weights: "default", a name such as IMAGENET1K_V1, the path of a file, or None.

        Raises:
            ConfigError: unknown network or unknown weights.
            DataError: in one line, if the file is not there and cannot be downloaded, or is damaged.
        """
        check_name(str(name))
        if weights is None:
            return None
        entry = _published(str(name), weights)
        return local_file(weights) if entry is None else pretrained.cached(entry.url)

    @staticmethod
    def weights_preprocess(name: str | None, weights: str | None) -> dict[str, Any] | None:
        """Tell how images were prepared when these weights were evaluated: the record of `imago.images.Preprocess`.

        For a local file, unless it is a checkpoint with a record of its own, it is that of the network's default
        weights, which torchvision's own files share.

        Args:
            name: of the network, as torchvision spells it.
            weights: as in `find_weights`.

        Returns:
            size, resize (pixels), crop, interpolation, mean and std (of pixels in [0, 1]); None for weights=None.
        """
        check_name(str(name))
        if weights is None:
            return None
        entry = _published(str(name), weights)
        if entry is None and (record := recorded_preprocess(Path(weights).expanduser())) is not None:
            return record
        asked = (entry or models.get_model_weights(name).DEFAULT).transforms()
        sides = {"size": asked.crop_size[0], "resize": asked.resize_size[0], "crop": "center"}
        sides["interpolation"] = asked.interpolation.value
        return sides | {"mean": list(asked.mean), "std": list(asked.std)}

    def logits(self, images: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, K)."""
        return self.network(images)


def check_name(name: str) -> None:
    """Refuse a network that torchvision does not have.

    Raises:
        ConfigError: with the nearest names.
    """
    names = models.list_models(module=models)
    if name not in names:
        close = ", ".join(get_close_matches(name, names, n=3, cutoff=0.5))
        hint = f"did you mean {close}?" if close else "names are such as resnet18, vgg16 or efficientnet_b0."
        raise ConfigError(f"model.name={name}: there is no such network of torchvision here; {hint}")


def _build(name: str, num_classes: int) -> nn.Module:
    extra: dict[str, bool] = {}
    if (
        name in _WITH_FURTHER_HEADS
    ):  # their published weights expect pixels in -1 .. 1, which they bring about themselves
        extra = {"aux_logits": False, "transform_input": True, "init_weights": False}
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
    return network


def _published(name: str, weights: str) -> Any | None:
    """The entry of torchvision's list; None if `weights` is the path of a file."""
    entries = models.get_model_weights(name).__members__
    key = "DEFAULT" if weights == "default" else weights
    if key in entries:
        return entries[key]
    if looks_like_path(weights):
        return None
    known = ", ".join(["default", *(entry for entry in entries if entry != "DEFAULT")])
    raise ConfigError(f"model.weights={weights}: for {name} it can be {known}, null or a file or run directory.")
