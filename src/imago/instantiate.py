"""Build objects from configs, and check which classes a config may name.

A config can come from another person, in a shared experiment or in a checkpoint. Every `_target_` is therefore compared
with a list: first as text, before anything is imported, then by Hydra as the imported object, because a dotted name can
lead into another package (`imago.paths.os.system`).
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imago.errors import ConfigError

_LIGHTNING_CALLBACKS = (
    "ModelCheckpoint",
    "EarlyStopping",
    "LearningRateMonitor",
    "LearningRateFinder",
    "EMAWeightAveraging",
    "RichProgressBar",
    "TQDMProgressBar",
)
_LIGHTNING_LOGGERS = ("TensorBoardLogger", "CSVLogger", "WandbLogger", "MLFlowLogger")

# No wildcard for Lightning: it contains `LightningModule.load_from_checkpoint`, which unpickles.
ALLOWED_TARGETS: tuple[str, ...] = (
    "imago.*",
    "lightning.pytorch.Trainer",
    *(f"lightning.pytorch.callbacks.{name}" for name in _LIGHTNING_CALLBACKS),
    *(f"lightning.pytorch.loggers.{name}" for name in _LIGHTNING_LOGGERS),
    "torch.optim.*",
)

# Hydra's own keys of a config node, which are not passed to the target.
_CONTROL_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_", "_isolate_"}
_HOW_TO_ADD_A_PACKAGE = "For a package of your own add it, e.g. extra_targets: [mynet.*]."


def check_targets(config: Mapping[Any, Any], extra: Sequence[str] = (), where: str = "") -> None:
    """Refuse a config that names code outside the list, without importing any of it.

    Args:
        config: plain container or DictConfig, of any depth.
        extra: further patterns, as in the setting `extra_targets`: `mynet.*` or an exact name.
        where: key path of `config` itself, for the message.

    Raises:
        ConfigError: one line for each `_target_` that is refused.
    """
    patterns = (*ALLOWED_TARGETS, *_checked_patterns(extra))
    exact = [name for name in ALLOWED_TARGETS if not name.endswith(".*")]
    problems: dict[str, str] = {}
    # `task.net: ${model}` repeats a target under a second key. Report the shorter one, which is the one typed.
    for path, target in sorted(_targets(to_plain(config), where), key=lambda item: item[0].count(".")):
        if not isinstance(target, str):
            problems.setdefault(repr(target), f"{path}={target!r}: a _target_ is the dotted name of a class.")
        elif not _is_listed(target, patterns):
            close = difflib.get_close_matches(target, exact, n=1, cutoff=0.85)  # only typos; our own choice
            hint = f" Did you mean {close[0]}?" if close else ""
            problems.setdefault(
                target,
                f"{path}={target} is not allowed: a _target_ names a class of imago, a torch.optim class or one of "
                f"the Lightning classes in src/imago/instantiate.py.{hint} {_HOW_TO_ADD_A_PACKAGE}",
            )
    if problems:
        raise ConfigError("\n".join(problems.values()))


def build(config: Mapping[Any, Any], /, *args: Any, extra_targets: Sequence[str] = (), **kwargs: Any) -> Any:
    """Check the target and the keys of `config`, then build the object that its `_target_` names.

    Args:
        config: a node with `_target_`, as DictConfig or plain dict.
        *args: positional arguments for the target.
        extra_targets: further allowed patterns. Take them from the command line, never from a checkpoint.
        **kwargs: keyword arguments for the target; they override the keys in `config`.

    Raises:
        ConfigError: the target is refused or does not exist, or the keys do not match its signature. An exception
            that the target itself raises is passed on unchanged, with its own traceback.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    path = getattr(config, "_get_full_key", lambda _: "")(None)  # as typed on the command line; empty for a plain dict
    check_targets(config, extra_targets, path)
    target = str(config.get("_target_"))
    try:
        imported = _import_target(target)
    except ConfigError as error:
        raise ConfigError(f"{path}._target_={target}: {error}".lstrip(".")) from None
    # Only classes: a config from a checkpoint must not call one of our functions, for example on files.
    if _is_listed(target, ALLOWED_TARGETS) and not inspect.isclass(imported):
        raise ConfigError(f"_target_={target} is not a class; a _target_ names a class, whose instance is built.")
    keys = [key for key in dict.fromkeys([*config, *kwargs]) if key not in _CONTROL_KEYS]
    problem = _signature_problem(imported, args or config.get("_args_", ()), keys, bool(config.get("_partial_")))
    if problem:
        raise ConfigError(f"{path}: {target} {problem}" if path else f"{target} {problem}")
    try:
        # Hydra joins this whitelist with that of @hydra.main, and refuses a key `_execution_whitelist_` in a config.
        # Not recursive: our own classes build their networks, losses and transforms by this function.
        whitelist = [*ALLOWED_TARGETS, *_checked_patterns(extra_targets)]
        return instantiate(config, *args, _execution_whitelist_=whitelist, _recursive_=False, **kwargs)
    except InstantiationException as error:
        reason, _, _ = " ".join(str(error).split()).partition(" Pass _execution_whitelist_")
        raise ConfigError(f"{reason.rstrip('.')}. {_HOW_TO_ADD_A_PACKAGE}") from error


