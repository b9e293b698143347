"""Read the search space of a sweep from the typed arguments and a YAML, in the grammar of Hydra's sweeps."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from imago.errors import ConfigError
from imago.settings import typed_value
from imago.sweep.space import REPEATED_KEYS, Parameter, Space


def parse_space(arguments: Sequence[str], space: Mapping[str, Any], loader: Any) -> Space:
    """Parse the typed arguments of a sweep and the search space of a YAML in `configs/sweep`.

    Args:
        arguments: overrides of Hydra; what is typed replaces the same key of `space`.
        space: from a setting to its values as typed, a list of values, or a mapping from a condition to values.
        loader: Hydra's config loader, which knows the options of a group.

    Raises:
        ConfigError: naming a key whose values cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=loader)
    typed = dict(zip(arguments, parser.parse_overrides(list(arguments)), strict=True))
    typed_keys = {override.get_key_element().lstrip("+") for override in typed.values()}
    found = [
        _parse(parser, str(key), values, condition)
        for key, node in space.items()
        if key not in typed_keys
        for condition, values in (node.items() if isinstance(node, Mapping) else [("", node)])
    ]
    found += [
        _read(text.partition("=")[0], override) for text, override in typed.items() if override.is_sweep_override()
    ]
    fixed = tuple(text for text, override in typed.items() if not override.is_sweep_override())
    repeated = [parameter for parameter in found if parameter.key in REPEATED_KEYS and parameter.choices]
    values = [[f"{parameter.key}={choice}" for choice in parameter.choices] for parameter in repeated]
    return Space(fixed, tuple(parameter for parameter in found if parameter not in repeated), tuple(product(*values)))


def _parse(parser: Any, key: str, values: Any, condition: str) -> Parameter:
    from hydra.errors import HydraException

    text = ",".join(map(typed_value, values)) if isinstance(values, list) else typed_value(values)
    try:
        override = parser.parse_override(f"{key}={text}")
    except HydraException as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"sweep.space: {key}: {text} are no values of a sweep ({reason}).") from error
    if not override.is_sweep_override():
        return Parameter(key, (text,), condition=condition)
    return _read(key, override, condition)


def _read(key: str, override: Any, condition: str = "") -> Parameter:
    value = override.value()
    if not override.is_interval_sweep():
        return Parameter(key, tuple(dict.fromkeys(override.sweep_string_iterator())), condition=condition)
    is_log = "log" in value.tags
    if not value.start < value.end or (is_log and value.start <= 0):
        wanted = "from a number above 0 to a larger one" if is_log else "from a number to a larger one"
        raise ConfigError(f"{override.input_line}: an interval goes {wanted}.")
    return Parameter(key, low=value.start, high=value.end, is_log=is_log, condition=condition)
