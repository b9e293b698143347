"""Check the settings typed on the command line: quote paths for Hydra, and compare types with the YAML defaults."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from types import NoneType
from typing import TYPE_CHECKING, Any

from imago.cli.signatures import read_signature
from imago.errors import ConfigError
from imago.instantiate import to_plain
from imago.paths import CONFIG_DIR, quote_for_hydra
from imago.settings import flatten, typed_value

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import DictConfig

# The values of these keys are file names, passed on exactly as typed; with -m, a comma outside quotes separates two.
PATH_KEYS = {
    *("data.root", "data.split_file", "data.list_file", "data.data_dir", "data.cache_dir"),
    *("model.weights", "model.run"),
    *("data.group_by", "data.group_pattern", "labels"),  # names and patterns, which may hold any character, too
    *("task.teacher", "task.teacher.weights", "paths.data_dir", "paths.log_dir", "ood"),
    *("input", "run", "runs", "a", "b", "resume", "ckpt", "run_name", "sweep_name", "output", "csv", "class_names"),
}

# Keys that accept more types than that of their default, which is null or one of several possible types.
# A star matches anything within one part of a key. An int is always accepted for a float.
ACCEPTED_TYPES: dict[tuple[type, ...], set[str]] = {
    (str, NoneType): {
        *(PATH_KEYS - {"paths.data_dir", "paths.log_dir", "data.data_dir", "data.cache_dir"}),
        *("paths.run_dir", "preprocess.crop", "preprocess.interpolation", "model.freeze"),
        *("callbacks.*.dirpath", "logger.*.save_dir", "logger.*.path"),
        *("augment.policy", "trainer.gradient_clip_algorithm", "tune", "license", "push"),
        *("callbacks.*.mode", "schedule.mode", "sweep.objective", "sweep.direction", "sweep.storage"),
    },
    (int, NoneType): {
        *("opset", "parity_samples", "corrupt_samples", "calibration_samples", "batch_size", "sweep.n_trials"),
        *("trainer.max_epochs", "trainer.log_every_n_steps"),
        *("data.num_workers", "data.fold", "data.decoded_px", "data.size"),
        *("preprocess.size", "preprocess.resize", "trainer.check_val_every_n_epoch", "schedule.*_steps"),
    },
    (float, NoneType): {"schedule.*_epochs", "trainer.gradient_clip_val"},
    (int, float, NoneType): {"sweep.max_hours", "trainer.val_check_interval", "trainer.limit_*_batches"},
    (bool, NoneType): {"optimizer.fused", "trainer.benchmark"},
    (list, NoneType): {"preprocess.mean", "preprocess.std", "augment.random_resized_crop_scale"},
    (dict, NoneType): {"data.val", "data.test", "callbacks.*", "logger.*", "metrics.*"},
    (str, list, NoneType): {"corrupt"},
    (str, list, dict, NoneType): {"loss.weight"},
    (int, str, list): {"trainer.devices"},
    (str, int): {"trainer.precision", "threads"},
    (str, dict): {"trainer.strategy", "sweep.sampler", "sweep.pruner"},
    (str, dict, NoneType): {"trainer.profiler", "trainer.max_time"},
    (bool, str): {"trainer.deterministic", "compile", "data.on_device"},
}

NOT_GLOBAL = "the first line of its YAML, also before comments, must be '# @package _global_'."

_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list",
               dict: "a group of settings", NoneType: "null"}  # fmt: skip
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)
_SWEPT_PATH = re.compile(rf"(?:{_QUOTED.pattern}|[^,])+", re.DOTALL)
ABSENT = object()


def quote_paths(argv: Sequence[str]) -> list[str]:
    """Quote the values of path-like keys for Hydra's grammar; return all other arguments unchanged.

    Quoting twice changes nothing: the ranks of a DDP run start from the quoted command line. In a sweep, each of the
    values is quoted.

    Raises:
        ConfigError: if a value contains `${`, which OmegaConf resolves even inside quotes.
    """
    is_sweep = not {"-m", "--multirun"}.isdisjoint(argv)
    return [_quote_argument(argument, is_sweep) for argument in argv]


def _quote_argument(argument: str, is_sweep: bool) -> str:
    typed_key, _, value = argument.partition("=")
    key = typed_key.lstrip("+")
    is_quoted = _QUOTED.fullmatch(value)
    if key == "hydra.run.dir" and re.fullmatch('".*"', value) and not is_quoted:
        return f"{typed_key}={quote_for_hydra(value[1:-1])}"  # quoted by Lightning for its ranks, but not escaped
    if key not in PATH_KEYS or value in ("", "null"):
        return argument
    if "${" in value:
        raise ConfigError(
            f"{argument}: a path cannot contain '${{', which starts an interpolation; rename it or type it in full."
        )
    if is_quoted:
        return argument
    values = [text.strip() for text in _SWEPT_PATH.findall(value)] if is_sweep else [value]
    home, kept = os.path.expanduser, re.compile(f"{_QUOTED.pattern}|null", re.DOTALL)
    return f"{typed_key}={','.join(v if kept.fullmatch(v) else quote_for_hydra(home(v)) for v in values)}"


def check_types(config: "DictConfig", defaults: "DictConfig", overrides: Sequence[str]) -> None:
    """Compare the type of each typed value with that of its default; Hydra itself accepts `optimizer.lr=abc`.

    `config` is composed with all `overrides`, and `defaults` without those of single values, by `compose_defaults`.

    Raises:
        ConfigError: one line for each setting of another type.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    problems: list[str] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_delete():
            continue
        typed = override.key_or_group.replace("/", ".")
        # `optimizer={lr: 1}` sets optimizer.lr; a reference to another setting may have any type.
        raw = {typed: override.value(), **flatten(override.value(), typed)}
        for key in [key for key, value in raw.items() if "${" not in str(value)]:
            default, value = select(defaults, key), select(config, key)
            types = argument_types(config, key) if default is ABSENT else accepted_types(key) or (type(default),)
            problems += type_problems(key, default, value, types)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def select(config: "DictConfig", key: str) -> Any:
    """Return a value by its dotted key, unresolved, as plain data; `ABSENT` if there is none."""
    from omegaconf import OmegaConf

    found = OmegaConf.select(config, key, default=ABSENT, throw_on_resolution_failure=False)
    return to_plain(found, resolve=False)


