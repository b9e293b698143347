"""Which parameters stay as they are, and that their BatchNorm and dropout stay in evaluation with them."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from imago.errors import ConfigError


def freeze_parameters(network: nn.Module, what: str, new_parts: Sequence[str], random: Sequence[str] = ()) -> None:
    """Take parameters out of training.

    Args:
        network: changed in place.
        what: "backbone" for everything but `new_parts`, or a glob over names of parameters, e.g. `layer[12].*`.
        new_parts: names of the modules that begin without weights: the head, a new stem.
        random: names of the tensors that the file of weights had no value for.

    Raises:
        ConfigError: a glob that matches nothing, leaves nothing to train, or would keep random values as they are.
    """
    names = [name for name, _ in network.named_parameters()]
    if what == "backbone":
        frozen = {name for name in names if not name.startswith(tuple(f"{part}." for part in new_parts))}
    else:
        frozen = {name for name in names if fnmatchcase(name, what)}
    if not frozen:
        raise ConfigError(_no_match(what, names))
    if len(frozen) == len(names):
        raise ConfigError(f"model.freeze={what} leaves nothing to train; it matches all {len(names)} parameters.")
    if what != "backbone" and (stuck := [name for name in random if name in frozen]):
        raise ConfigError(
            f"model.freeze={what} would keep {' and '.join(stuck)} random: model.weights has no values for "
            f"{'it' if len(stuck) == 1 else 'them'}; take a narrower pattern, or model.freeze=backbone."
        )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)


def keep_frozen_in_evaluation(network: nn.Module) -> None:
    """Put every module that has parameters, of which none trains, into evaluation; what has none follows its parent.

    So BatchNorm uses its running statistics and leaves them, and dropout inside of a frozen block is off.
    """
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _no_match(what: str, names: Sequence[str]) -> str:
    below = next((name for name in names if name.startswith(f"{what}.")), None)
    first = f"did you mean {what}.*?" if below else f"they are called {', '.join(names[:3])} ... {names[-1]}."
    return f"model.freeze={what} matches none of the network's {len(names)} parameters; {first}"