def import_target_or_none(target: str) -> Any:
    """Return the object that an allowed target names; None if it cannot be imported, which `build` reports."""
    try:
        return _import_target(target)
    except Exception:
        return None


def to_plain(config: Any, resolve: bool = True) -> Any:
    """Convert a DictConfig or ListConfig to a plain container; return any other value unchanged.

    Args:
        config: returned unchanged unless it is a DictConfig or ListConfig.
        resolve: replace interpolations (`${x}`) by their values.
    """
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=resolve) if OmegaConf.is_config(config) else config


def _checked_patterns(extra: Sequence[str]) -> list[str]:
    patterns = [extra] if isinstance(extra, str) else list(extra)
    for pattern in patterns:
        if not isinstance(pattern, str) or not all(map(str.isidentifier, pattern.removesuffix(".*").split("."))):
            raise ConfigError(
                f"extra_targets={patterns}: {pattern!r} is neither a package such as mynet.* nor an exact name such as "
                f"mynet.nets.Tiny; type extra_targets=[mynet.*]."
            )
    return patterns


def _is_listed(target: str, patterns: Sequence[str]) -> bool:
    return any(target.startswith(p.removesuffix("*")) if p.endswith(".*") else target == p for p in patterns)


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the key path and the value of each `_target_` in a container."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            below = f"{path}.{key}".lstrip(".")
            if key == "_target_":
                yield below, value
            else:
                yield from _targets(value, below)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _targets(value, f"{path}[{index}]")


def _import_target(target: str) -> Any:
    """Import the object that a dotted name refers to.

    Raises:
        ConfigError: if a part of the name does not exist. An error inside an imported module is passed on.
    """
    parent: Any = None
    parent_name = ""
    for attribute in target.split("."):
        name = f"{parent_name}.{attribute}" if parent_name else attribute
        if parent_name and hasattr(parent, attribute):
            parent = getattr(parent, attribute)
        else:
            try:
                parent = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if not f"{name}.".startswith(f"{error.name}."):
                    raise  # the module exists, but one of its own imports is missing
                raise ConfigError(_explain_missing(parent, parent_name, target)) from None
        parent_name = name
    return parent


def _explain_missing(parent: Any, parent_name: str, target: str) -> str:
    if not parent_name:
        return f"there is no package {target.split('.')[0]!r} here; is it installed in this environment?"
    unknown_part, dot, rest = target.removeprefix(f"{parent_name}.").partition(".")
    names = [name for name in dir(parent) if not name.startswith("_")]
    names += [module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", ()))]
    close = difflib.get_close_matches(unknown_part, names, n=1)
    hint = f"; did you mean {parent_name}.{close[0]}{dot}{rest}?" if close else "."
    return f"there is no {unknown_part!r} in {parent_name}{hint}"


def _signature_problem(target: Any, args: Sequence[Any], keys: Sequence[str], partial: bool) -> str:
    """Return why a target cannot be called with these keys; empty if it can be or has no signature."""
    try:
        signature = inspect.signature(target, follow_wrapped=False)
    except (TypeError, ValueError):  # not callable, or written in C without a signature
        return ""
    bind = signature.bind_partial if partial else signature.bind
    try:
        bind(*args, **dict.fromkeys(keys))
    except TypeError as error:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names = [name for name, parameter in signature.parameters.items() if parameter.kind in kinds]
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values())
        unknown = [] if takes_any else [key for key in keys if key not in names]
        if not unknown:
            return f"cannot be called with these keys: {error}."
        close = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(names)}."
        return f"takes no {', '.join(repr(key) for key in unknown)}; {hint}"
    return ""
