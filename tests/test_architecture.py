"""The layout holds: who imports whom, names that would break start-up, and things that must not be in the code."""

import ast
import re
import sys
from pathlib import Path

import pytest

from imago.paths import PROJECT_ROOT

SRC = PROJECT_ROOT / "src"
ENTRIES = sorted(path.stem for path in SRC.glob("*.py"))

# Room -> rooms it may import. Leaves that everyone may import stand in LEAVES.
LEAVES = {"errors", "paths", "download", "machine"}
ARROWS = {
    "errors": set(),
    "paths": set(),
    "download": set(),
    "machine": set(),
    "images": set(),
    "targets": set(),
    "checkpoint": set(),
    "pixels": {"images"},
    "inspection": {"images"},
    "data": {"images", "pixels", "inspection"},
    "model": {"images", "pixels"},
    "optimizer": {"model"},  # which layers come before which
    "schedule": set(),
    "loss": set(),
    "logger": set(),
    # Keyed numbers; what is frozen; the table that a resumed run cuts; whether its best checkpoint is whole.
    "callbacks": {"data", "model", "logger", "checkpoint"},
    "task": {"optimizer", "targets"},
    "analysis": {"images"},  # for the pictures of mistakes
    "artefact": {"images"},
    "export": {"checkpoint", "artefact", "images", "model", "pixels"},
    "run": {
        *("images", "targets", "checkpoint", "pixels", "data", "model"),
        *("optimizer", "schedule", "task", "callbacks", "analysis", "export", "artefact", "inspection"),
    },
}


def imports(file: Path) -> set[str]:
    """Every dotted name that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(file: Path) -> str:
    return file.relative_to(SRC / "imago").parts[0].removesuffix(".py")


def test_every_room_imports_only_the_rooms_it_may():
    wrong = []
    for file in sorted((SRC / "imago").rglob("*.py")):
        if file.parent.name == "imago" and file.name == "__init__.py":
            continue
        here = room(file)
        rooms = {name.split(".")[1] for name in imports(file) if name.startswith("imago.")}
        wrong += [f"{file.relative_to(SRC)} imports {there}" for there in rooms - ARROWS[here] - LEAVES - {here}]
    assert wrong == []


@pytest.mark.parametrize("name", ["images", "paths", "errors", "machine", "inspection", "analysis", "targets"])
def test_light_rooms_do_not_load_torch(name: str):
    place = SRC / "imago" / name
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    heavy = {"torch", "lightning", "torchvision"}
    assert files
    assert [file.name for file in files if {i.split(".")[0] for i in imports(file)} & heavy] == []


def test_only_the_run_room_and_targets_know_about_configs():
    knowing = set()
    for file in (SRC / "imago").rglob("*.py"):
        if {name.split(".")[0] for name in imports(file)} & {"hydra", "omegaconf"}:
            knowing.add(room(file))
    assert knowing == {"run", "targets", "paths"}


def test_entry_names_do_not_shadow_the_standard_library():
    assert ENTRIES
    assert set(ENTRIES) & sys.stdlib_module_names == set()


def test_every_python_file_opens_with_its_purpose():
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
def test_source_is_free_of_what_is_unsafe_or_hidden(pattern: str):
    hits = [
        f"{file.relative_to(PROJECT_ROOT)}:{number}"
        for file in SRC.rglob("*.py")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(pattern, line) and not re.search(r"\.eval\(\)", line)
    ]
    assert hits == []
