"""Read the arguments of a class or function from its source, without importing it: torch takes over a second."""

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from imago.errors import ConfigError

_SIMPLE_TYPES = {"int": int, "float": float, "bool": bool, "str": str, "None": NoneType}
_DYNAMIC = ("globals()", "__getattr__", "sys.modules", "exec(")  # a module with one of these may define any name
_NO_BASE = ("object", "ABC", "Generic", "Protocol")  # classes without arguments
_MAX_DEPTH = 10  # of base classes, and of functions that pass `**kwargs` on to each other; our own choice
# What takes the `**kwargs` that these store at first, which their source does not show.
_KWARGS_OF = {
    "lightning.pytorch.loggers.TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter",
    "lightning.pytorch.strategies.DDPStrategy": "torch.nn.parallel.DistributedDataParallel",
}
_UNKNOWN = object()  # exists, or may exist, but cannot be read


class Signature(NamedTuple):
    """Arguments of a class or function.

    Args:
        types: those that each argument accepts, by name; empty if others than int, float, bool, str and None.
        is_open: whether further arguments are accepted through `**kwargs`.
    """

    types: dict[str, tuple[type, ...]]
    is_open: bool


_OF_OBJECT = Signature({}, is_open=False)


class _Module:
    """A module or package whose source is read; `file` is None if it has none."""

    def __init__(self, name: str, file: Path | None, directories: Sequence[Path] = ()) -> None:
        self.name = name
        self.text = file.read_text(encoding="utf-8", errors="replace") if file else ""
        self.directories = directories
        # Without source and directories it is written in C.
        self.is_dynamic = any(word in self.text for word in _DYNAMIC) if file else not directories

    @cached_property
    def names(self) -> dict[str, Any]:
        """What each name is: a definition, (module, name in it) of an import, or the expression of an assignment.

        Star imports are listed under "*1", "*2", ...
        """
        found: dict[str, Any] = {}
        blocks: list[ast.AST] = [ast.parse(self.text)]
        for block in blocks:
            nodes = list(ast.iter_child_nodes(block))
            defined = dict(pair for node in nodes for pair in self._defined(node))
            found = found | defined if block is blocks[0] else defined | found  # below `if`, the first one counts
            blocks += [node for node in nodes if isinstance(node, (ast.If, ast.Try, ast.With, ast.ExceptHandler))]
        return found

    def _defined(self, node: ast.AST) -> Iterator[tuple[str, Any]]:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name, node
        elif isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name.split(".")[0], (alias.name, "")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = self.name.split(".")
            above = parts[: len(parts) - node.level + bool(self.directories)] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield alias.asname or alias.name.replace("*", f"*{node.lineno}"), (source, alias.name)
        elif isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))


@cache
def read_signature(target: str) -> Signature | None:
    """Return the arguments of a dotted name; None if its source cannot be read, as of a C extension.

    Raises:
        ConfigError: a package, module or name that does not exist, with the nearest one.
    """
    top, *parts = target.split(".")
    found: Any = _module(top)
    if found is None:
        raise ConfigError(f"there is no package {top!r} here; is it installed in this environment?")
    for index, part in enumerate(parts):
        if not isinstance(found, _Module):
            return None  # an attribute of a class
        above, is_last = found, index == len(parts) - 1
        found = (not is_last and _module(f"{above.name}.{part}")) or _find(above, part)
        if found is None:
            parent = ".".join([top, *parts[:index]])
            close = difflib.get_close_matches(part, _all_names(above), n=1)
            hint = f"; did you mean {'.'.join([parent, *close, *parts[index + 1 :]])}?" if close else "."
            raise ConfigError(f"there is no {part!r} in {parent}{hint}")
    signature = _signature(*found) if isinstance(found, tuple) else None
    if signature and target in _KWARGS_OF:
        return _merge([signature._replace(is_open=False), read_signature(_KWARGS_OF[target])])
    return signature


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
        except ValueError:  # such as __main__
            return _Module(name, None)
        file = Path(spec.origin) if spec and str(spec.origin).endswith(".py") and spec.origin else None
        return _Module(name, file, [*map(Path, spec.submodule_search_locations or ())]) if spec else None
    above = _module(parent)
    directories = [directory / last for directory in above.directories] if above else []
    for directory in directories:
        if (file := directory / "__init__.py").is_file():
            return _Module(name, file, [directory])
        if (file := directory.with_suffix(".py")).is_file():
            return _Module(name, file)
        if any(directory.parent.glob(f"{last}.*.so")):
            return _Module(name, None)
    directories = [directory for directory in directories if directory.is_dir()]
    return _Module(name, None, directories) if directories else None


