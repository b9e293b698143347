"""Read the arguments of a class or function from its source, without importing it: torch takes over a second."""

import ast
import difflib
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from types import NoneType
from typing import NamedTuple

from imago.errors import ConfigError

_SIMPLE_TYPES = {"int": int, "float": float, "bool": bool, "str": str, "None": NoneType}
_DYNAMIC = ("globals()", "__getattr__", "sys.modules", "exec(")  # a module with these may define any name
_NO_BASE = ("object", "ABC", "Generic", "Protocol")  # have no arguments of their own
_MAX_DEPTH = 4  # of functions that pass `**kwargs` on to each other; our own choice
_Function = (ast.FunctionDef, ast.AsyncFunctionDef)
_AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


class Signature(NamedTuple):
    """Arguments of a class or function.

    Args:
        types: those that each argument accepts, by name; empty if they are not int, float, bool, str or None.
        is_open: whether further arguments are accepted through `**kwargs`.
    """

    types: dict[str, tuple[type, ...]]
    is_open: bool


_OF_OBJECT = Signature({}, is_open=False)


class _Module:
    """A module or package that is read and not executed; `file` is None without source."""

    def __init__(self, name: str, file: Path | None, directories: Sequence[Path] = ()) -> None:
        self.name = name
        self.text = file.read_text(encoding="utf-8", errors="replace") if file else ""
        self.directories = directories
        self.is_package = bool(directories)
        # Without source and submodules it is written in C.
        self.is_dynamic = any(word in self.text for word in _DYNAMIC) if file else not directories

    @cached_property
    def names(self) -> dict[str, ast.stmt | tuple[str, str] | ast.expr]:
        """What each name is: a definition, (module, name in it) of an import, or the value of an assignment.

        The modules of star imports are listed under "*1", "*2", ...
        """
        found: dict[str, ast.stmt | tuple[str, str] | ast.expr] = {}
        blocks: list[ast.AST] = [ast.parse(self.text)]
        for block in blocks:
            nodes = list(ast.iter_child_nodes(block))
            defined = dict(pair for node in nodes for pair in self._defined(node))
            found = found | defined if block is blocks[0] else defined | found  # below `if`, the first one counts
            blocks += [node for node in nodes if isinstance(node, (ast.If, ast.Try, ast.With, ast.ExceptHandler))]
        return found

    def _defined(self, node: ast.AST) -> Iterator[tuple[str, ast.stmt | tuple[str, str] | ast.expr]]:
        if isinstance(node, (ast.ClassDef, *_Function)):
            yield node.name, node
        elif isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name.split(".")[0], (alias.name, "")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = self.name.split(".")
            above = parts[: len(parts) - node.level + self.is_package] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                star = f"*{node.lineno}" if alias.name == "*" else ""
                yield alias.asname or star or alias.name, (source, alias.name)
        elif isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))


class _Definition(NamedTuple):
    module: _Module
    node: ast.stmt


_UNKNOWN = object()  # exists, or may exist, but cannot be read


@cache
def read_signature(target: str) -> Signature | None:
    """Return the arguments of a dotted name; None if its source cannot be read, as of a C extension.

    Raises:
        ConfigError: a package, module or name that does not exist, with the nearest one.
    """
    top, *parts = target.split(".")
    found: object = _module(top)
    if found is None:
        raise ConfigError(f"there is no package {top!r} here; is it installed in this environment?")
    for index, part in enumerate(parts):
        if not isinstance(found, _Module):
            return None  # an attribute of a class
        is_last = index == len(parts) - 1
        above, found = found, (not is_last and _module(f"{found.name}.{part}")) or _find(found, part)
        if found is None:
            parent = ".".join([top, *parts[:index]])
            close = difflib.get_close_matches(part, list(_all_names(above)), n=1)
            hint = f"; did you mean {'.'.join([parent, *close, *parts[index + 1 :]])}?" if close else "."
            raise ConfigError(f"there is no {part!r} in {parent}{hint}")
    return _signature(found) if isinstance(found, _Definition) else None


def known_signature(target: object) -> Signature | None:
    """Return the arguments of a target; None if it does not exist either, which `instantiate.build` reports."""
    try:
        return read_signature(target) if isinstance(target, str) else None
    except ConfigError:
        return None


@cache
def _module(name: str) -> _Module | None:
    """Locate a module without importing its parents."""
    parent, _, last = name.rpartition(".")
    if not parent:
        try:
            spec = importlib.util.find_spec(name)
        except ValueError:  # it has no spec
            return _Module(name, None)
        if spec is None:
            return None
        file = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
        return _Module(name, file, [Path(folder) for folder in spec.submodule_search_locations or ()])
    above = _module(parent)
    directories = above.directories if above else ()
    for directory in directories:
        if (file := directory / last / "__init__.py").is_file():
            return _Module(name, file, [directory / last])
        if (file := directory / f"{last}.py").is_file():
            return _Module(name, file)
        if next(directory.glob(f"{last}.*.so"), None):
            return _Module(name, None)
    folders = [directory / last for directory in directories if (directory / last).is_dir()]
    return _Module(name, None, folders) if folders else None


