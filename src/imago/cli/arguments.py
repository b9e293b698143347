"""Accept every argument of a `_target_` as a setting, also if no YAML has it, e.g. `optimizer.betas=[0.9,0.99]`."""

import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from imago.cli.overrides import chosen_group, compose_defaults
from imago.cli.signatures import read_signature
from imago.errors import ConfigError
from imago.instantiate import CONTROL_KEYS, to_plain
from imago.settings import flatten

_GROUPS_OF_MEMBERS = ("callbacks", "logger", "metrics")  # `callbacks.NAME._target_=...` adds a member
# Settings that our code applies itself; they are not arguments of the target.
_OWN_KEYS = {
    "optimizer": ("head_lr_multiplier", "layer_lr_decay"),
    **dict.fromkeys(("model", "task.teacher"), ("weights", "freeze", "in_channels")),
}
_ABSENT = object()


class TargetArguments:
    """The nodes of a config that have a `_target_`, and the arguments that each takes.

    `defaults` is the config composed from the typed group choices, as plain data; `typed` has the typed values by key.
    """

    def __init__(self, defaults: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
        self.defaults = defaults
        self.typed = typed

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
        signature = read_signature(str(self.target(key)))
        return [*(signature.types if signature else ()), *_OWN_KEYS.get(key, ())]

    def is_argument(self, key: str) -> bool:
        """Return whether a key that no YAML has may be added: an argument, a part of one, or a new member."""
        node, _, name = key.rpartition(".")
        default, target = self.default(node), self.target(node)
        if node in _GROUPS_OF_MEMBERS:
            return f"{key}._target_" in self.typed
        if target is _ABSENT:  # a part, such as data.loader.timeout
            return node != "" and default in (_ABSENT, None, {}) and self.is_argument(node)
        if not isinstance(default, dict) and not self.is_argument(node):
            return False
        signature, names = read_signature(str(target)), [*CONTROL_KEYS, *self.arguments(node)]
        is_open = signature is None or signature.is_open
        # 0.9, our own choice: nearly the name of an argument is a typo, also if `**kwargs` would take it.
        return name in names or (is_open and not get_close_matches(name, names, cutoff=0.9))

    def not_taken(self, key: str) -> list[str]:
        """Return the keys in the YAML of a node that were not typed and that its typed target does not take."""
        default, target = self.default(key), self.target(key)
        has_changed = isinstance(default, dict) and default.get("_target_", target) != target
        if not has_changed or not read_signature(str(target)):
            return []
        keys = [f"{key}.{name}" for name in default if name not in (*CONTROL_KEYS, *self.arguments(key))]
        return [name for name in keys if not any(f"{typed}.".startswith(f"{name}.") for typed in self.typed)]


def first_trial(overrides: Sequence[str], loader: Any) -> list[str]:
    """Return the overrides of the first run of a sweep; those of a single run are unchanged."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    trial = list(overrides)
    for index, override in enumerate(OverridesParser.create(config_loader=loader).parse_overrides(trial)):
        if override.is_sweep_override():
            value: Any = override.value()
            values = iter([value.start]) if override.is_interval_sweep() else override.sweep_string_iterator()
            if (first := next(values, None)) is None:
                raise ConfigError(f"{overrides[index]} has no values.")
            trial[index] = f"{overrides[index].partition('=')[0]}={first}"
    return trial


def accept_arguments(overrides: Sequence[str], loader: Any, config_name: str) -> dict[str, list[str]]:
    """Find the typed arguments of targets that no YAML has, and the keys of YAMLs that typed targets do not take.

    Returns:
        What replaces each override: itself, with `++` if it adds an argument and without + if it sets what exists, and
        `~KEY` for each key that is left out.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    # A group is chosen without its plus signs, `+trainer=cpu` too; `+model@task.teacher=NAME` adds a node.
    is_choice = {text: "@" not in text and chosen_group(loader, text) for text in overrides}
    original = {text.lstrip("+") if is_choice[text] else text: text for text in overrides}
    overrides = list(original)
    trial = first_trial(overrides, loader)
    defaults = compose_defaults(loader, config_name, trial)
    parsed = zip(overrides, OverridesParser.create().parse_overrides(trial), strict=True)
    values = {
        text: flatten(override.value(), override.key_or_group)
        for text, override in parsed
        if not (override.is_delete() or override.is_hydra_override() or chosen_group(loader, text))
    }
    typed = {key: value for flat in values.values() for key, value in flat.items()}
    nodes = TargetArguments(to_plain(defaults, resolve=False), typed)
    replaced = {typed: [text] for text, typed in original.items()}
    for text, flat in values.items():
        added = [key for key in flat if nodes.default(key) is _ABSENT]
        is_accepted = added and all(map(nodes.is_argument, added)) and not text.startswith("+")
        line = [f"++{text}" if is_accepted else text if added else text.lstrip("+")]
        for node in (key.removesuffix("._target_") for key in flat if key.endswith("._target_")):
            if deleted := [key for key in nodes.not_taken(node) if f"~{key}" not in overrides]:
                line += [f"~{key}" for key in deleted]
                words = f"{node}._target_={nodes.target(node)} does not take {', '.join(deleted)}: left out."
                print(words, file=sys.stderr)
        replaced[original[text]] = line
    return replaced