def _find(module: _Module, name: str, seen: tuple[str, ...] = ()) -> Any:
    """Return what a name in a module is: a _Module, (module, definition), _UNKNOWN, or None if there is none."""
    if module.name in seen:
        return None
    is_mentioned = name in module.text or "import *" in module.text  # parsing takes the longest
    names = module.names if is_mentioned else {}
    if name in names:
        return _follow(module, names[name], (*seen, module.name))
    for source in (_module(value[0]) for star, value in names.items() if star.startswith("*")):
        found = _find(source, name, (*seen, module.name)) if source else None
        if found not in (None, _UNKNOWN):
            return found
    return _module(f"{module.name}.{name}") or (_UNKNOWN if module.is_dynamic else None)


def _follow(module: _Module, value: Any, seen: tuple[str, ...] = ()) -> Any:
    """Return what a definition, an import or an expression refers to, as `_find` does; never None."""
    if isinstance(value, tuple):
        source = _module(value[0] if value[1] else value[0].split(".")[0])
        return (_find(source, value[1], seen) if source and value[1] else source) or _UNKNOWN
    if isinstance(value, ast.Name):
        return _find(module, value.id) or _UNKNOWN
    if isinstance(value, ast.Attribute):
        parent = _follow(module, value.value)
        return (_find(parent, value.attr) if isinstance(parent, _Module) else None) or _UNKNOWN
    return (module, value) if isinstance(value, (ast.ClassDef, ast.FunctionDef)) else _UNKNOWN


def _all_names(module: _Module) -> list[str]:
    sources = [_module(value[0]) for star, value in module.names.items() if star.startswith("*")]
    files = [path.stem for directory in module.directories for path in directory.iterdir()]
    return [*module.names, *files, *(name for source in sources if source for name in source.names)]


def _signature(module: _Module, node: ast.ClassDef | ast.FunctionDef, depth: int = 0) -> Signature | None:
    if depth > _MAX_DEPTH:
        return None
    if isinstance(node, ast.FunctionDef):
        return _of_function(module, node, [], depth)
    bases = [_of_expression(module, base, depth + 1) for base in node.bases]
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        own = {ast.unparse(f.target): _types(f.annotation, f.value) for f in fields if "ClassVar" not in ast.unparse(f)}
        return _merge([*bases, Signature(own, is_open=False)])
    methods = {method.name: method for method in node.body if isinstance(method, ast.FunctionDef)}
    if method := methods.get("__init__") or methods.get("__new__"):
        return _of_function(module, method, bases, depth, num_skipped=1)
    return next((base for base in bases if base is not _OF_OBJECT), _OF_OBJECT)


def _of_function(
    module: _Module, node: ast.FunctionDef, bases: list[Signature | None], depth: int, num_skipped: int = 0
) -> Signature:
    """Return the arguments of a function, and of what it passes its `**kwargs` on to."""
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults: list[Any] = [None] * (len(positional) - len(node.args.defaults)) + node.args.defaults
    pairs = [*zip(positional, defaults, strict=True)][max(num_skipped, len(node.args.posonlyargs)) :]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    own = Signature({argument.arg: _types(argument.annotation, default) for argument, default in pairs}, is_open=False)
    if node.args.kwarg is None:
        return own
    kwargs = node.args.kwarg.arg
    uses = [use for use in ast.walk(node) if isinstance(use, ast.Name) and use.id == kwargs]
    calls = [(call.func, part) for call in ast.walk(node) if isinstance(call, ast.Call) for part in call.keywords]
    callees = [callee for callee, part in calls if part.arg is None and part.value in uses]
    signatures: list[Signature | None] = [None] * (not callees or len(uses) > len(callees))
    for callee in callees:
        is_super = ast.unparse(callee) == "super().__init__"
        signatures += bases if is_super else [_of_expression(module, callee, depth + 1)]
    return _merge([*signatures, own])


def _of_expression(module: _Module, expression: ast.expr, depth: int) -> Signature | None:
    """Return the arguments of a base class or of a function that is called."""
    name = expression.value if isinstance(expression, ast.Subscript) else expression
    if ast.unparse(name).rpartition(".")[2] in _NO_BASE:
        return _OF_OBJECT
    found = _follow(module, name)
    return _signature(found[0], found[1], depth) if isinstance(found, tuple) else None


def _merge(signatures: Sequence[Signature | None]) -> Signature:
    types = {name: types for signature in signatures if signature for name, types in signature.types.items()}
    return Signature(types, is_open=any(signature is None or signature.is_open for signature in signatures))


def _types(annotation: ast.expr | None, default: ast.expr | None) -> tuple[type, ...]:
    """Return the types of an argument with this annotation and default; empty if they are not simple."""
    words = set(re.findall(r"\w+", ast.unparse(annotation) if annotation else "object"))
    if "Optional" in words or (isinstance(default, ast.Constant) and default.value is None):
        words.add("None")
    words -= {"typing", "Optional", "Union"}
    return tuple(_SIMPLE_TYPES[word] for word in _SIMPLE_TYPES if word in words) if words <= {*_SIMPLE_TYPES} else ()
