"""Which code a config may name, and how an object is built from one.

A config can come from a stranger: an experiment that somebody shares, or a checkpoint. So a `_target_` is checked
against a list, first as text (nothing is imported for that), then by Hydra as the object it turned out to be, since a
dotted name can walk into another package (`imago.paths.os.system`). Networks, losses and transforms are built inside
our own classes.
"""

import difflib
import functools
import inspect
import logging
import pkgutil
import sys
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

# No wildcard for Lightning: `LightningModule.load_from_checkpoint` is a callable in there too, and unpickles.
ALLOWED: tuple[str, ...] = (
    "imago.*",
    "lightning.pytorch.Trainer",
    *(f"lightning.pytorch.callbacks.{name}" for name in _LIGHTNING_CALLBACKS),
    *(f"lightning.pytorch.loggers.{name}" for name in _LIGHTNING_LOGGERS),
    "torch.optim.*",
)

# Hydra's own keys of a config node: they never reach the target.
_CONTROL_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_", "_isolate_"}


def check_targets(config: Mapping[Any, Any], extra: Sequence[str] = (), where: str = "") -> None:
    """Refuse a config that names code outside the list, before any of it is imported.

    Args:
        config: plain container or DictConfig, of any depth.
        extra: further patterns, as in the setting `extra_targets`; `mynet.*` or an exact name.
        where: key path of `config` itself, for the message.

    Raises:
        ConfigError: one line for each `_target_` that is refused.
    """
    patterns = (*ALLOWED, *_checked_patterns(extra))
    problems: dict[
        str, str
    ] = {}  # by target: `task.net: ${model}` shows one target under two keys, the shorter is typed
    for path, target in sorted(_targets(to_plain(config), where), key=lambda found: found[0].count(".")):
        if not isinstance(target, str):
            problems.setdefault(repr(target), f"{path}={target!r}: a _target_ is the dotted name of a class.")
        elif not any(_matches(target, pattern) for pattern in patterns):
            problems.setdefault(target, _refusal(path, target))
    if problems:
        raise ConfigError("\n".join(problems.values()))


def build(config: Mapping[Any, Any], /, *args: Any, extra_targets: Sequence[str] = (), **kwargs: Any) -> Any:
    """Build what `config` names by its `_target_`.

    Args:
        config: a node with `_target_`, as DictConfig or plain dict.
        *args: positional arguments for the target.
        extra_targets: further patterns that may be named. Take them from what the user typed, never from a checkpoint.
        **kwargs: keyword arguments for the target; they win over the keys in `config`.

    Raises:
        ConfigError: the target is refused or does not exist, or its signature does not fit the keys. Whatever the
            target itself raises comes out unchanged, with its own traceback.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    check_targets(config, extra_targets, _full_key(config))
    try:
        # A whitelist of @hydra.main is joined with this one; a key `_execution_whitelist_` inside a config is refused.
        # Not recursive, and classes only: a config that came with a checkpoint must not call our functions on files.
        _require_class(config)
        built = instantiate(
            config, *args, _execution_whitelist_=[*ALLOWED, *extra_targets], _recursive_=False, **kwargs
        )
    except InstantiationException as error:
        refused = error
    except TypeError as error:
        problems = _signature_problems(config, args, kwargs)
        if not problems:
            raise
        raise ConfigError("\n".join(problems)) from error
    else:
        _check_deferred(built, config)
        return built
    # Raised outside the `except`: an exception from an import keeps its own chain, without Hydra's wrapping.
    raise _unwrapped(refused, config)


def find_target(target: str) -> Any:
    """Give what an allowed target names; None if there is no such thing, which `build` explains."""
    from hydra.utils import get_object

    hydra_log = logging.getLogger("hydra.utils")  # would tell it in several lines, before `build` does in one
    was_disabled, hydra_log.disabled = hydra_log.disabled, True
    try:
        return get_object(target)
    except Exception:  # whatever its import raises comes out of `instantiate` again, which sorts it
        return None
    finally:
        hydra_log.disabled = was_disabled


def _require_class(config: Mapping[Any, Any]) -> None:
    """Refuse one of our own functions; a target that does not exist is explained by whoever builds it."""
    target = str(config.get("_target_"))
    if not any(_matches(target, pattern) for pattern in ALLOWED):
        return  # of a package that the user let in by name
    found = find_target(target)
    if found is not None and not inspect.isclass(found):
        raise ConfigError(f"_target_={target} is not a class; a _target_ names a class, whose instance is built.")


def to_plain(config: Any) -> Any:
    """Return an OmegaConf node as resolved plain data; anything else unchanged."""
    if isinstance(config, dict):
        return config
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def _full_key(config: Any) -> str:
    """Key path of a node inside its whole config, as typed on the command line; empty for a plain dict."""
    return "" if isinstance(config, dict) or not hasattr(config, "_get_full_key") else str(config._get_full_key(None))


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            below = f"{path}.{key}" if path else str(key)
            if key == "_target_":
                yield below, value
            else:
                yield from _targets(value, below)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _targets(value, f"{path}[{index}]")


def _matches(target: str, pattern: str) -> bool:
    return target.startswith(pattern[:-1]) if pattern.endswith(".*") else target == pattern


def _checked_patterns(extra: Sequence[str]) -> list[str]:
    patterns = [extra] if isinstance(extra, str) else list(extra)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern.removesuffix(".*") or "*" in pattern.removesuffix(".*"):
            raise ConfigError(
                f"extra_targets={patterns}: {pattern!r} is neither a package such as mynet.* nor an exact name such as "
                f"mynet.nets.Tiny; type extra_targets=[mynet.*]."
            )
    return patterns


def _refusal(path: str, target: str) -> str:
    exact = [name for name in ALLOWED if not name.endswith(".*")]
    close = difflib.get_close_matches(target, exact, n=1, cutoff=0.85)
    hint = f" Did you mean {close[0]}?" if close else ""
    return (
        f"{path}={target} is not allowed: a _target_ names a class of imago, a torch.optim class or one of the "
        f"Lightning classes in src/imago/instantiate.py.{hint} "
        "For a package of your own add it, e.g. extra_targets: [mynet.*]."
    )


def _signature_problems(config: Mapping[Any, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Lines on the nodes whose keys cannot be passed to their targets; empty if the TypeError came from inside one."""
    root = to_plain(config)
    problems = []
    for path, node in _nodes(root, _full_key(config)):
        keys = {key: value for key, value in node.items() if key not in _CONTROL_KEYS}
        positional = tuple(node.get("_args_", ()))
        if node is root:
            keys, positional = {**keys, **kwargs}, args or positional
        problem = _call_problem(node["_target_"], positional, keys, bool(node.get("_partial_")))
        if problem:
            problems.append(f"{path}: {problem}" if path else problem)
    return problems


