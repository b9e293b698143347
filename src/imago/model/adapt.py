"""Fit a network to the data: gray images, pretrained weights, and which parameters are trained."""

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from imago.errors import ConfigError
from imago.model.layers import last_layer
from imago.model.stem import convert_to_gray, luminance
from imago.model.weights import copy_weights, find_file, is_path, read_weights, recorded_preprocess

log = logging.getLogger(__name__)


class AdaptableNet(nn.Module):
    """Base class of the networks here; a subclass builds its layers, then calls `adapt`.

    All of them take three arguments besides their own:
        weights: path of a .pth, .safetensors or .ckpt file, the name of published weights, or None for random ones.
        freeze: "backbone" trains the head and a new stem only, and keeps everything else in eval mode; a glob such as
            `layer[12].*` freezes the parameters that it matches; None or "none" trains everything.
        in_channels: 3, or 1 to train on the luminance of the images.

    Names and shapes of the tensors, and the first values of the new parts, do not depend on `weights`: a checkpoint is
    rebuilt with `weights=None`, without the file.

    Attributes:
        freeze: as above, None for "none".
        head_names: modules of `body` that compute the logits.
        new_parts: modules of `body` that were created for the data: the head, a stem for small images.
        replaced: names of the tensors that the file of weights had no values for; empty without a file.
    """

    freeze: str | None
    head_names: list[str]
    new_parts: list[str]
    replaced: Sequence[str] = ()

    @property
    def body(self) -> nn.Module:
        """The network that a file of weights belongs to: this one, or the one that it wraps."""
        return self

    @staticmethod
    def find_weights(name: str | None, weights: str | None) -> Path | None:
        """Return the file that `model.weights` names, downloaded if needed; None for None.

        Args:
            name: of the network, for a class that builds many.
            weights: as in the class.

        Raises:
            ConfigError: unknown network, or no published weights of that name.
            DataError: the file does not exist, cannot be downloaded or is damaged.
        """
        if weights is not None and not is_path(weights):
            raise ConfigError(f"model.weights={weights}: of this network it can be null, a file or a run directory.")
        return None if weights is None else find_file(weights)

    @staticmethod
    def weights_preprocess(name: str | None, weights: str | None) -> dict[str, Any] | None:
        """Return the record of `imago.images.Preprocess` that the weights were evaluated with; None if unknown."""
        return None if weights is None else recorded_preprocess(Path(weights).expanduser())

    def train(self, mode: bool = True) -> Self:
        """Switch between training and eval mode; frozen parts stay in eval mode, dropout included."""
        super().train(mode)
        keep_frozen_in_evaluation(self)
        return self


def adapt(
    net: Any,
    file: Path | None,
    freeze: str | None,
    in_channels: int,
    name: str | None = None,
    head_names: Sequence[str] = (),
    new_stem: Sequence[str] = (),
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Fit a network, whose layers are built, to the data and to weights; set the attributes of `AdaptableNet`.

    Args:
        net: changed in place; names of modules are those of `net.body` if it has one.
        file: of weights; None keeps the random ones.
        freeze: as in `AdaptableNet`.
        in_channels: as in `AdaptableNet`.
        name: of the network, for the log; by default its class.
        head_names: modules that compute the logits; by default the last layer.
        new_stem: modules that were replaced for small images.
        state: what `file` contains, if it is read already.

    Raises:
        ConfigError: settings that cannot work.
        DataError: weights that are damaged or of another network.
    """
    body, name = getattr(net, "body", net), name or type(net).__name__
    net.freeze = None if freeze == "none" else freeze
    net.head_names = list(head_names) or [last_layer(body)]
    net.new_parts = [*net.head_names, *new_stem]
    if in_channels == 1:
        gray_weight = convert_to_gray(body)
        net.register_forward_pre_hook(_to_luminance)
    if file is not None:
        state = read_weights(file) if state is None else state
        if in_channels == 1 and gray_weight in state and state[gray_weight].shape[1:2] == (3,):
            state = {**state, gray_weight: state[gray_weight].sum(dim=1, keepdim=True)}
        net.replaced = copy_weights(body, state, net.new_parts, file)
        _log_copied(name, state, net.replaced, file)
    if net.freeze is not None:
        freeze_parameters(body, net.freeze, net.new_parts, net.replaced)
    net.train()


def freeze_parameters(network: nn.Module, freeze: str, new_parts: Sequence[str], random: Sequence[str] = ()) -> None:
    """Set `requires_grad` of every parameter.

    Args:
        network: changed in place.
        freeze: "backbone" for everything but `new_parts`, or a glob over names of parameters, e.g. `layer[12].*`.
        new_parts: modules that start without pretrained weights: the head, a new stem.
        random: names of the tensors that the file of weights had no values for.

    Raises:
        ConfigError: a glob that matches nothing, leaves nothing to train, or would freeze random values.
    """
    names = [name for name, _ in network.named_parameters()]
    if freeze == "backbone":
        frozen = {name for name in names if not name.startswith(tuple(f"{part}." for part in new_parts))}
    else:
        frozen = {name for name in names if fnmatchcase(name, freeze)}
    if not frozen:
        is_module = any(name.startswith(f"{freeze}.") for name in names)
        hint = f"did you mean {freeze}.*?" if is_module else f"they are called {', '.join(names[:3])} ... {names[-1]}."
        raise ConfigError(f"model.freeze={freeze} matches none of the network's {len(names)} parameters; {hint}")
    if len(frozen) == len(names):
        raise ConfigError(f"model.freeze={freeze} leaves nothing to train; it matches all {len(names)} parameters.")
    if freeze != "backbone" and (stuck := [name for name in random if name in frozen]):
        raise ConfigError(
            f"model.freeze={freeze} would keep {' and '.join(stuck)} random: model.weights has no values for "
            f"{'it' if len(stuck) == 1 else 'them'}; use a narrower pattern, or model.freeze=backbone."
        )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)


def keep_frozen_in_evaluation(net: nn.Module) -> None:
    """Set the modules that have parameters, of which none trains, to eval mode; other modules keep their mode.

    So BatchNorm uses its running statistics without updating them, and dropout inside a frozen block is off. With a
    frozen backbone the modules without parameters are set to eval mode too: the features of the head do not change.
    """
    body: Any = getattr(net, "body", net)
    if getattr(net, "freeze", None) == "backbone":
        for module in body.children() if body is net else (body,):
            module.eval()
        for part in getattr(net, "new_parts", ()):
            body.get_submodule(part).train(net.training)
    for module in body.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _to_luminance(net: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Convert the input of a network for gray images, as a forward pre-hook."""
    return (luminance(inputs[0]),)


def _log_copied(name: str, state: Mapping[str, Tensor], new: Sequence[str], file: Path) -> None:
    dropped = [key for key in new if key in state]
    text = f"{len(state) - len(dropped)} of {len(state)} pretrained tensors loaded from {file.name}"
    if new:
        text += f" (new: {', '.join(new)})"
    if dropped:
        shapes = ", ".join(f"{key} {'x'.join(map(str, state[key].shape))}" for key in dropped)
        text += f"; dropped from the file: {shapes}"
    log.info("%s: %s", name, text)
