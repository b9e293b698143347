"""Measure the effect of distillation: a small network on CIFAR-10 with and without a teacher, paired by seed.

    IMAGO_DATA_DIR=data python benchmarks/distill.py
    python benchmarks/distill.py --teacher logs/train/RUN

Without --teacher, experiment=cifar10_small_resnet is trained first. The students are SimpleCNN with few hidden
features, with the same initial weights, batches and epochs.
"""

import argparse
import json
import time
from pathlib import Path

from paired import add_arguments, describe_difference, difference, run_sides, store, summarize, train
from train_speed import PROJECT_ROOT, adopt_orphans

TAUGHT, ALONE = "with teacher", "without"


def main() -> None:
    """Train the teacher if none is given, run both sides and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="run directory of a teacher (default: train one)")
    parser.add_argument("--epochs", type=int, default=5, help="of each student (default: 5)")
    parser.add_argument("--hidden-features", type=int, default=32, help="of the students (default: 32)")
    add_arguments(parser, "distill")
    args = parser.parse_args()
    adopt_orphans()
    teacher = args.teacher.absolute() if args.teacher else train_teacher(args)
    student = ["model=simple_cnn", f"model.hidden_features={args.hidden_features}", f"trainer.max_epochs={args.epochs}"]
    sides = {TAUGHT: [*student, "task=distillation", f"task.teacher={teacher}"], ALONE: student}
    runs = run_sides(sides, args, "distill")
    result = difference(runs, TAUGHT, ALONE)
    teacher_acc = json.loads((teacher / "summary.json").read_text())["test"]["acc"]
    settings = {"epochs": args.epochs, "hidden_features": args.hidden_features, "teacher_test_acc": teacher_acc}
    store(args.json, args, runs, **settings, sides={side: summarize(runs, side) for side in sides}, difference=result)
    print(describe_difference(result))


def train_teacher(args: argparse.Namespace) -> Path:
    """Train experiment=cifar10_small_resnet and return its run directory."""
    name = f"distill_{time.strftime('%Y%m%d_%H%M%S')}_teacher"
    settings = ["experiment=cifar10_small_resnet", *args.override, "seed=100"]
    summary, cpu_s, _ = train(settings, name, args.log_dir)
    print(f"teacher: test acc {summary['test']['acc']:.2%}, {cpu_s / 60:.2f} core-minutes", flush=True)
    return (PROJECT_ROOT / args.log_dir / "train" / name).resolve()


if __name__ == "__main__":
    main()
