"""Accept every argument of a `_target_` as a setting, such as `optimizer.betas=[0.9,0.99]`, which no YAML has."""

import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from imago.cli.overrides import chosen_group
from imago.cli.signatures import known_signature, read_signature
from imago.errors import ConfigError
from imago.instantiate import CONTROL_KEYS, to_plain
from imago.settings import flatten

_GROUPS_OF_MEMBERS = ("callbacks", "logger", "metrics")  # `callbacks.NAME._target_=...` adds a member
# Settings that our code applies itself; they are no arguments of the target.
_NETWORK_KEYS = ("weights", "freeze", "in_channels")
_OWN_KEYS = {"optimizer": ("head_lr_multiplier", "layer_lr_decay")} | dict.fromkeys(
    ("model", "task.teacher"), _NETWORK_KEYS
)
_ABSENT = object()


class Nodes:
    """The nodes of a config that have a `_target_`, and the arguments that each takes.

    Args:
        defaults: composed from the typed choices of groups, as plain data.
        typed: the typed values by their keys.
    """

    def __init__(self, defaults: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
        self.defaults = defaults
        self.typed = typed
        names = [name.rpartition(".") for name in (*typed, *flatten(defaults))]
        self.keys = [key for key, _, name in names if name == "_target_"]

    def default(self, key: str) -> Any:
        """Return the value of a key in the YAMLs, or _ABSENT."""
        node: Any = self.defaults
        for name in key.split("."):
            node = node.get(name, _ABSENT) if isinstance(node, dict) else _ABSENT
        return node

    def target(self, key: str) -> Any:
        """Return the `_target_` of a node, typed or from its YAML."""
        return self.typed.get(f"{key}._target_", self.default(f"{key}._target_"))

    def arguments(self, key: str) -> list[str]:
        """Return the names of the arguments and of other settings of a node."""
        signature = known_signature(self.target(key))
        return [*(signature.types if signature else ()), *_OWN_KEYS.get(key, ())]

    def is_argument(self, key: str) -> bool:
        """Return whether a key that no YAML has may be added: an argument, a part of one, or a new member."""
        node, _, name = key.rpartition(".")
        default, target = self.default(node), self.target(node)
        if node in _GROUPS_OF_MEMBERS:
            return f"{key}._target_" in self.typed
        if target is _ABSENT or not isinstance(default, dict):
            is_here = default in (_ABSENT, None, {}) or target is not _ABSENT
            if not (node and is_here and self.is_argument(node)):
                return False
        if target is _ABSENT:
            return True
        signature, names = known_signature(target), [*CONTROL_KEYS, *self.arguments(node)]
        is_open = signature is None or (signature.is_open and (node in _OWN_KEYS or not target.startswith("imago.")))
        # 0.9, our own choice: nearly the name of an argument is a typo, also if `**kwargs` would take it.
        return name in names or (is_open and not get_close_matches(name, names, cutoff=0.9))

    def not_taken(self, key: str) -> list[str]:
        """Return the keys in the YAML of a node that were not typed and that its typed target does not name."""
        default, target = self.default(key), self.target(key)
        if not isinstance(default, dict) or default.get("_target_", target) == target or not known_signature(target):
            return []
        typed = {name.removeprefix(f"{key}.").partition(".")[0] for name in self.typed if name.startswith(f"{key}.")}
        kept = {*CONTROL_KEYS, *self.arguments(key), *typed}
        return [f"{key}.{name}" for name in default if name not in kept]


def first_trial(overrides: Sequence[str], loader: Any) -> list[str]:
    """Return the overrides of the first run of a sweep; those of a single run are unchanged."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    trial = list(overrides)
    for index, override in enumerate(OverridesParser.create(config_loader=loader).parse_overrides(trial)):
        if override.is_sweep_override():
            value: Any = override.value()
            first = value.start if override.is_interval_sweep() else next(override.sweep_string_iterator())
            trial[index] = f"{overrides[index].partition('=')[0]}={first}"
    return trial


def accept_arguments(
    overrides: Sequence[str], trial: Sequence[str], defaults: Any, loader: Any
) -> tuple[dict[str, list[str]], list[str]]:
    """Find the typed arguments of targets that no YAML has, and the keys of YAMLs that typed targets do not take.

    Args:
        overrides: as typed.
        trial: the same for one run, from `first_trial`.
        defaults: composed for `trial` without its values, from `compose_defaults`.
        loader: Hydra's, which knows the groups.

    Returns:
        What replaces an override: the same with `++`, and `~KEY` for what is left out, which is printed; and the keys
        typed with `+` that their target does not take.

    Raises:
        ConfigError: a typed `_target_` that does not exist.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = zip(overrides, trial, OverridesParser.create().parse_overrides(list(trial)), strict=True)
    values = {
        text: flatten(override.value(), override.key_or_group)
        for text, first, override in parsed
        if not (override.is_delete() or override.is_hydra_override() or chosen_group(loader, first))
    }
    nodes = Nodes(
        to_plain(defaults, resolve=False), {key: value for flat in values.values() for key, value in flat.items()}
    )
    replaced: dict[str, list[str]] = {}
    refused: list[str] = []
    for text, flat in values.items():
        added = [key for key in flat if nodes.default(key) is _ABSENT]
        unknown = [key for key in added if not nodes.is_argument(key)]
        if text.startswith("+"):
            refused += [key for key in unknown if key.rpartition(".")[0] in nodes.keys]
        elif added and not unknown:
            replaced[text] = [f"++{text}"]
        for key in flat:
            if deleted := [name for name in _left_out(nodes, key) if f"~{name}" not in overrides]:
                replaced[text] = [*replaced.get(text, [text]), *(f"~{name}" for name in deleted)]
                print(f"{key}={flat[key]} does not take {', '.join(deleted)}: left out.", file=sys.stderr, flush=True)
    return replaced, refused


def _left_out(nodes: Nodes, key: str) -> list[str]:
    """Return what a typed `_target_` does not take of the YAML; raise a ConfigError if it does not exist."""
    node, _, name = key.rpartition(".")
    target = nodes.typed[key]
    if name != "_target_" or not isinstance(target, str):
        return []
    try:
        read_signature(target)
    except ConfigError as error:
        raise ConfigError(f"{key}={target}: {error}") from None
    return nodes.not_taken(node)
