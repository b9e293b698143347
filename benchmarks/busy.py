"""Compare the training speed with a plain PyTorch script on a machine that other processes keep busy.

    IMAGO_DATA_DIR=data python benchmarks/busy.py
    IMAGO_DATA_DIR=data python benchmarks/busy.py --busy 0 4 --rounds 1 --b-override trainer.devices=2

For each number of busy processes, `train_speed.py` trains SimpleCNN on CIFAR-10 with both sides, in turn, in every
round; the tables have images per CPU-second and per second of wall clock, and their ratios. Start the script on an idle
machine: it makes the load itself.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train_speed import NUM_TRAIN_IMAGES, PROJECT_ROOT, busy_processes, describe_environment

from imago.text import table_lines

GOAL = 1.8  # times the plain script, at any load


def measure(num_busy: int, epochs: int, overrides: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return images per CPU-second and per second of wall clock of both sides."""
    with busy_processes(num_busy), tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "benchmarks/train_speed.py", f"--epochs={epochs}", "--rounds=1", "--clean"]
        settings = [f"--b-override={override}" for override in overrides]
        subprocess.run([*command, *settings, "--json", file.name], cwd=PROJECT_ROOT, check=True)
        runs = {run["side"]: run for run in json.load(file)["runs"]}
    return {
        side: {"per_cpu_s": runs[side]["images_per_cpu_s"], "per_s": epochs * NUM_TRAIN_IMAGES / runs[side]["wall_s"]}
        for side in ("A", "B")
    }


def rows(readings: dict[int, list[dict[str, Any]]], unit: str) -> list[list[str]]:
    """Return a row for each load: medians of both sides, and the ratio with its spread."""
    cells = []
    for num_busy, rounds in readings.items():
        plain, ours = ([reading[side][unit] for reading in rounds] for side in ("A", "B"))
        ratios = sorted(b / a for a, b in zip(plain, ours, strict=True))
        ratio = statistics.median(ratios)
        spread = f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        values = [f"{statistics.median(side):,.0f}" for side in (plain, ours)]
        cells.append([str(num_busy), *values, spread, "met" if ratio >= GOAL else "short"])
    return cells


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4, 6], help="processes (default: 0 1 2 4 6)")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of each run (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side at each load (default: 3)")
    parser.add_argument("--b-override", action="append", default=[], metavar="KEY=VALUE", help="a setting of train.py")
    default = PROJECT_ROOT / "benchmarks" / "results" / "busy.json"
    parser.add_argument("--json", type=Path, metavar="FILE", default=default, help="output file")
    args = parser.parse_args()
    environment = describe_environment()
    readings: dict[int, list[dict[str, Any]]] = {num_busy: [] for num_busy in args.busy}
    for _ in range(args.rounds):
        for num_busy in args.busy:
            print(f"{num_busy} busy processes", flush=True)
            readings[num_busy].append(measure(num_busy, args.epochs, args.b_override))
    for unit, text in (("per_cpu_s", "images per CPU-second"), ("per_s", "images per second")):
        print(
            *table_lines([["busy", "plain", "ours", f"ratio, {text}", f"goal {GOAL}"], *rows(readings, unit)]), sep="\n"
        )
    content = {
        **environment,
        "b_overrides": args.b_override,
        "num_train_images": NUM_TRAIN_IMAGES,
        "epochs": args.epochs,
        "by_load": readings,
    }
    args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
