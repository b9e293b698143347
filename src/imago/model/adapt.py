"""Build a network and apply its settings `weights`, `freeze`, `in_channels`: any `nn.Module` may have them."""

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imago.errors import ConfigError
from imago.images import MAX_SMALL_PX, Preprocess
from imago.instantiate import accepts, accepts_any, build, import_target_or_none
from imago.model.layers import new_module_names
from imago.model.library_net import check_image_size
from imago.model.pruning import shrink
from imago.model.stem import convert_to_gray
from imago.model.weights import find_file, is_path, load_weights, recorded_preprocess

_ADAPT_SETTINGS = ("weights", "freeze", "in_channels", "pruned_shapes")


def build_network(
    settings: Mapping[str, Any],
    num_classes: int,
    image_size: int,
    preprocess: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
) -> Any:
    """Build a network and apply its settings; those that its class takes as arguments are passed to it.

    `settings` have `_target_`, arguments of the class or function, and those of `adapt` that are not the default.
    `num_classes` (K) is passed as an argument of that name or through `**kwargs`, `image_size` (in pixels) only as an
    argument of that name. A class that takes no `num_classes` must have K outputs as it is. `preprocess` has `mean`
    and `std` of the network's input, by default 0 and 1. By the K `class_names`, rows of the head of a checkpoint are
    found.

    Names and shapes of the tensors, and the initial values of new layers, do not depend on `weights`: a checkpoint is
    rebuilt with `weights=None`, without the file.

    Raises:
        ConfigError: a target that is refused, or settings that cannot work.
        DataError: weights that are missing, damaged or of another network.
    """
    network_class = import_target_or_none(settings.get("_target_"))
    applied = {
        key: settings[key] for key in _ADAPT_SETTINGS if key in settings and not _takes_argument(network_class, key)
    }
    file = find_weights(settings)
    arguments = {key: value for key, value in settings.items() if key not in applied}
    is_sized = accepts(network_class, "num_classes") or accepts_any(network_class)
    arguments |= {"num_classes": num_classes} if is_sized else {}
    arguments |= {"image_size": image_size} if accepts(network_class, "image_size") else {}
    net = build(arguments, base=nn.Module)
    if not is_sized or type(net).__module__.startswith(("torchvision.", "timm.")):
        _check_outputs(net, str(settings["_target_"]), num_classes, image_size)
    adapt(net, file, preprocess, class_names, **applied)
    if applied.get("pruned_shapes"):
        check_image_size(net, type(net).__name__, image_size, image_size, num_classes)
    return net


def _check_outputs(net: nn.Module, target: str, num_classes: int, image_size: int) -> None:
    with torch.no_grad():
        try:
            shape = list(net.eval()(torch.zeros(2, 3, image_size, image_size)).shape)
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"model._target_={target} fails on images of {image_size} px: {reason}") from error
    net.train()
    if shape != [2, num_classes]:
        raise ConfigError(
            f"model._target_={target} takes no argument num_classes, and maps 2 images to {shape} where the data needs "
            f"[2, {num_classes}]; add num_classes to the class or function, or set the argument that it uses instead."
        )


def choose_memory_format(net: nn.Module, image_size: int) -> torch.memory_format:
    """Return channels_last, in which convolutions are fastest, or the contiguous format if `net` needs it for `view`.

    Networks of this project, torchvision and timm accept both; others are run on two images.
    """
    if type(getattr(net, "body", net)).__module__.startswith(("imago.", "torchvision.", "timm.")):
        return torch.channels_last
    trial, images = copy.deepcopy(net).cpu().float().eval(), torch.zeros(2, 3, image_size, image_size)
    try:
        with torch.no_grad():
            trial.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError as error:
        if "view size is not compatible" in str(error):
            return torch.contiguous_format
        raise
    return torch.channels_last


def find_weights(settings: Mapping[str, Any]) -> Path | None:
    """Return the file that `model.weights` names, downloaded if needed; None for null or if the class reads weights.

    Raises:
        ConfigError: the library has no such network, or no published weights of that name.
        DataError: the file does not exist, cannot be downloaded or is damaged.
    """
    network_class, weights = import_target_or_none(settings.get("_target_")), settings.get("weights")
    if hasattr(network_class, "find_weights"):
        return network_class.find_weights(settings.get("name"), weights)
    if weights is None or _takes_argument(network_class, "weights"):
        return None
    if not is_path(weights):
        raise ConfigError(f"model.weights={weights}: of this network it can be null, a file or a run directory.")
    return find_file(weights)