def _nodes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node that Hydra would call, outermost first; it does not look below `_recursive_: false`."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        if node.get("_recursive_", True):
            for key, value in node.items():
                yield from _nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _nodes(value, f"{path}[{index}]")


def _call_problem(target: str, args: tuple[Any, ...], keys: Mapping[str, Any], partial: bool) -> str | None:
    found, missing_part = _locate_imported(target)
    if missing_part or not callable(found):
        return None
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # written in C, without a signature: nothing can be said with certainty
        return None
    try:
        signature.bind_partial(*args, **keys) if partial else signature.bind(*args, **keys)
    except TypeError as error:
        return _explain_bind(target, signature, keys, error)
    return None


def _explain_bind(target: str, signature: inspect.Signature, keys: Mapping[str, Any], error: TypeError) -> str:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [name for name, parameter in signature.parameters.items() if parameter.kind in kinds]
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    unknown = [] if takes_any else [key for key in keys if key not in names]
    if not unknown:
        return f"{target} cannot be called with these keys: {error}."
    close = difflib.get_close_matches(unknown[0], names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(names)}."
    return f"{target} takes no {', '.join(repr(key) for key in unknown)}; {hint}"


def _check_deferred(built: Any, config: Mapping[Any, Any]) -> None:
    """A `_partial_` is called later and elsewhere, where a wrong key would look like a bug of the caller."""
    if isinstance(built, functools.partial):
        problems = _signature_problems(config, built.args, {})
        if problems:
            raise ConfigError("\n".join(problems))


def _unwrapped(error: Exception, config: Mapping[Any, Any]) -> Exception:
    """What stands behind Hydra's own exception: a name that does not exist, a refusal, or a failing import."""
    text, located = " ".join(str(error).split()), error.__cause__
    if located is None:
        reason, _, _ = text.partition(" Pass _execution_whitelist_")
        return ConfigError(f"{reason.rstrip('.')}. For a package of your own add it, e.g. extra_targets: [mynet.*].")
    target = text.split("'")[1]
    origin = located.__cause__ or located
    if isinstance(located, ValueError) or _is_missing_name(
        origin, target
    ):  # ValueError: empty parts, as in "torch..Adam"
        path = next(path for path, name in _targets(to_plain(config), _full_key(config)) if name == target)
        return ConfigError(f"{path}={target}: {_explain_missing(target)}")
    return origin if isinstance(origin, Exception) else error


def _is_missing_name(origin: BaseException, target: str) -> bool:
    if isinstance(origin, ModuleNotFoundError):
        # `import timm` failing inside imago.model is no typo in the target: there, the name is not part of the target.
        return f"{target}.".startswith(f"{origin.name}.")
    # An AttributeError from a module's own code has further frames below Hydra's getattr.
    frames = origin.__traceback__
    return isinstance(origin, AttributeError) and (frames is None or frames.tb_next is None)


def _locate_imported(target: str) -> tuple[Any, str]:
    """The object behind a dotted name, from what is imported already, and the rest of the name that was not found."""
    parts = target.split(".")
    found: Any = sys.modules.get(parts[0])
    if found is None:
        return None, target
    for index, part in enumerate(parts[1:], start=1):
        below = getattr(found, part, sys.modules.get(".".join(parts[: index + 1])))
        if below is None:
            return found, ".".join(parts[index:])
        found = below
    return found, ""


def _explain_missing(target: str) -> str:
    parent, rest = _locate_imported(target)
    if parent is None:
        package = target.split(".")[0]
        return f"there is no package {package!r} here; is it installed in this environment?"
    known = target[: -len(rest) - 1]
    wrong, _, tail = rest.partition(".")
    names = {name for name in dir(parent) if not name.startswith("_")}
    names.update(module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", [])))
    close = difflib.get_close_matches(wrong, sorted(names), n=1)
    hint = f"; did you mean {'.'.join(filter(None, (known, close[0], tail)))}?" if close else "."
    return f"there is no {wrong!r} in {known}{hint}"
