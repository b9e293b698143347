"""Print the figures of the source that are limited: size, functions, and what a default training run loads.

python benchmarks/metrics.py               # or: make metrics
python benchmarks/metrics.py --no-run      # only what can be read from the files

Code lines are lines of Python without blank lines, comments and docstrings. The modules and calls are those of
`python src/train.py data=shapes` with two batches, whose run directory is temporary.
"""

import argparse
import ast
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
SRC = PROJECT_ROOT / "src"
PACKAGE = SRC / "imago"
TEMPLATES = {".j2", ".css", ".js", ".html"}
NO_CODE_TOKENS = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENDMARKER, tokenize.ENCODING),
}
SHORT_RUN = (
    *("data=shapes", "trainer.max_epochs=1", "trainer.accelerator=cpu"),
    *("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
)
# A module for the training process: writes the stack at the start of `trainer.fit` and the modules loaded at exit.
PROBE = """
import atexit, json, os, sys, traceback
from lightning.pytorch import Callback

class Probe(Callback):
    def on_fit_start(self, trainer, pl_module):
        atexit.register(write, [(frame.filename, frame.name) for frame in traceback.extract_stack()])

def write(frames):
    modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    with open(os.environ["PROBE_FILE"], "w") as file:
        json.dump({"frames": frames, "modules": modules}, file)
"""


def count_lines(path: Path) -> int:
    """Return the number of lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def code_lines(text: str) -> int:
    """Return the number of lines that hold code: no blank lines, comments and docstrings."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE_TOKENS:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def function_lengths(path: Path) -> list[tuple[int, str]]:
    """Return the length in lines, docstring included, and the name of every function of a file."""
    return [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{path.relative_to(SRC)}:{node.name}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def source_figures() -> dict[str, str]:
    """Return the figures that are read from the files of `src/imago`."""
    modules = sorted(PACKAGE.rglob("*.py"))
    templates = [path for path in PACKAGE.rglob("*") if path.suffix in TEMPLATES]
    lengths = sorted(length for path in modules for length in function_lengths(path))
    longest_file = max((count_lines(path), str(path.relative_to(SRC))) for path in modules)
    return {
        "lines, templates included": f"{sum(map(count_lines, [*modules, *templates])):,}",
        "code lines": f"{sum(code_lines(path.read_text(encoding='utf-8')) for path in modules):,}",
        "files": f"{len(modules)} modules, {len(templates)} templates",
        "functions": f"{len(lengths)}, median {statistics.median(length for length, _ in lengths):g} lines",
        "longest function": "{} lines, {}".format(*lengths[-1]),
        "longest file": "{} lines, {}".format(*longest_file),
    }


def probe_run() -> dict:
    """Train two batches in a process of its own and return the stack in `trainer.fit` and the modules at exit.

    Raises:
        RuntimeError: if the run fails, with what it printed.
    """
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "imago_probe.py").write_text(PROBE)
        file = Path(directory) / "probe.json"
        settings = ["+callbacks.probe._target_=imago_probe.Probe"]
        done = subprocess.run(
            [sys.executable, "src/train.py", *SHORT_RUN, *settings, f"paths.log_dir={directory}/logs"],
            cwd=PROJECT_ROOT,
            env=os.environ | {"PYTHONPATH": directory, "PROBE_FILE": str(file)},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"src/train.py ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return json.loads(file.read_text())


def run_figures() -> dict[str, str]:
    """Return the figures of a default training run."""
    probe = probe_run()
    loaded = {file for file in probe["modules"].values() if file and Path(file).is_relative_to(PACKAGE)}
    names = [name for file, name in probe["frames"] if Path(file).is_relative_to(SRC)]
    return {
        "modules loaded by train.py": f"{len(loaded)}, {sum(count_lines(Path(file)) for file in loaded):,} lines",
        "calls from train.py to trainer.fit": f"{len(names)}: {' > '.join(names)}",
    }


def main() -> None:
    """Print one figure a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-run", action="store_true", help="leave out the training run")
    figures = source_figures() | ({} if parser.parse_args().no_run else run_figures())
    for name, value in figures.items():
        print(f"{name:<36}{value}")


if __name__ == "__main__":
    main()