def weights_preprocess(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of `imago.images.Preprocess` that `model.weights` were evaluated with; None if unknown."""
    network_class, weights = import_target_or_none(settings.get("_target_")), settings.get("weights")
    if weights is None or _takes_argument(network_class, "weights"):
        return None
    if hasattr(network_class, "weights_preprocess"):
        return network_class.weights_preprocess(settings.get("name"), weights)
    return recorded_preprocess(weights)


def choose_preprocess(
    typed: Mapping[str, Any], weights: Mapping[str, Any] | None, data: Preprocess
) -> tuple[Preprocess, str]:
    """Choose how images are prepared: what the user typed, else what the pretrained weights need, else the dataset.

    A typed `size` alone scales `resize` too. Of weights for images above 64 px, only mean and std are used for smaller
    ones, as the kept layers expect them. Return the record, and its origin in a few words; raise a ConfigError if the
    settings do not fit together.
    """
    overrides = {name: value for name, value in typed.items() if value is not None}
    record = data.to_dict()
    origin = "from the dataset"
    if weights and data.size <= MAX_SMALL_PX < weights["size"]:
        record |= {name: weights[name] for name in ("mean", "std")}
        origin = "from the dataset, mean and std from the pretrained weights"
    elif weights:
        record |= weights
        origin = "from the pretrained weights"
    if "size" in overrides and "resize" not in overrides:
        overrides["resize"] = round(record["resize"] * overrides["size"] / record["size"])
    if overrides:
        origin = f"{' '.join(overrides)} as typed, else {origin}"
    try:
        return Preprocess.from_dict(record | overrides), origin
    except (TypeError, ValueError) as error:
        raise ConfigError(f"preprocess: these settings do not fit together: {error}.") from error


def adapt(
    net: Any,
    file: Path | None = None,
    preprocess: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
    weights: str | None = None,
    freeze: str | None = None,
    in_channels: int = 3,
    pruned_shapes: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Convert a network to gray images, remove its pruned channels, copy weights into it and freeze parameters.

    Args:
        net: changed in place; gets `new_tensor_names`, the tensors that the file has no values for.
        file: from `find_weights`; None keeps the random values.
        preprocess: as in `build_network`.
        class_names: as in `build_network`.
        weights: path of a .pth, .safetensors or .ckpt file, or the name of published weights.
        freeze: "backbone" trains the head and a new stem only, and keeps everything else in eval mode; a glob such as
            `layer[12].*` freezes the parameters that it matches; None or "none" trains everything.
        in_channels: 3, or 1 to train on the luminance of the images.
        pruned_shapes: shapes of the tensors of a pruned network, by their names in `net`, see `imago.model.pruning`.
    """
    if in_channels == 1:
        record = preprocess or {"mean": (0.0,) * 3, "std": (1.0,) * 3}
        convert_to_gray(net, record["mean"], record["std"])
    if pruned_shapes:
        shrink(net, pruned_shapes)
    if file is not None:
        net.new_tensor_names = load_weights(net, file, weights, class_names)
    if freeze not in (None, "none"):
        freeze_parameters(net, freeze, getattr(net, "new_tensor_names", ()))
        keep_frozen_in_eval_mode(net, freeze)


def freeze_parameters(net: nn.Module, freeze: str, new_tensor_names: Sequence[str] = ()) -> None:
    """Switch off `requires_grad` of the frozen parameters; `freeze` as in `adapt`.

    Raises:
        ConfigError: a glob that matches nothing, leaves nothing to train, or would freeze random values.
    """
    parameters = dict(getattr(net, "body", net).named_parameters())
    if freeze == "backbone":
        trained = tuple(f"{part}." for part in new_module_names(net))
        frozen = {name for name in parameters if not name.startswith(trained)}
    else:
        frozen = {name for name in parameters if fnmatchcase(name, freeze)}
    if not frozen:
        is_module = any(name.startswith(f"{freeze}.") for name in parameters)
        names = list(parameters)
        hint = f"did you mean {freeze}.*?" if is_module else f"they are called {', '.join(names[:3])} ... {names[-1]}."
        raise ConfigError(f"model.freeze={freeze} matches none of the network's {len(parameters)} parameters; {hint}")
    if len(frozen) == len(parameters):
        raise ConfigError(f"model.freeze={freeze} leaves nothing to train; it matches all {len(frozen)} parameters.")
    if freeze != "backbone" and (random_names := [name for name in new_tensor_names if name in frozen]):
        raise ConfigError(
            f"model.freeze={freeze} would keep {' and '.join(random_names)} random: model.weights has no values for "
            "that; use a narrower pattern, or model.freeze=backbone."
        )
    for name in frozen:  # others keep their state: some layers are never trained
        parameters[name].requires_grad_(False)


def keep_frozen_in_eval_mode(net: nn.Module, freeze: str | None = None) -> None:
    """Set the modules that have only frozen parameters to eval mode; other modules keep their mode.

    So BatchNorm uses its running statistics without updating them, and dropout inside a frozen block is off. With
    `freeze="backbone"` the modules without parameters are set to eval mode too: the inputs of the head do not change.
    """
    body = getattr(net, "body", net)
    if freeze == "backbone":
        for module in net.children():
            module.eval()
        for part in new_module_names(net):
            body.get_submodule(part).train(net.training)
    for module in body.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _takes_argument(network_class: Any, key: str) -> bool:
    """Return whether a class or function takes an argument itself, other than torchvision's functions their `weights`.

    Those accept no other number of classes with published weights, and no files.
    """
    is_torchvision = getattr(network_class, "__module__", "").startswith("torchvision.models.")
    return accepts(network_class, key) and not (is_torchvision and key == "weights")
