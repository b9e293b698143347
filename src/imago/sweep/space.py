"""A search space: the values of each setting, their conditions, and the repetitions with other seeds or folds."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from imago.errors import ConfigError

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
    def text(self) -> str:
        """The parameter as typed."""
        scale = "tag(log," if self.is_log else ""
        values = ",".join(self.choices) or f"{scale}interval({self.low},{self.high})" + (")" if scale else "")
        return f"{self.name}={values}"

    @property
    def name(self) -> str:
        """The name in an Optuna study; a setting has one for each of its conditions."""
        return f"{self.key} ({self.condition})" if self.condition else self.key

    def suggest(self, trial: "BaseTrial") -> str:
        """Return the value that Optuna's sampler chooses, as typed; a fraction has four digits within its interval."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return str(trial.suggest_int(self.name, self.low, self.high, log=self.is_log))
        value = trial.suggest_float(self.name, self.low, self.high, log=self.is_log)
        num_digits = 4 + max(0, math.ceil(math.log10(max(abs(self.low), abs(self.high)) / (self.high - self.low))))
        return f"{min(max(float(f'{value:.{num_digits}g}'), self.low), self.high):.{num_digits}g}"


class Space(NamedTuple):
    """A search space: the overrides of every run, what is searched, and the repetitions of each setting.

    A condition on a key of `fixed` is met: parameters for which it is not are no part of the space.
    """

    fixed: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    repeats: tuple[tuple[str, ...], ...]  # the overrides of each repetition, such as ("seed=1", "data.fold=0")

    def suggest(self, trial: "BaseTrial", before: Callable[[str], None] = lambda name: None) -> list[str]:
        """Return the overrides that Optuna's sampler chooses for a trial; `before` is called before each choice."""
        chosen: list[str] = []
        for parameter in self.parameters:
            if self._applies(parameter, chosen):
                before(parameter.name)
                chosen.append(f"{parameter.key}={parameter.suggest(trial)}")
        return chosen

    def first(self, chosen_values: Mapping[str, str]) -> list[str]:
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
        key = parameter.condition.partition("=")[0]
        return parameter.condition in ("", *chosen) or any(text.startswith(f"{key}=") for text in self.fixed)