def _find(module: _Module, name: str, seen: tuple[str, ...] = ()) -> object:
    """Return the _Definition or _Module that a name of a module is, _UNKNOWN, or None if there is none."""
    if module.name in seen:
        return None
    is_mentioned = name in module.text or "import *" in module.text  # a fast check: parsing takes longest
    names = module.names if is_mentioned else {}
    if name in names:
        return _follow(module, names[name], (*seen, module.name))
    for star, source in names.items():
        if star.startswith("*") and isinstance(source, tuple):
            below = _module(source[0])
            if (found := _find(below, name, (*seen, module.name)) if below else _UNKNOWN) not in (None, _UNKNOWN):
                return found
    return _module(f"{module.name}.{name}") or (_UNKNOWN if module.is_dynamic else None)


def _follow(module: _Module, value: object, seen: tuple[str, ...] = ()) -> object:
    """Return what a definition, an import or the expression of a name refers to, as in `_find`."""
    if isinstance(value, tuple):
        source = _module(value[0])
        if source is None:
            return _UNKNOWN
        return (_find(source, value[1], seen) if value[1] else _module(value[0].split(".")[0])) or _UNKNOWN
    if isinstance(value, ast.Name):
        return _find(module, value.id) or _UNKNOWN
    if isinstance(value, ast.Attribute):
        parent = _follow(module, value.value)
        return (_find(parent, value.attr) if isinstance(parent, _Module) else None) or _UNKNOWN
    return _Definition(module, value) if isinstance(value, (ast.ClassDef, *_Function)) else _UNKNOWN


def _all_names(module: _Module) -> Iterator[str]:
    for name, value in module.names.items():
        if name.startswith("*") and isinstance(value, tuple) and (source := _module(value[0])):
            yield from source.names
        yield name
    for directory in module.directories:
        yield from (path.stem for path in directory.iterdir() if path.is_dir() or path.suffix == ".py")


def _signature(definition: _Definition, depth: int = 0) -> Signature | None:
    module, node = definition
    if isinstance(node, _Function):
        return _with_passed_on(module, node, _arguments(node, 0), [], depth)
    assert isinstance(node, ast.ClassDef)
    bases = [_signature_of(module, base, depth) for base in node.bases]
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        own = {ast.unparse(f.target): _types(f.annotation, f.value) for f in fields if "ClassVar" not in ast.unparse(f)}
        return _merge([*bases, Signature(own, is_open=False)])
    methods = {method.name: method for method in node.body if isinstance(method, _Function)}
    method = methods.get("__init__") or methods.get("__new__")
    if method is None:
        return next((base for base in bases if base is not _OF_OBJECT), _OF_OBJECT)
    return _with_passed_on(module, method, _arguments(method, 1), bases, depth)


def _with_passed_on(
    module: _Module, node: _AnyFunction, own: Signature, bases: list[Signature | None], depth: int
) -> Signature:
    """Add the arguments of what a function passes its `**kwargs` on to, such as `super().__init__(**kwargs)`."""
    if node.args.kwarg is None or depth == _MAX_DEPTH:
        return own
    name = node.args.kwarg.arg
    callees = [
        call.func
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg is None and isinstance(keyword.value, ast.Name) and keyword.value.id == name
    ]
    num_uses = sum(isinstance(use, ast.Name) and use.id == name for use in ast.walk(node))
    signatures: list[Signature | None] = []
    for callee in callees:
        is_super = ast.unparse(callee) == "super().__init__"
        signatures += bases if is_super else [_signature_of(module, callee, depth + 1)]
    merged = _merge([*signatures, own._replace(is_open=False)])
    return merged._replace(is_open=merged.is_open or not signatures or num_uses > len(callees))


def _merge(signatures: Sequence[Signature | None]) -> Signature:
    types = {name: types for signature in signatures if signature for name, types in signature.types.items()}
    return Signature(types, is_open=any(signature is None or signature.is_open for signature in signatures))


def _signature_of(module: _Module, expression: ast.expr, depth: int) -> Signature | None:
    """Return the signature of a base class or of a called function or class."""
    name = expression.value if isinstance(expression, ast.Subscript) else expression
    if ast.unparse(name).rpartition(".")[2] in _NO_BASE:
        return _OF_OBJECT
    found = _follow(module, name)
    return _signature(found, depth) if isinstance(found, _Definition) else None


def _arguments(node: _AnyFunction, num_skipped: int) -> Signature:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    pairs = [*zip(positional, defaults, strict=True)][max(num_skipped, len(arguments.posonlyargs)) :]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    types = {argument.arg: _types(argument.annotation, default) for argument, default in pairs}
    return Signature(types, is_open=arguments.kwarg is not None)


def _types(annotation: ast.expr | None, default: ast.expr | None) -> tuple[type, ...]:
    """Return the types of an argument with this annotation and default; empty if they are not simple."""
    is_null = isinstance(default, ast.Constant) and default.value is None
    types = _annotated(annotation) if annotation else None
    return tuple(dict.fromkeys((*types, NoneType) if types and is_null else types or ()))


def _annotated(node: ast.expr) -> list[type] | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.BinOp):
        members = [node.left, node.right]
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value).rpartition(".")[2] in ("Union", "Optional"):
        members = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        members = [*members, *([ast.Constant(None)] if ast.unparse(node.value).endswith("Optional") else [])]
    else:
        simple = _SIMPLE_TYPES.get(ast.unparse(node))
        return [simple] if simple else None
    types = [_annotated(member) for member in members]
    return None if None in types else [kind for found in types for kind in found or ()]
