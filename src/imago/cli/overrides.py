"""What the user typed: quoted before Hydra reads it, checked against the YAML after, and explained if it fails."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from imago.errors import ConfigError
from imago.paths import quote_for_hydra

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import DictConfig

# Values of these keys are names in a file system. They are passed as they are typed, so one of them cannot be swept
# over with commas: `-m data.root=a,b` is the one folder "a,b".
PATH_KEYS = {
    *("data.root", "data.split_file", "data.list_file", "model.weights"),
    *("task.teacher", "task.teacher.weights", "paths.data_dir", "paths.log_dir"),
    *("input", "run", "runs", "a", "b", "artifact", "resume", "ckpt", "run_name", "output", "csv"),
}

NULL = type(None)
_UNKNOWN = object()

# The one list of keys whose default does not tell all that may be typed: null, or a second type. A star stands for
# anything in one part of a key. An int is always accepted for a float.
LOOSE_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(PATH_KEYS - {"paths.data_dir", "paths.log_dir"}, (str, NULL)),
    **dict.fromkeys(("opset", "limit", "batch_size", "data.num_workers"), (int, NULL)),
    **dict.fromkeys(("data.fold", "data.decoded_px", "data.size"), (int, NULL)),
    **dict.fromkeys(("preprocess.size", "preprocess.resize", "trainer.check_val_every_n_epoch"), (int, NULL)),
    **dict.fromkeys(("paths.run_dir", "preprocess.crop", "preprocess.interpolation", "model.freeze"), (str, NULL)),
    **dict.fromkeys(("augment.policy", "trainer.gradient_clip_algorithm", "trainer.profiler", "tune"), (str, NULL)),
    **dict.fromkeys(("preprocess.mean", "preprocess.std", "augment.random_resized_crop_scale"), (list, NULL)),
    **dict.fromkeys(("callbacks.*", "logger.*"), (dict, NULL)),
    "loss.weight": (str, list, NULL),
    **dict.fromkeys(("optimizer.fused", "trainer.benchmark"), (bool, NULL)),
    **dict.fromkeys(("schedule.*_epochs",), (float, NULL)),
    **dict.fromkeys(("schedule.*_steps",), (int, NULL)),
    "trainer.devices": (int, str, list),
    "trainer.precision": (str, int),
    "trainer.max_time": (str, dict, NULL),
    "trainer.deterministic": (bool, str),
    "trainer.gradient_clip_val": (float, NULL),
    "trainer.val_check_interval": (int, float, NULL),
    "trainer.limit_*_batches": (int, float, NULL),
}

_TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list",
               dict: "a group of settings", NULL: "null"}  # fmt: skip
_WHOLLY_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)


def quote_paths(argv: Sequence[str]) -> list[str]:
    """Quote the values of path-like keys for Hydra's grammar; everything else stays as it is.

    Quoting twice changes nothing, which the ranks of a DDP run rely on: they start from the quoted command line.

    Raises:
        ConfigError: a value holds `${`, which OmegaConf would take for a reference even inside quotes.
    """
    return [_quote_argument(argument) for argument in argv]


def _quote_argument(argument: str) -> str:
    typed_key, equals, value = argument.partition("=")
    key = typed_key.lstrip("+")
    if not equals:
        return argument
    if key == "hydra.run.dir" and _is_badlyquoted(value):  # Lightning adds plain quotes for its ranks, escaping nothing
        return f"{typed_key}={quote_for_hydra(value[1:-1])}"
    if key not in PATH_KEYS or value in ("", "null"):
        return argument
    if "${" in value:
        raise ConfigError(
            f"{argument}: a path cannot hold '${{', which starts a reference; rename it or type it in full."
        )
    return argument if _WHOLLY_QUOTED.fullmatch(value) else f"{typed_key}={quote_for_hydra(os.path.expanduser(value))}"


def _is_badlyquoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] == '"' and not _WHOLLY_QUOTED.fullmatch(value)


def check_types(config: "DictConfig", defaults: "DictConfig", overrides: Sequence[str]) -> None:
    """Hold what was typed against the type of the YAML's default; Hydra itself composes `optimizer.lr=abc` happily.

    Args:
        config: composed with all overrides.
        defaults: the same without the overrides of single values, as `compose_defaults` gives it.
        overrides: as in `hydra.overrides.task`.

    Raises:
        ConfigError: one line for each setting of another type.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    problems: list[str] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_delete():
            continue
        for key in _typed_keys(override.key_or_group.replace("/", "."), override.value()):
            default, value = (
                OmegaConf.select(tree, key, throw_on_resolution_failure=False) for tree in (defaults, config)
            )
            known = OmegaConf.select(defaults, key, default=_UNKNOWN, throw_on_resolution_failure=False) is not _UNKNOWN
            problems += _type_problems(key, default, value) if known else ()
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def _typed_keys(key: str, value: Any) -> Iterator[str]:
    """`key`, or with `optimizer={lr: 1}` each key inside."""
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _typed_keys(f"{key}.{name}", below)
    else:
        yield key


