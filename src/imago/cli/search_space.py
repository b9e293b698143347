"""Read the search space of a sweep from the typed arguments and a YAML, in the grammar of Hydra's sweeps."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from imago.errors import ConfigError
from imago.settings import typed_value
from imago.sweep.space import REPEATED_KEYS, Parameter, Space
from imago.text import first_line


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
    by_key = {override.get_key_element().lstrip("+"): (text, override) for text, override in typed.items()}
    searched = {
        key: _read(text.partition("=")[0], override)
        for key, (text, override) in by_key.items()
        if override.is_sweep_override()
    }
    found: list[Parameter] = [searched.pop(key) for key in [*searched] if key not in space]  # conditions may name them
    for key, node in space.items():
        if key in searched:  # at its position, as later ones may depend on it
            found.append(searched.pop(key))
        elif key not in by_key:
            for condition, values in node.items() if isinstance(node, Mapping) else [("", node)]:
                found.append(_parse(parser, str(key), values, _normalized(parser, condition)))
    fixed = tuple(text for text, override in typed.items() if not override.is_sweep_override())
    fixed_values = dict(_normalized(parser, text).partition("=")[::2] for text in fixed)
    _check(found, by_key)
    found = [parameter for parameter in found if _can_apply(parameter, fixed_values)]
    repeated = [parameter for parameter in found if parameter.key in REPEATED_KEYS and parameter.choices]
    values = [[f"{parameter.key}={choice}" for choice in parameter.choices] for parameter in repeated]
    return Space(fixed, tuple(parameter for parameter in found if parameter not in repeated), tuple(product(*values)))


def _can_apply(parameter: Parameter, fixed: Mapping[str, str]) -> bool:
    """Return whether the condition of a parameter is not about a setting that is fixed to another value."""
    key, _, value = parameter.condition.partition("=")
    return fixed.get(key, value) == value


def _check(found: Sequence[Parameter], typed: Mapping[str, Any]) -> None:
    """Check that each condition can be met, unless its setting is typed, and that what is searched can be."""
    for index, parameter in enumerate(found):
        key, _, value = parameter.condition.partition("=")
        if parameter.key.lstrip("+").startswith("paths.") and parameter.choices[1:]:
            raise ConfigError(f"{parameter.text}: a directory of all runs has one value.")
        if parameter.condition and (parameter.key in REPEATED_KEYS or key in REPEATED_KEYS):
            raise ConfigError(
                f"sweep.space: {parameter.name}: a repetition ({', '.join(REPEATED_KEYS)}) has no condition."
            )
        earlier = [choice for other in found[:index] if other.key == key for choice in other.choices]
        if parameter.condition and value not in earlier and key not in typed:
            raise ConfigError(
                f"sweep.space: {parameter.name}: {key} has no value {value} before this setting, which would never be "
                "searched."
            )


def _normalized(parser: Any, text: str) -> str:
    """Return an override with its value as a sweep would have it: `wd=0.1` for `wd=1e-1`."""
    if not text or "=" not in text:
        return text
    from hydra.errors import HydraException

    try:
        override = parser.parse_override(f"{text},{text.partition('=')[2]}")
        return f"{text.partition('=')[0]}={next(iter(override.sweep_string_iterator()))}"
    except HydraException:  # a value that cannot be swept, such as an empty one
        return text


def _parse(parser: Any, key: str, values: Any, condition: str) -> Parameter:
    """Return the parameter of a key of a YAML."""
    from hydra.errors import HydraException

    text = ",".join(map(typed_value, values)) if isinstance(values, list) else typed_value(values)
    try:
        override = parser.parse_override(f"{key}={text}")
    except HydraException as error:
        raise ConfigError(f"sweep.space: {key}: {text} are no values of a sweep ({first_line(error)}).") from error
    if not override.is_sweep_override():
        return Parameter(key, (text,), condition=condition)
    return _read(key, override, condition)


def _read(key: str, override: Any, condition: str = "") -> Parameter:
    """Return the parameter of an override with several values."""
    value = override.value()
    tags: set[str] = getattr(value, "tags", set())  # a glob has none
    if unknown := tags - {"log"}:
        raise ConfigError(f"{override.input_line}: there is no tag {', '.join(unknown)}; the one for intervals is log.")
    if not override.is_interval_sweep():
        choices = tuple(dict.fromkeys(override.sweep_string_iterator()))
        if not choices:
            raise ConfigError(f"{override.input_line} has no values.")
        return Parameter(key, choices, condition=condition)
    if key.lstrip("+") in REPEATED_KEYS:
        raise ConfigError(f"{override.input_line}: {key} repeats each setting; list its values, e.g. {key}=1,2,3.")
    is_log = "log" in tags
    is_finite = math.isfinite(value.start) and math.isfinite(value.end)
    if not is_finite or not value.start < value.end or (is_log and value.start <= 0):
        wanted = "from a number above 0 to a larger one" if is_log else "from a number to a larger one"
        raise ConfigError(f"{override.input_line}: an interval goes {wanted}.")
    return Parameter(key, low=value.start, high=value.end, is_log=is_log, condition=condition)
