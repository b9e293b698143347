"""Take a large network on CIFAR-10 to a small int8 file: accuracy, size and latency of each way, for docs/compress.md.

    python benchmarks/compress.py                       # trains 10 networks; about an hour of one CPU core
    python benchmarks/compress.py --log-dir logs/compress   # continues with the finished runs of that directory

The teacher is experiment=cifar10_small_resnet; the students are SimpleCNN (experiment=cifar10_simple_cnn) alone, with
the teacher (experiment=distill_small), and with half of the channels of that one (model=pruned); each is also written
with precision=int8. Every file is an ONNX file, and is measured by onnxruntime on the 10,000 test images with one
thread, in turn, in three rounds. Nothing is chosen by these images.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from train_speed import PROJECT_ROOT, describe_environment

from imago.data.cifar10 import NUM_TRAIN, saved_array
from imago.export.benchmark import Row, measure_rows
from imago.statistics.intervals import mean_interval
from imago.text import markdown_table

TEACHER, STUDENT, DISTILLED, PRUNED = "teacher", "student", "distilled", "pruned"
STEPS = {  # name of a row: run and file
    "teacher": (TEACHER, "model.onnx"),
    "student": (STUDENT, "model.onnx"),
    "distilled student": (DISTILLED, "model.onnx"),
    "distilled, pruned": (PRUNED, "model.onnx"),
    "distilled, int8": (DISTILLED, "model_int8.onnx"),
    "distilled, pruned, int8": (PRUNED, "model_int8.onnx"),
}


def main() -> None:
    """Train what is missing, write the files, measure them, and print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6, help="of the teacher and the students (default: 6)")
    parser.add_argument("--pruned-epochs", type=int, default=3, help="of fine-tuning after pruning (default: 3)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each student (default: 0 1 2)")
    parser.add_argument("--data-dir", type=Path, default=PROJECT_ROOT / "data", help="has cifar-10-batches-py")
    parser.add_argument("--log-dir", type=Path, default=PROJECT_ROOT / "logs" / "compress")
    parser.add_argument("--json", type=Path, default=PROJECT_ROOT / "benchmarks" / "results" / "compress.json")
    args = parser.parse_args()
    train_all(args)
    rows = [row for name in STEPS for row in write_files(name, args)]
    with tempfile.TemporaryDirectory() as temporary:
        test = np.load(saved_array(None, args.data_dir))[NUM_TRAIN:]
        np.save(Path(temporary, "images.npy"), test["image"])
        measure_rows(rows, Path(temporary, "images.npy"), test["label"].astype(np.int64), [1])
    by_step = {name: [row for row in rows if row.name.startswith(f"{name} of ")] for name in STEPS}
    results = {name: summarize(group, len(test)) for name, group in by_step.items()}
    content = {
        "command": f"benchmarks/compress.py --epochs {args.epochs} --pruned-epochs {args.pruned_epochs}",
        "environment": describe_environment(),
        "epochs": args.epochs,
        "pruned_epochs": args.pruned_epochs,
        "num_test_images": len(test),
        "results": results,
    }
    args.json.write_text(json.dumps(content, indent=2) + "\n")
    print("\n".join(markdown_table(table(results))))


def train_all(args: argparse.Namespace) -> None:
    """Train every network that is not there yet, with one thread; interrupted runs are continued."""
    epochs, runs = f"trainer.max_epochs={args.epochs}", args.log_dir / "train"
    start(args, TEACHER, "experiment=cifar10_small_resnet", "seed=0", epochs)
    for seed in args.seeds:
        start(args, f"{STUDENT}_{seed}", "experiment=cifar10_simple_cnn", f"seed={seed}", epochs)
    for seed in args.seeds:
        teacher = f"task.teacher={runs / TEACHER}"
        start(args, f"{DISTILLED}_{seed}", "experiment=distill_small", teacher, f"seed={seed}", epochs)
    for seed in args.seeds:
        pruned = ["model=pruned", f"model.run={runs / f'{DISTILLED}_{seed}'}", "model.ratio=0.5", f"seed={seed}"]
        pruned_epochs = f"trainer.max_epochs={args.pruned_epochs}"
        start(args, f"{PRUNED}_{seed}", "experiment=cifar10_simple_cnn", *pruned, pruned_epochs)


def start(args: argparse.Namespace, name: str, *settings: str) -> None:
    """Run src/train.py with a name; nothing happens if this run has finished."""
    summary = args.log_dir / "train" / name / "summary.json"
    if summary.is_file() and json.loads(summary.read_text())["status"] == "finished":
        return
    paths = [f"paths.data_dir={args.data_dir}", f"paths.log_dir={args.log_dir}"]
    subprocess.run(
        [sys.executable, "src/train.py", *settings, f"run_name={name}", "resume=auto", "threads=1", *paths],
        cwd=PROJECT_ROOT,
        check=True,
    )


def write_files(name: str, args: argparse.Namespace) -> list[Row]:
    """Export the runs of a row of the table, and return what is to be measured."""
    run_name, file = STEPS[name]
    rows = []
    for run in [run_name] if run_name == TEACHER else [f"{run_name}_{seed}" for seed in args.seeds]:
        directory = args.log_dir / "train" / run
        precision = "int8" if "int8" in file else "fp32"
        command = [sys.executable, "src/export.py", f"run={directory}", f"precision={precision}", "overwrite=true"]
        subprocess.run(command, cwd=PROJECT_ROOT, check=True)
        path = directory / "export" / file
        rows.append(Row(f"{name} of {run}", path, "onnx", "onnxruntime", num_bytes=path.stat().st_size))
    return rows


def summarize(rows: list[Row], num_images: int) -> dict[str, Any]:
    """Return the accuracies over seeds with their mean and interval, and size and speed as medians."""
    if reasons := [row.reason for row in rows if row.reason]:
        raise RuntimeError(reasons[0])
    accs = [row.num_correct / num_images for row in rows]
    numbers = [row.by_threads[1] for row in rows]
    interval = mean_interval(accs)
    return {
        "test_acc": accs,
        "mean": statistics.mean(accs),
        "interval_95": list(interval) if interval else None,
        "num_bytes": statistics.median(row.num_bytes for row in rows),
        **{key: statistics.median(values[key] for values in numbers) for key in ("p50_ms", "p95_ms", "images_per_s")},
    }


def table(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table in docs/compress.md, with a header."""
    cells = [["", "test accuracy, %", "range", "n", "MB", "p50 ms", "images/s"]]
    for name, result in results.items():
        accs = result["test_acc"]
        cells.append(
            [name, f"{100 * result['mean']:.2f}", f"{100 * min(accs):.2f} to {100 * max(accs):.2f}", str(len(accs)),
             f"{result['num_bytes'] / 1e6:.2f}", f"{result['p50_ms']:.2f}", f"{result['images_per_s']:,.0f}"]
        )  # fmt: skip
    return cells


if __name__ == "__main__":
    main()