def compose_defaults(loader: "ConfigLoaderImpl", config_name: str, overrides: Iterable[str]) -> "DictConfig":
    """The config with the typed choices of groups (`model=resnet18`, `hydra.*`) and without the typed values."""
    from hydra.types import RunMode

    choices = [text for text in overrides if text.startswith("hydra.") or _group_of(loader, text)]
    return loader.load_configuration(config_name, choices, run_mode=RunMode.RUN, validate_sweep_overrides=False)


def _group_of(loader: "ConfigLoaderImpl", argument: str) -> str:
    """The group that `argument` chooses an option of; empty if it is not such a choice."""
    key, _, value = argument.partition("=")
    group = key.lstrip("+~").partition("@")[0]
    return group if not value.startswith("{") and loader.get_group_options(group) else ""  # {lr: 1} is a value


def _type_problems(key: str, default: Any, value: Any) -> Iterator[str]:
    default, value = _as_plain(default), _as_plain(value)
    allowed = next((types for pattern, types in LOOSE_TYPES.items() if _key_matches(key, pattern)), None)
    if allowed is None:
        if default is None:  # not in the list: nothing is known of it
            return
        allowed = (type(default),)
    if type(value) not in allowed and not (type(value) is int and float in allowed):
        wants = " or ".join(_TYPE_WORDS.get(kind, kind.__name__) for kind in allowed)
        yield f"{key}={_as_typed(value)}: wants {wants} (the default is {_as_typed(default)}), got {_kind_of(value)}."
    elif isinstance(value, list) and isinstance(default, list) and default:
        for index, item in enumerate(value):
            yield from _type_problems(f"{key}[{index}]", default[min(index, len(default) - 1)], item)


def _key_matches(key: str, pattern: str) -> bool:
    return key.count(".") == pattern.count(".") and fnmatchcase(key, pattern)


