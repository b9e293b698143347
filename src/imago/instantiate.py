"""Build objects from configs: a node with `_target_`, the dotted name of a class or function, and its arguments.

A target that is typed or written in `configs/` is the user's own code and may name anything. Targets that come
from a checkpoint or a run directory are checked by `imago.trust` before anything is built.
"""

import difflib
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from imago.errors import ConfigError

# Keys of a config node that are not passed to the target; Hydra's names. Arguments are always plain containers.
CONTROL_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")


def build(config: Mapping[Any, Any], /, *args: Any, base: type | None = None, **kwargs: Any) -> Any:
    """Build the object that the `_target_` of `config` names, and the objects nested in its arguments.

    `_partial_: true` returns a `functools.partial`; with `_recursive_: false` nested nodes are passed on as dicts.

    Args:
        config: a node with `_target_`, as DictConfig or plain dict.
        *args: positional arguments for the target.
        base: class that the object must be an instance of; checked before a class is called.
        **kwargs: keyword arguments for the target, or `_recursive_`; they override the keys in `config`.

    Raises:
        ConfigError: the target does not exist or is not a `base`, or the keys do not match its signature. An exception
            that the target itself raises is passed on unchanged.
    """
    path = getattr(config, "_get_full_key", lambda _: "")(None)  # as typed on the command line; empty for a plain dict
    node = to_plain(config) | {key: kwargs.pop(key) for key in CONTROL_KEYS if key in kwargs}
    return _build(node, path, args, kwargs, base)


def _build(
    node: Mapping[str, Any],
    path: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] = MappingProxyType({}),
    base: type | None = None,
) -> Any:
    name, is_partial = node.get("_target_"), bool(node.get("_partial_"))
    where = f"{path}._target_={name}".lstrip(".")
    try:
        target = import_target(name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not callable(target):
        raise ConfigError(f"{where} is a {type(target).__name__}; a _target_ names a class or a function.")
    if base and inspect.isclass(target) and not issubclass(target, base):
        raise ConfigError(
            f"{where} is not a {base.__name__}; name a class derived from {full_name(base)}.{_twin(target)}"
        )
    nested = _build_nested if node.get("_recursive_", True) else lambda value, _: value
    arguments = {key: nested(value, f"{path}.{key}") for key, value in node.items() if key not in CONTROL_KEYS}
    arguments |= kwargs
    args = args or [nested(value, f"{path}._args_") for value in node.get("_args_", ())]
    if problem := _signature_problem(target, args, list(arguments), is_partial):
        if base and not inspect.isclass(target):
            problem += f" It is a function, whose result must be a {base.__name__}; a class may be meant."
        raise ConfigError(f"{path}: {name} {problem}" if path else f"{name} {problem}")
    if is_partial:
        return partial(target, *args, **arguments)
    built = _call(target, args, arguments, where)
    if base and not isinstance(built, base):
        raise ConfigError(f"{where} returns a {type(built).__name__}, not a {base.__name__}.")
    return built


def import_target(name: Any) -> Any:
    """Import the object that a dotted name refers to.

    Raises:
        ConfigError: if it is not text, or a part of it does not exist. An error inside an imported module is passed on.
    """
    if not isinstance(name, str):
        raise ConfigError("a _target_ is the dotted name of a class or function.")
    parent: Any = None
    parent_name = ""
    for attribute in name.split("."):
        full = f"{parent_name}.{attribute}" if parent_name else attribute
        if parent_name and hasattr(parent, attribute):
            parent = getattr(parent, attribute)
        else:
            try:
                parent = importlib.import_module(full)
            except (ModuleNotFoundError, ValueError) as error:
                if not f"{full}.".startswith(f"{getattr(error, 'name', full)}."):
                    raise  # the module exists, but one of its own imports is missing
                raise ConfigError(_explain_missing(parent, parent_name, name)) from None
        parent_name = full
    return parent


def import_target_or_none(name: Any) -> Any:
    """Return the object that a target names; None if it cannot be imported, which `build` reports."""
    try:
        return import_target(name)
    except Exception:
        return None


def accepts(target: Any, name: str) -> bool:
    """Return whether a class or function takes an argument of this name, other than through `**kwargs`."""
    return name in _parameters(target)


def accepts_any(target: Any) -> bool:
    """Return whether a class or function takes `**kwargs`."""
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in _parameters(target).values())


