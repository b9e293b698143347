"""Flatten nested settings to their names on the command line, and format a value as it is typed there."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PATH_SETTINGS = ("root", "list_file", "split_file", "data_dir", "cache_dir")  # of data


def flatten(node: Any, key: str = "") -> dict[str, Any]:
    """Return the values in nested dicts by their dotted keys, as in `optimizer.lr`; lists count as values.

    `key` is the dotted key of `node`, which the keys below it start with.
    """
    if not isinstance(node, Mapping):
        return {key: node}
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat |= flatten(value, f"{key}.{name}" if key else str(name))
    return flat


def is_same_value(key: str, value: Any, other: Any) -> bool:
    """Return whether two values of a setting mean the same: 1 is 1.0, but a limit of 1 batch is no share of 1.0.

    A limit of null is 1.0.
    """
    if "limit_" in key:
        value, other = (1.0 if limit is None else limit for limit in (value, other))
    is_limit = key.endswith("_batches") or key.endswith("val_check_interval")
    return bool(value == other) and not (is_limit and isinstance(value, float) != isinstance(other, float))


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten the settings of a run for a table: the value of a group is the short name of its class.

    Lists become text. Hydra's own keys, such as `_partial_`, are left out.
    """
    flat: dict[str, Any] = {}
    for key, value in flatten(settings).items():
        group, _, name = key.rpartition(".")
        if name == "_target_":
            flat[group] = str(value).rpartition(".")[2].removesuffix("DataModule")
        elif not name.startswith("_"):
            flat[key] = str(value) if isinstance(value, list) else value
    return flat


def absolute_paths(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paths in the settings of a dataset as absolute ones, by which its files are found from anywhere."""
    paths = {key: str(data[key]) for key in PATH_SETTINGS if data.get(key) and "://" not in str(data[key])}
    return {key: str(Path(path).expanduser().absolute()) for key, path in paths.items()}


def typed_value(value: Any) -> str:
    """Format a value as on the command line: null, true, 0.1."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_typed(overrides: Iterable[str], settings: Mapping[str, Any]) -> list[str]:
    """Return overrides, with which `settings` are composed, without the `++` before arguments of a `_target_`."""
    return [text.removeprefix("++") if _is_below_target(text, settings) else text for text in overrides]


def _is_below_target(override: str, settings: Any) -> bool:
    for name in override.removeprefix("++").partition("=")[0].split("."):
        settings = settings.get(name) if isinstance(settings, Mapping) else None
        if isinstance(settings, Mapping) and "_target_" in settings:
            return True
    return False