def _as_plain(value: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _as_typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _kind_of(value: Any) -> str:
    return _as_typed(value) if value is None or isinstance(value, bool) else _TYPE_WORDS.get(type(value), "an object")


def check_complete(config: "DictConfig") -> None:
    """Refuse a config with a mandatory value (`???`) left open or a reference that leads nowhere.

    Raises:
        ConfigError: one line for each open value, or one for the first broken reference.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if not missing:
            OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain_value(error)) from error
    if missing:
        raise ConfigError("\n".join(f"{key}: has no value yet; type it as {key}=VALUE." for key in missing))


def explain_composition_error(
    error: BaseException, argv: Sequence[str], loader: "ConfigLoaderImpl", config_name: str
) -> str:
    """One line for an error of Hydra or OmegaConf: what was typed, what is wrong with it, what comes nearest.

    Never the advice to add a key with `+`, which Hydra gives: in a typo it would only hide the mistake.
    """
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    text = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return _explain_unparsable(error.override, loader)
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group and (options := error.options or loader.get_group_options(group)):  # none for callbacks=[a,b]
            return _explain_option(group, option, options)
    if "Config group override must be a string" in text:
        return _explain_no_option(argv, loader) or text
    if found := re.search(r"You must specify '([^']+)'", text):
        return f"{found[1]}: choose one of {_listed('', loader.get_group_options(found[1]))}."
    if found := re.search(r"(?:Could not override|Could not delete from config\.) '([^']+)'", text):
        return _explain_key(found[1], argv, loader, config_name)
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'(?: 1\.| requires)", text):
        key, _, value = found[1].partition("=")
        return f"{found[1]}: several values are a sweep, which needs -m before them; one list is typed {key}=[{value}]."
    if found := re.search(r"An item is already at '([^']+)'", text):
        return f"{_typed(found[1], argv)}: the setting exists; type it without the +."
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    return _explain_value(cause) if isinstance(cause, OmegaConfBaseException) else text


def _typed(key: str, argv: Iterable[str]) -> str:
    return next((text for text in argv if text.lstrip("+~").partition("=")[0] == key), key)


def _listed(word: str, options: Iterable[str]) -> str:
    """All options, nearest to `word` first."""
    return ", ".join(sorted(options, key=lambda option: -_likeness(word, option)))


def _likeness(word: str, other: str) -> float:
    return difflib.SequenceMatcher(None, word, other).ratio()


def _explain_option(group: str, option: str, options: Iterable[str]) -> str:
    more = f"; of others type model=torchvision model.name={option}" if group == "model" and "timm" in options else ""
    return f"{group}={option}: there is no such option; {group} can be {_listed(option, options)}{more}."


def _explain_no_option(argv: Iterable[str], loader: "ConfigLoaderImpl") -> str:
    """For `model=null`, which Hydra reports without its name."""
    for text in argv:
        group, option = _group_of(loader, text), text.partition("=")[2]
        if group and option not in loader.get_group_options(group):
            return _explain_option(group, option, loader.get_group_options(group))
    return ""


def _explain_unparsable(override: str, loader: "ConfigLoaderImpl") -> str:
    key, equals, value = override.partition("=")
    if equals:
        return f"{override}: cannot be read; special characters need two pairs of quotes: '{key}=\"{value}\"'."
    groups = [group for group in loader.list_groups("") if override in loader.get_group_options(group)]
    return f"{override}: settings are typed key=value" + (f"; did you mean {groups[0]}={override}?" if groups else ".")


def _explain_key(key: str, argv: Sequence[str], loader: "ConfigLoaderImpl", config_name: str) -> str:
    if loader.get_group_options(key):
        return f"{_typed(key, argv)}: this command leaves no choice of {key!r}."
    tail = key.rpartition(".")[2]
    scores = {
        known: max(_likeness(key, known), 0.9 * _likeness(tail, known.rpartition(".")[2]) + 0.1 * _likeness(key, known))
        for known in _known_keys(argv, loader, config_name)
    }
    best = max(scores, key=lambda known: scores[known], default="")
    hint = f"did you mean {best}?" if best and scores[best] > 0.7 else "--cfg job prints all of them."
    return f"{_typed(key, argv)}: there is no setting {key!r}; {hint}"


def _known_keys(argv: Iterable[str], loader: "ConfigLoaderImpl", config_name: str) -> list[str]:
    from omegaconf import OmegaConf

    for choices in (argv, ()):  # a second mistake among the choices must not hide the answer to the first
        try:
            config = compose_defaults(loader, config_name, choices)
        except Exception:
            continue
        return list(_flat(OmegaConf.to_container(config), ""))
    return []


def _flat(node: Any, path: str) -> Iterator[str]:
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if (path, key) != ("", "hydra"):
            yield f"{path}{key}"
            yield from _flat(value, f"{path}{key}.")


def _explain_value(error: Any) -> str:
    reason = str(error).partition("\n")[0]
    return f"{error.full_key}: {reason}" if error.full_key else reason