def compose_defaults(loader: "ConfigLoaderImpl", config_name: str, overrides: Iterable[str]) -> "DictConfig":
    """Compose the config with the typed group choices (`model=resnet18`, `hydra.*`), without the typed values."""
    choices = [text for text in overrides if text.startswith("hydra.") or chosen_group(loader, text)]
    return compose(loader, config_name, choices)


def compose(loader: "ConfigLoaderImpl", config_name: str, overrides: list[str]) -> "DictConfig":
    """Compose a config as Hydra does for one run; its node `hydra` is part of it."""
    from hydra.types import RunMode

    return loader.load_configuration(config_name, overrides, run_mode=RunMode.RUN, validate_sweep_overrides=False)


def chosen_group(loader: "ConfigLoaderImpl", argument: str) -> str:
    """Return the group that `argument` chooses an option of; empty if it sets a value (`optimizer={lr: 1}` too)."""
    key, _, value = argument.partition("=")
    group = key.lstrip("+~").partition("@")[0]
    return group if not value.startswith("{") and loader.get_group_options(group) else ""


def accepted_types(key: str) -> tuple[type, ...] | None:
    """Return the types that ACCEPTED_TYPES lists for a key; None if it does not list the key."""
    for types, patterns in ACCEPTED_TYPES.items():
        if any(key.count(".") == pattern.count(".") and fnmatchcase(key, pattern) for pattern in patterns):
            return types
    return None


def argument_types(config: "DictConfig", key: str) -> tuple[type, ...]:
    """Return the types of an argument that no YAML has, from the source of its target; empty if they are unknown."""
    from omegaconf import OmegaConf

    node, _, name = key.rpartition(".")
    signature = read_signature(str(OmegaConf.select(config, f"{node}._target_"))) if node else None
    return signature.types.get(name, ()) if signature else ()


def check_group_choices(arguments: Iterable[str]) -> None:
    """Refuse to leave out a group that every run needs, such as `data=[]`; Hydra would fail in several ways.

    A number in a list of options, such as `loss=[1]`, is refused as well: Hydra takes names only.

    Raises:
        ConfigError: naming the options of the group.
    """
    for argument in arguments:
        group, _, value = argument.partition("=")
        if re.fullmatch(r"\[(.*,)?\s*[-+.\d]+\s*(,.*)?\]", value) and group and (CONFIG_DIR / group).is_dir():
            raise ConfigError(
                f"{argument}: expected names of {group}, such as {group}={_options(group)[0]}, got numbers."
            )
        optional = ("callbacks", "logger", "metrics", "experiment", "sweep")
        is_needed = group not in optional and (CONFIG_DIR / group).is_dir()
        if group and is_needed and value.replace(" ", "") in ("[]", "[null]"):
            raise ConfigError(f"{argument}: a run needs this group; choose one of {', '.join(_options(group))}.")


def _options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONFIG_DIR / group).glob("*.yaml"))


def check_complete(config: "DictConfig") -> None:
    """Raise if a mandatory value (`???`) is missing or an interpolation cannot be resolved.

    Raises:
        ConfigError: one line for each missing value, or one for the first interpolation that fails.
    """
    for group in ("experiment", "debug"):
        if group in config:
            raise ConfigError(f"{group}: {NOT_GLOBAL}")
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if not missing:
            to_plain(config)
    except OmegaConfBaseException as error:
        raise ConfigError(explain_value(error)) from error
    if missing:
        raise ConfigError("\n".join(f"{key} has no value; type {key}=VALUE." for key in missing))


def explain_value(error: Any) -> str:
    """Return one line for an exception of OmegaConf: the key, if there is one, and the first line of its text."""
    reason = str(error).partition("\n")[0]
    return f"{error.full_key}: {reason}" if error.full_key else reason


def type_problems(key: str, default: Any, value: Any, allowed: tuple[type, ...]) -> Iterator[str]:
    """Yield one line for a value, or for each item of a list, whose type is not `allowed`; () allows any."""
    if allowed in ((), (NoneType,)):
        return  # the default is null and the key is not listed: any type is accepted
    if type(value) not in allowed and not (type(value) is int and float in allowed):
        expected = " or ".join(_TYPE_NAMES[kind] for kind in allowed)
        expected += f" (default: {typed_value(default)})" if default is not ABSENT else ""
        got = typed_value(value) if isinstance(value, bool) else _TYPE_NAMES[type(value)]
        yield f"{key}={typed_value(value)}: expected {expected}, got {got}."
    elif isinstance(value, list) and isinstance(default, list) and default:
        for index, item in enumerate(value):
            item_default = default[min(index, len(default) - 1)]
            yield from type_problems(f"{key}[{index}]", item_default, item, (type(item_default),))
