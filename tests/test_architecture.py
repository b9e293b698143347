"""Layout of the source tree: imports between packages, names of entry scripts, and unsafe or hidden constructs."""

import ast
import re
import sys
from pathlib import Path

import pytest

from imago.paths import PROJECT_ROOT

SRC = PROJECT_ROOT / "src"
PACKAGE = SRC / "imago"
ENTRIES = sorted(path.stem for path in SRC.glob("*.py"))

# Package or module -> those it may import, in addition to LEAVES. Imports point from the last lines to the first.
LEAVES = {
    "errors",
    "paths",
    "files",
    "log",
    "settings",
    "text",
    "download",
    "resources",
    "seeding",
    "system",
    "threads",
}
_BASE = {"images", "instantiate", "normalize", "statistics", "onnx_classifier", "runs", "trust"}
_PARTS = {"augment", "data", "model", "optimizer", "schedule", "loss", "logger"}
_COMMANDS = {"training", "inference", "export", "dataset_check", "analysis"}
ARROWS = {
    **dict.fromkeys(LEAVES, set()),
    "images": {"tiff"},
    "tiff": set(),
    "instantiate": set(),
    "trust": {"instantiate"},
    "statistics": set(),
    "normalize": {"images"},
    "onnx_classifier": {"images", "statistics"},
    "runs": {"statistics"},
    "augment": {"instantiate"},  # for transforms of the user's own
    "data": {"augment", "images", "instantiate", "normalize"},
    "model": {"images", "instantiate", "normalize"},
    "optimizer": {"model"},  # for the order of the layers
    "schedule": set(),
    "loss": set(),
    "logger": {"runs"},
    "task": _BASE | _PARTS,
    "callbacks": _BASE | _PARTS | {"task"},
    "inference": _BASE | _PARTS | {"task", "analysis"},
    "training": _BASE | _PARTS | {"task", "callbacks", "inference", "analysis"},
    "export": _BASE | _PARTS | {"inference", "analysis"},
    "dataset_check": _BASE | {"data", "augment", "inference", "analysis"},
    "analysis": {"images", "statistics", "runs"},
    "sweep": _BASE | {"analysis"},
    "serve": {"images", "onnx_classifier", "statistics"},
    "cli": _BASE | _COMMANDS | {"sweep"},
}

# These see configs, and so do the module of each command and the one that reads that of a run. All others receive plain
# values or built objects.
SEES_CONFIGS = {"cli", "training", "instantiate", "paths"}
COMMAND_MODULES = {"data_settings", "evaluate", "predict", "export", "check", "report", "model_card"}


def imports(file: Path) -> set[str]:
    """Return every dotted name that a file imports, at any level."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package(file: Path) -> str:
    """Return the package or top-level module that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_package_imports_only_allowed_packages():
    wrong = []
    for file in sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"}):
        here = package(file)
        imported = {name.split(".")[1] for name in imports(file) if name.startswith("imago.")}
        wrong += [f"{file.relative_to(SRC)} imports {there}" for there in imported - ARROWS[here] - LEAVES - {here}]
    assert wrong == []


@pytest.mark.parametrize(
    "name",
    [
        "images",
        "paths",
        "errors",
        "resources",
        "system",
        "dataset_check",
        "analysis",
        "statistics",
        "instantiate",
        "cli",
        "serve",
    ],
)
def test_light_packages_do_not_import_torch(name: str):
    files = [file for file in PACKAGE.rglob("*.py") if package(file) == name]
    heavy = {"torch", "lightning", "torchvision"}
    assert files
    assert [file.name for file in files if {i.split(".")[0] for i in imports(file)} & heavy] == []


def test_only_cli_training_and_command_modules_import_hydra():
    files = [
        file for file in PACKAGE.rglob("*.py") if {i.split(".")[0] for i in imports(file)} & {"hydra", "omegaconf"}
    ]
    others = {file.name for file in files if package(file) not in SEES_CONFIGS and file.stem not in COMMAND_MODULES}
    assert others == set()


def test_entry_names_do_not_shadow_the_standard_library():
    assert ENTRIES
    assert set(ENTRIES) & sys.stdlib_module_names == set()


def test_every_python_file_has_a_module_docstring():
    files = [*SRC.rglob("*.py"), *(PROJECT_ROOT / "benchmarks").rglob("*.py")]
    silent = [str(f) for f in files if f.read_text().strip() and not ast.get_docstring(ast.parse(f.read_text()))]
    assert silent == []


@pytest.mark.parametrize(
    "pattern",
    [
        r"weights_only\s*=\s*False",
        r"pickle\.loads?\(|Unpickler\(|allow_pickle\s*=\s*True",
        r"\bdecode_image\b",
        r"0\.0\.0\.0",
        r"\.extractall\((?!.*filter=)",
        r"shell\s*=\s*True",
        r"LOAD_TRUNCATED_IMAGES",
        r"sys\.path|rootutils|PYTHONPATH",
        r"\beval\(",
    ],
)
def test_source_contains_no_unsafe_or_hidden_constructs(pattern: str):
    hits = [
        f"{file.relative_to(PROJECT_ROOT)}:{number}"
        for file in SRC.rglob("*.py")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(pattern, line) and not re.search(r"\.eval\(\)", line)
    ]
    assert hits == []


def test_litdata_is_imported_only_when_something_is_downloaded():
    """It takes 2 s, and is an extra; the import is inside of a function, where `imports` finds it as well."""
    files = [
        file for file in PACKAGE.rglob("*.py") if {i.split(".")[0] for i in imports(file)} & {"litdata", "botocore"}
    ]
    assert [file.name for file in files] == ["chunks.py"]
    top = [node for node in ast.parse(files[0].read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in top if "litdata" in ast.unparse(node) or "boto" in ast.unparse(node)]
