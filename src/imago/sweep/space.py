"""Parse a search space: the values of each setting, their conditions, and the repetitions with other seeds or folds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from imago.errors import ConfigError
from imago.settings import typed_value

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

# Several values of these are repetitions of one setting: its objective is their mean.
REPEATED_KEYS = ("seed", "data.fold")


@dataclass(frozen=True)
class Parameter:
    """The values of one setting, in the grammar of Hydra's sweeps: `a,b`, `range(...)` or `interval(...)`.

    Attributes:
        key: the setting as typed, e.g. `optimizer.lr`.
        choices: the values as typed; empty for an interval.
        low, high: the ends of an interval, both included.
        is_log: whether an interval is searched on a logarithmic scale: `tag(log, interval(1e-4, 1e-1))`.
        condition: the parameter is only searched beside this value of an earlier one, e.g. `optimizer=sgd`; or empty.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    condition: str = ""

    @property
    def name(self) -> str:
        """The name in an Optuna study; a setting has one for each of its conditions."""
        return f"{self.key} ({self.condition})" if self.condition else self.key

    def suggest(self, trial: "BaseTrial") -> str:
        """Return the value that Optuna's sampler chooses, as typed, with four digits for a fraction."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return str(trial.suggest_int(self.name, self.low, self.high, log=self.is_log))
        return f"{trial.suggest_float(self.name, self.low, self.high, log=self.is_log):.4g}"


class Space(NamedTuple):
    """A search space: the overrides of every run, what is searched, and the repetitions of each setting."""

    fixed: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    repeats: tuple[tuple[str, ...], ...]  # the overrides of each repetition, such as ("seed=1", "data.fold=0")

    def suggest(self, trial: "BaseTrial") -> list[str]:
        """Return the overrides that Optuna's sampler chooses for a trial."""
        chosen: list[str] = []
        for parameter in self.parameters:
            if self._applies(parameter, chosen):
                chosen.append(f"{parameter.key}={parameter.suggest(trial)}")
        return chosen

    def first(self, **chosen_values: str) -> list[str]:
        """Return the overrides of a run with the first value of each setting but the given ones, to check them."""
        chosen: list[str] = []
        for parameter in self.parameters:
            if self._applies(parameter, chosen):
                low = str(parameter.low) if isinstance(parameter.low, int) else f"{parameter.low:.4g}"
                value = chosen_values.get(parameter.key, parameter.choices[0] if parameter.choices else low)
                chosen.append(f"{parameter.key}={value}")
        return [*self.fixed, *chosen, *self.repeats[0]]

    def combinations(self, chosen: tuple[str, ...] = (), start: int = 0) -> Iterator[dict[str, str]]:
        """Yield every combination of the choices by the names of the parameters, the last one changing fastest.

        Raises:
            ConfigError: if a parameter is an interval.
        """
        if start == len(self.parameters):
            yield {}
            return
        parameter = self.parameters[start]
        if not self._applies(parameter, chosen):
            yield from self.combinations(chosen, start + 1)
            return
        if not parameter.choices:
            raise ConfigError(
                f"{parameter.key}: an interval has no combinations; type sweep=random or sweep=optuna, or values."
            )
        for choice in parameter.choices:
            for rest in self.combinations((*chosen, f"{parameter.key}={choice}"), start + 1):
                yield {parameter.name: choice, **rest}

    def _applies(self, parameter: Parameter, chosen: Sequence[str]) -> bool:
        return not parameter.condition or parameter.condition in (*chosen, *self.fixed)


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
