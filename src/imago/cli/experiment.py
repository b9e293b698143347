"""Check the settings in the YAML of an experiment, as those on the command line: names and types."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imago.cli.messages import explain_key
from imago.cli.overrides import ABSENT, accepted_types, compose, select, type_problems
from imago.errors import ConfigError
from imago.instantiate import to_plain
from imago.settings import flatten

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import DictConfig


def check_experiment(
    config: "DictConfig", loader: "ConfigLoaderImpl", config_name: str, overrides: Sequence[str]
) -> None:
    """Compare each value of `experiment` and `debug` with that of the group that it overrides.

    `config` is composed from `overrides` by `compose_defaults`, without typed values. A key at the top that is new
    needs another setting that refers to it. A node with another `_target_` may have arguments of any type.

    Raises:
        ConfigError: one line for each setting that does not exist or has another type.
    """
    overriding = [text.lstrip("+") for text in overrides if re.match(r"\+*(experiment|debug)=", text)]
    if not overriding:
        return
    hydra_overrides = [text for text in overrides if text.startswith("hydra.")]
    own = compose(loader, config_name, hydra_overrides)
    groups, chosen = own.hydra.runtime.choices, config.hydra.runtime.choices
    others = [group for group in groups if chosen.get(group) and not re.search("[@/]|^(experiment|debug)$", group)]
    defaults = compose(loader, config_name, [*hydra_overrides, *(f"{group}={chosen[group]}" for group in others)])
    settings = {key: value for key, value in to_plain(config, resolve=False).items() if key != "hydra"}
    unknown = [key for key in settings if key not in {*own, *defaults, *chosen} and f"${{{key}" not in str(settings)]
    problems = [explain_key(key, (), loader, config_name) for key in unknown]
    for key, value in flatten(settings).items():
        default, target = select(defaults, key), f"{key.rpartition('.')[0]}._target_"
        if default is ABSENT or "${" in str(value) or select(config, target) != select(defaults, target):
            continue
        problems += type_problems(key, default, value, accepted_types(key) or (type(default),))
    if problems:
        raise ConfigError("\n".join(f"{problem} It is set by {' or '.join(overriding)}." for problem in problems))
