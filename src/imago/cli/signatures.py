"""Read the arguments of a class or function from its source, without importing it: importing torch takes a second."""

import ast
import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import NoneType
from typing import NamedTuple

_SIMPLE_TYPES = {"int": int, "float": float, "bool": bool, "str": str, "None": NoneType}
# Classes that keep their `**kwargs`, and the class that gets them later.
_KWARGS_OF = {"lightning.pytorch.loggers.TensorBoardLogger": "torch.utils.tensorboard.writer.SummaryWriter"}
_MAX_DEPTH = 10  # of imports and base classes that are followed; our own choice


class Signature(NamedTuple):
    """Arguments of a class or function."""

    types: dict[str, tuple[type, ...]]  # by name; empty if others than int, float, bool, str and None are accepted
    is_open: bool  # whether it accepts more, through `**kwargs` or by a base class that is not found


_Definition = tuple[str, ast.ClassDef | ast.FunctionDef]  # the module, and the class or function in it


@cache
def read_signature(target: str) -> Signature | None:
    """Return the arguments of a dotted name; None if its source is not found, as of a C extension."""
    module, _, name = target.rpartition(".")
    definition = _find(module, name)
    if definition and target in _KWARGS_OF:
        own, further = _signature(definition), read_signature(_KWARGS_OF[target]) or Signature({}, is_open=True)
        return Signature(own.types | further.types, further.is_open)
    return _signature(definition) if definition else None


def _find(module: str, name: str, depth: int = 0) -> _Definition | None:
    """Find a class or function at the top level of a module, or where the module imports it from."""
    file = _source_file(module)
    text = file.read_text(encoding="utf-8", errors="replace") if file else ""
    if depth > _MAX_DEPTH or not (name in text or "import *" in text):  # parsing is the slowest part
        return None
    package = module if file and file.name == "__init__.py" else module.rpartition(".")[0]
    for node in reversed(ast.parse(text).body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            imported = {alias.asname or alias.name: alias.name for alias in node.names}
            if "*" in imported or name in imported:
                definition = _find(source, imported.get(name, name), depth + 1)
                if definition:
                    return definition
    return None


@cache
def _source_file(module: str) -> Path | None:
    """Locate the source of a module without importing its parents."""
    top, *parts = module.split(".")
    spec = PathFinder.find_spec(top)
    if spec and not parts and str(spec.origin).endswith(".py"):
        return Path(str(spec.origin))
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(directory, *parts)
        for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if file.is_file():
                return file
    return None


def _signature(definition: _Definition, depth: int = 0) -> Signature:
    module, node = definition
    if isinstance(node, ast.FunctionDef):
        return _of_function(module, node, [], depth)
    bases = [_of_name(module, ast.unparse(base), depth) for base in node.bases]
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        return _merge([*bases, Signature({ast.unparse(f.target): _types(f.annotation) for f in fields}, is_open=False)])
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            return _of_function(module, method, bases, depth)
    return _merge(bases)


def _of_name(module: str, name: str, depth: int) -> Signature:
    definition = _find(module, name)
    return _signature(definition, depth + 1) if definition and depth < _MAX_DEPTH else Signature({}, is_open=True)


def _of_function(module: str, node: ast.FunctionDef, bases: Sequence[Signature], depth: int) -> Signature:
    """Return the arguments of a function or method, and of those that it passes its `**kwargs` on to."""
    arguments = [argument for argument in (*node.args.args, *node.args.kwonlyargs) if argument.arg != "self"]
    own = Signature({argument.arg: _types(argument.annotation) for argument in arguments}, is_open=False)
    if node.args.kwarg is None:
        return own
    kwargs = node.args.kwarg.arg
    calls = [(call.func, part) for call in ast.walk(node) if isinstance(call, ast.Call) for part in call.keywords]
    callees = [ast.unparse(callee) for callee, part in calls if part.arg is None and ast.unparse(part.value) == kwargs]
    num_uses = sum(isinstance(use, ast.Name) and use.id == kwargs for use in ast.walk(node))
    signatures = [own._replace(is_open=num_uses > len(callees))]
    for callee in callees:
        signatures += bases if callee == "super().__init__" else [_of_name(module, callee, depth)]
    return _merge(signatures)


def _merge(signatures: Sequence[Signature]) -> Signature:
    types = {name: types for signature in signatures for name, types in signature.types.items()}
    return Signature(types, is_open=any(signature.is_open for signature in signatures))


def _types(annotation: ast.expr | None) -> tuple[type, ...]:
    """Return the types of an argument with this annotation; empty if they are not simple."""
    text = ast.unparse(annotation) if annotation else ""
    words = set(re.findall(r"\w+", text.replace("Optional", "None"))) - {"typing", "Union"}
    return tuple(_SIMPLE_TYPES[word] for word in _SIMPLE_TYPES if word in words) if words <= {*_SIMPLE_TYPES} else ()
