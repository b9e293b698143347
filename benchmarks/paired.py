"""Compare settings of src/train.py: run each side once per seed and compute the difference of their test accuracies.

Imported by the other benchmarks. Each run is a child process; its CPU time is measured as in train_speed.py, and its
accuracy is that of the final test in its summary.json. Linux only.
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from train_speed import PROJECT_ROOT, adopt_orphans, describe_environment, measure

from imago.analysis.evaluation import load_evaluation
from imago.statistics.intervals import mean_interval


@dataclass(frozen=True)
class Run:
    """One training run; `test_acc` in [0, 1]; `name` is that of its directory in logs/train."""

    name: str
    side: str
    seed: int
    test_acc: float
    num_test_images: int
    core_minutes: float
    wall_s: float


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments that these benchmarks share."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of each side per seed")
    parser.add_argument(
        "--override", action="append", default=[], metavar="KEY=VALUE", help="a setting for every side; repeatable"
    )
    parser.add_argument("--log-dir", type=Path, default=PROJECT_ROOT / "logs", help="directory of the run directories")
    parser.add_argument("--add", action="store_true", help="add seeds to the runs that the output file has already")
    default = PROJECT_ROOT / "benchmarks" / "results" / f"{name}.json"
    parser.add_argument("--json", type=Path, metavar="FILE", default=default, help="output file")


def train(settings: Sequence[str], name: str, log_dir: Path) -> tuple[dict[str, Any], float, float]:
    """Run src/train.py with run_name=`name` and return its summary, CPU seconds and wall seconds.

    Raises:
        RuntimeError: if it fails; the message ends with the last lines of its output.
    """
    relative_dir = os.path.relpath(log_dir, PROJECT_ROOT)  # an absolute path may need quoting
    cpu_s, wall_s = measure(
        [sys.executable, "src/train.py", *settings, f"run_name={name}", f"paths.log_dir={relative_dir}"]
    )
    return json.loads((log_dir / "train" / name / "summary.json").read_text()), cpu_s, wall_s


# The settings of src/train.py; or a function of the seed that returns test accuracy, number of images, CPU and wall s.
Side = Sequence[str] | Callable[[int], tuple[float, int, float, float]]


def run_sides(sides: Mapping[str, Side], args: argparse.Namespace, benchmark: str) -> list[Run]:
    """Train every side once per seed, in alternating order, and print a line for each run."""
    adopt_orphans()
    stamp = time.strftime("%Y%m%d_%H%M%S")
    runs = stored_runs(args) if args.add else []
    print(f"{'seed':>4} {'side':<12} {'test acc':>9} {'core-minutes':>13}")
    for index, seed in enumerate(args.seeds):
        for side in list(sides) if index % 2 == 0 else list(sides)[::-1]:
            name, settings = f"{benchmark}_{stamp}_{re.sub('[^a-z0-9]+', '-', side.lower())}_{seed}", sides[side]
            if callable(settings):
                acc, num_images, cpu_s, wall_s = settings(seed)
            else:
                summary, cpu_s, wall_s = train([*settings, *args.override, f"seed={seed}"], name, args.log_dir)
                acc, num_images = summary["test"]["acc"], summary["test"]["num_images"]
            runs.append(Run(name, side, seed, acc, num_images, cpu_s / 60, wall_s))
            print(f"{seed:>4} {side:<12} {acc:>9.2%} {cpu_s / 60:>13.2f}", flush=True)
    return runs


def stored_runs(args: argparse.Namespace) -> list[Run]:
    """Return the runs of the output file.

    Raises:
        SystemExit: if they are of another commit or machine, or one of the seeds is among them.
    """
    report, now = json.loads(args.json.read_text(encoding="utf-8")), describe_environment()
    for key in set(now) - {"date"}:
        if report[key] != now[key]:
            raise SystemExit(f"--add: {args.json} has {key} {report[key]}, now it is {now[key]}.")
    runs = [Run(**run) for run in report["runs"]]
    if again := sorted({run.seed for run in runs} & set(args.seeds)):
        raise SystemExit(f"--add: {args.json} has seed {again[0]} already; type others with --seeds.")
    return runs


def summarize(runs: Sequence[Run], side: str) -> dict[str, float]:
    """Return mean, lowest, highest and standard deviation of a side's accuracies, and its mean core-minutes."""
    accs = [run.test_acc for run in runs if run.side == side]
    return {
        "num_seeds": len(accs),
        "mean": statistics.mean(accs),
        "lowest": min(accs),
        "highest": max(accs),
        "std": statistics.stdev(accs) if len(accs) > 1 else 0.0,
        "core_minutes": statistics.mean(run.core_minutes for run in runs if run.side == side),
    }


def difference(runs: Sequence[Run], side: str, other: str) -> dict[str, Any]:
    """Return the mean of `side` minus `other`, paired by seed, and its 95 % interval (None for one seed)."""
    accs = {(run.side, run.seed): run.test_acc for run in runs}
    pairs = [accs[side, run.seed] - run.test_acc for run in runs if run.side == other]
    interval = mean_interval(pairs)
    return {
        "what": f"{side} minus {other}",
        "pairs": pairs,
        "mean": statistics.mean(pairs),
        "interval_95": list(interval) if interval else None,
    }


def difference_on_images(runs: Sequence[Run], side: str, other: str, log_dir: Path) -> dict[str, Any]:
    """Return the mean of `side` minus `other` as `difference` does, with an interval over images instead of seeds.

    Each run is evaluated on the test split; for each image, the share of the seeds that classify it correctly counts.
    """
    is_correct: dict[str, list[np.ndarray]] = {side: [], other: []}
    for run in sorted(runs, key=lambda run: run.seed):
        run_dir = log_dir / "train" / run.name
        measure([sys.executable, "src/eval.py", f"run={os.path.relpath(run_dir, PROJECT_ROOT)}"])
        is_correct[run.side].append(load_evaluation(run_dir).is_correct)
    gaps = np.mean(is_correct[side], axis=0, dtype=float) - np.mean(is_correct[other], axis=0, dtype=float)
    half = 1.96 * gaps.std(ddof=1) / len(gaps) ** 0.5
    interval = [float(gaps.mean() - half), float(gaps.mean() + half)]
    return {
        "what": f"{side} minus {other}",
        "num_images": len(gaps),
        "mean": float(gaps.mean()),
        "interval_95": interval,
    }


def describe_difference(result: Mapping[str, Any]) -> str:
    """Return a difference of accuracies as text, in percentage points."""
    low, high = result["interval_95"] or (float("nan"), float("nan"))
    over = f"{result['num_images']:,} images" if "num_images" in result else f"{len(result['pairs'])} pairs of runs"
    return (
        f"{result['what']}: {100 * result['mean']:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}, "
        f"n = {over}"
    )


def store(file: Path, args: argparse.Namespace, runs: Sequence[Run], **figures: Any) -> None:
    """Write the results with hardware, versions and settings, without paths of this machine."""
    report = {
        **describe_environment(),
        "overrides": [re.sub(r"=[/~].*", "=<path>", override) for override in args.override],
        **figures,
        "runs": [asdict(run) for run in runs],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"figures in {file}")