def targets(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the key path and the value of each `_target_` in nested containers."""
    return ((where, settings["_target_"]) for where, settings in target_nodes(node, path))


def target_nodes(node: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the key path of each mapping with `_target_` in nested containers, and the mapping."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from target_nodes(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from target_nodes(value, f"{path}[{index}]")


def to_plain(config: Any, resolve: bool = True) -> Any:
    """Convert a DictConfig or ListConfig to a plain container; return any other value unchanged.

    `resolve` replaces interpolations (`${x}`) by their values.
    """
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=resolve) if OmegaConf.is_config(config) else config


def full_name(target: Any) -> str:
    """Return the dotted name of a class or function."""
    return f"{target.__module__}.{target.__qualname__}"


def _build_nested(value: Any, path: str) -> Any:
    """Build every node with `_target_` in a container; return other values unchanged."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _build(value, path)
        return {key: _build_nested(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_build_nested(item, f"{path}[{index}]") for index, item in enumerate(value)]
    return value


def _call(target: Any, args: Sequence[Any], arguments: Mapping[str, Any], where: str) -> Any:
    """Call a target; raise a ConfigError for an argument that it passes on through `**kwargs` and that is refused."""
    try:
        return target(*args, **arguments)
    except TypeError as error:
        match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if match and match[1] in arguments and not accepts(target, match[1]):
            raise ConfigError(f"{where} takes no {match[1]!r} ({error}); remove it.") from error
        raise
    except ModuleNotFoundError as error:  # of an optional package of a library
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error


def _twin(target: type) -> str:
    """Return a hint if a class is derived from those of the package pytorch_lightning, which are not lightning's."""
    is_other = any(parent.__module__.startswith("pytorch_lightning.") for parent in target.__mro__)
    return " It uses the package pytorch_lightning: import lightning.pytorch instead." if is_other else ""


def _explain_missing(parent: Any, parent_name: str, name: str) -> str:
    if not parent_name:
        return f"there is no package {name.split('.')[0]!r} here; is it installed in this environment?"
    unknown_part, dot, rest = name.removeprefix(f"{parent_name}.").partition(".")
    names = [attribute for attribute in dir(parent) if not attribute.startswith("_")]
    names += [module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", ()))]
    package = parent_name.rpartition(".")[0]
    if hasattr(sys.modules.get(package), unknown_part):  # another module of the package defines it
        return f"there is no {unknown_part!r} in {parent_name}; did you mean {package}.{unknown_part}{dot}{rest}?"
    close = difflib.get_close_matches(unknown_part, names, n=1)
    hint = f"; did you mean {parent_name}.{close[0]}{dot}{rest}?" if close else "."
    return f"there is no {unknown_part!r} in {parent_name}{hint}"


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):  # not callable, or written in C without a signature
        return {}


def _signature_problem(target: Any, args: Sequence[Any], keys: Sequence[str], is_partial: bool) -> str:
    """Return why a target cannot be called with these keys; empty if it can be or has no signature."""
    try:
        signature = inspect.signature(target, follow_wrapped=False)
    except (TypeError, ValueError):
        return ""
    bind = signature.bind_partial if is_partial else signature.bind
    try:
        bind(*args, **dict.fromkeys(keys))
    except TypeError as error:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names = [name for name, parameter in signature.parameters.items() if parameter.kind in kinds]
        unknown = [] if accepts_any(target) else [key for key in keys if key not in names]
        if not unknown:
            return f"cannot be called with these keys: {error}."
        close = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(names)}."
        return f"takes no {', '.join(repr(key) for key in unknown)}; {hint}"
    return ""
