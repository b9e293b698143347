"""Accept every argument of a `_target_` as a setting, such as `optimizer.betas=[0.9,0.99]`, which no YAML has."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from imago.cli.overrides import chosen_group
from imago.cli.signatures import Signature, known_signature, read_signature
from imago.errors import ConfigError
from imago.instantiate import CONTROL_KEYS, to_plain
from imago.settings import flatten

_GROUPS_OF_MEMBERS = ("callbacks", "logger", "metrics")  # `callbacks.NAME._target_=...` adds a member
# Settings of a node that our code applies itself; they are no arguments of the target.
_OWN_KEYS = {
    "optimizer": ("head_lr_multiplier", "layer_lr_decay"),
    "model": ("weights", "freeze", "in_channels"),
    "task.teacher": ("weights", "freeze", "in_channels"),
}
_ABSENT = object()


class Accepted(NamedTuple):
    """Changes of a command line that make Hydra accept the arguments of targets.

    Args:
        rewritten: by the override as typed, what Hydra reads instead: with `++`.
        deleted: `~KEY` for each key of a YAML that a typed target does not take.
        notes: one line for each typed target with such keys.
        unknown: keys typed with `+` that their target does not take.
    """

    rewritten: dict[str, str]
    deleted: list[str]
    notes: list[str]
    unknown: list[str]


class Nodes:
    """The nodes of a config that have a `_target_`, and the arguments that each takes.

    Args:
        defaults: composed from the typed choices of groups, as plain data.
        typed: the typed values by their keys.
    """

    def __init__(self, defaults: dict[str, Any], typed: dict[str, Any]) -> None:
        self.defaults = defaults
        self.typed = typed

    def default(self, key: str) -> Any:
        """Return the value of a key in the YAMLs, or _ABSENT."""
        node: Any = self.defaults
        for name in key.split("."):
            node = node.get(name, _ABSENT) if isinstance(node, dict) else _ABSENT
        return node

    def targeted(self) -> list[str]:
        """Return the keys of all nodes with a `_target_`."""
        names = [*self.typed, *flatten(self.defaults)]
        return [name.removesuffix("._target_") for name in names if name.endswith("._target_")]

    def target(self, key: str) -> str | None:
        """Return the `_target_` of a node, typed or from its YAML."""
        target = self.typed.get(f"{key}._target_", self.default(f"{key}._target_"))
        return target if isinstance(target, str) else None

    def arguments(self, key: str) -> list[str]:
        """Return the dotted keys of the arguments of a node."""
        signature = known_signature(self.target(key))
        return [f"{key}.{name}" for name in (*(signature.types if signature else ()), *_OWN_KEYS.get(key, ()))]

    def takes(self, key: str, name: str) -> bool:
        """Return whether the target of a node takes an argument; also if its arguments are unknown."""
        target = str(self.target(key))
        signature = known_signature(target)
        is_open = signature is None or (signature.is_open and (key in _OWN_KEYS or not target.startswith("imago.")))
        return is_open or name in CONTROL_KEYS or f"{key}.{name}" in self.arguments(key)

    def is_argument(self, key: str) -> bool:
        """Return whether a key that no YAML has may be added: an argument, a part of one, or a new member."""
        node, _, name = key.rpartition(".")
        if not node:
            return False
        if node in _GROUPS_OF_MEMBERS:
            return f"{key}._target_" in self.typed
        default = self.default(node)
        if self.target(node) is not None:
            return (isinstance(default, dict) or self.is_argument(node)) and self.takes(node, name)
        return default in (_ABSENT, None, {}) and self.is_argument(node)

    def not_taken(self, key: str) -> list[str]:
        """Return the keys in the YAML of a node that were not typed and that its typed target does not name."""
        default, target = self.default(key), self.target(key)
        signature: Signature | None = known_signature(target)
        if not isinstance(default, dict) or default.get("_target_", target) == target or signature is None:
            return []
        kept = {*CONTROL_KEYS, *signature.types, *_OWN_KEYS.get(key, ())}
        keys = [f"{key}.{name}" for name in default if name not in kept]
        return [name for name in keys if not any(f"{typed}.".startswith(f"{name}.") for typed in self.typed)]


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


def accept_arguments(overrides: Sequence[str], trial: Sequence[str], defaults: Any, loader: Any) -> Accepted:
    """Find the typed arguments of targets that no YAML has, and the keys of YAMLs that typed targets do not take.

    Args:
        overrides: as typed.
        trial: the same for one run, from `first_trial`.
        defaults: composed for `trial` without its values, from `compose_defaults`.
        loader: Hydra's, which knows the groups.

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
    typed = {key: value for flat in values.values() for key, value in flat.items()}
    nodes = Nodes(to_plain(defaults, resolve=False), typed)
    accepted = Accepted({}, [], [], [])
    for key in [key for key in typed if key.endswith("._target_")]:
        _check_target(key, typed[key])
        node = key.removesuffix("._target_")
        names = [name for name in nodes.not_taken(node) if f"~{name}" not in overrides]
        accepted.deleted.extend(f"~{name}" for name in names)
        if names:
            accepted.notes.append(f"{key}={typed[key]} does not take {', '.join(names)}, left out.")
    for text, flat in values.items():
        added = [key for key in flat if nodes.default(key) is _ABSENT]
        unknown = [key for key in added if not nodes.is_argument(key)]
        if text.startswith("+"):
            accepted.unknown.extend(key for key in unknown if nodes.target(key.rpartition(".")[0]))
        elif added and not unknown:
            accepted.rewritten[text] = f"++{text}"
    return accepted


def _check_target(key: str, target: Any) -> None:
    if isinstance(target, str):
        try:
            read_signature(target)
        except ConfigError as error:
            raise ConfigError(f"{key}={target}: {error}") from None
