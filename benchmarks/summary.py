"""Print one table of what was measured: ours, the other, their ratio with its spread, and the goal.

python benchmarks/summary.py           # of the stored results
make bench-quick                       # measures again first, into build/bench: 3 minutes on two idle cores
make bench                             # the same with more rounds, and training against a plain script: 15 minutes

All ratios are of two sides that ran in turn, one pair in each round.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from imago.text import table_lines

PROJECT_ROOT = Path(__file__).resolve().parent.parent
RESULTS, MEASURED = PROJECT_ROOT / "benchmarks" / "results", PROJECT_ROOT / "build" / "bench"
# Scripts with their arguments; each writes the JSON file of its name.
QUICK = {"overhead": ["--steps", "300", "--rounds", "3"], "data": ["--rounds", "3", "--cases", "cifar", "jpeg_500"]}
FULL = {
    "overhead": [],
    "data": ["--rounds", "3", "--cases", "cifar", "jpeg_500"],
    "train_speed": ["--epochs", "1", "--clean"],
}
NEEDS_DATA = ("data", "train_speed")


class Row(NamedTuple):
    """A comparison: how to read its rounds, as pairs (ours, other), from the content of a file."""

    what: str
    unit: str
    other: str
    file: str
    pairs: Callable[[dict[str, Any]], Iterable[tuple[float, float]]]
    goal: float
    is_higher_better: bool = True


def _train_speed(content: dict[str, Any]) -> Iterable[tuple[float, float]]:
    by_side: dict[str, list[float]] = {"A": [], "B": []}
    for run in content["runs"]:
        by_side[run["side"]].append(run["images_per_cpu_s"])
    return zip(by_side["B"], by_side["A"], strict=True)


def _loader(case: str, ours: str) -> Callable[[dict[str, Any]], Iterable[tuple[float, float]]]:
    def pairs(content: dict[str, Any]) -> Iterable[tuple[float, float]]:
        readings = content["cases"][case]["readings"]
        speeds = [[reading["per_cpu_s"] for reading in readings[side]] for side in (ours, "pil")]
        return zip(*speeds, strict=True)

    return pairs


def _overhead(content: dict[str, Any]) -> Iterable[tuple[float, float]]:
    ms = content["ms_per_step"]
    rounds = zip(ms["loop"], ms["imago"], ms["common"], strict=True)
    return [(imago - loop, common - loop) for loop, imago, common in rounds]


def _steps(content: dict[str, Any]) -> Iterable[tuple[float, float]]:
    return zip(content["ms_per_step"]["imago"], content["ms_per_step"]["barebones"], strict=True)


def _template(content: dict[str, Any]) -> Iterable[tuple[float, float]]:
    return zip(content["cpu_s_per_epoch"]["imago"], content["cpu_s_per_epoch"]["template"], strict=True)


ROWS = (
    Row("training, SimpleCNN on CIFAR-10", "images per CPU s", "plain script", "train_speed", _train_speed, 1.8),
    Row("an epoch", "CPU s", "lightning-hydra-template", "template", _template, 0.5, is_higher_better=False),
    Row("a step without the network", "CPU ms", "two torchmetrics, logged", "overhead", _overhead, 0.3, False),
    Row("a step of a linear layer", "CPU ms", "Trainer(barebones=True)", "overhead", _steps, 1.15, False),
    Row("loader, CIFAR-10", "images per CPU s", "PIL", "data", _loader("cifar", "project"), 20),
    Row("loader, JPEG", "images per CPU s", "PIL", "data", _loader("jpeg_500", "project"), 1.5),
    Row("loader, JPEG from the cache", "images per CPU s", "PIL", "data", _loader("jpeg_500", "project, cached"), 8),
)


def measure(scripts: dict[str, list[str]]) -> None:
    """Run benchmark scripts one after the other."""
    shutil.rmtree(MEASURED, ignore_errors=True)
    MEASURED.mkdir(parents=True)
    for name, arguments in scripts.items():
        if name in NEEDS_DATA and "IMAGO_DATA_DIR" not in os.environ:
            print(f"{name}: left out, as it needs the datasets in IMAGO_DATA_DIR")
            continue
        print(f"{name} ...", flush=True)
        command = [sys.executable, f"benchmarks/{name}.py", *arguments, "--json", str(MEASURED / f"{name}.json")]
        if code := subprocess.run(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL).returncode:
            sys.exit(code)  # it has said why


def rows(folder: Path) -> list[list[str]]:
    """Return the cells of the table, for the results that a folder has."""
    cells = []
    for row in ROWS:
        if not (file := folder / f"{row.file}.json").is_file():
            continue
        pairs = [*row.pairs(json.loads(file.read_text(encoding="utf-8")))]
        ratios = sorted(ours / other for ours, other in pairs)
        ours, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(ratios)
        is_met = ratio >= row.goal if row.is_higher_better else ratio <= row.goal
        goal = f"{'>=' if row.is_higher_better else '<='} {row.goal:g}"
        spread = f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {len(ratios)})"
        cells.append(
            [row.what, row.unit, f"{ours:,.4g}", row.other, f"{other:,.4g}", spread, goal, "met" if is_met else "short"]
        )
    return cells


def main() -> None:
    """Measure if asked to, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=["quick", "full"], help="measure first")
    args = parser.parse_args()
    if args.measure:
        measure(QUICK if args.measure == "quick" else FULL)
    header = ["what", "unit", "ours", "other", "its value", "ratio", "goal", ""]
    print(*table_lines([header, *rows(MEASURED if args.measure else RESULTS)]), sep="\n")


if __name__ == "__main__":
    main()
