"""Compare Optuna's search with random search of the same budget: the best setting after each number of trials.

python benchmarks/search.py                # 3 repetitions of 12 trials each, on CIFAR-10; continues if interrupted

Both searches of a repetition have the same seeds of training; the repetitions differ in the seed of the sampler. Only
validation is compared; the test accuracy of each best setting is stored beside it.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from train_speed import PROJECT_ROOT, describe_environment

from imago.analysis.ranking import rank_settings

SAMPLERS = {"optuna": [], "random": ["sweep.sampler=random"]}


def search(name: str, repetition: int, args: argparse.Namespace) -> dict[str, object]:
    """Run or continue one search; return its best validation accuracy after each trial, and the test of the best."""
    sweep = f"search-{name}-{repetition}"
    settings = [*SAMPLERS[name], f"sweep.seed={repetition}", f"sweep_name={sweep}", *args.override]
    fixed = ["sweep=cifar10_simple_cnn", "experiment=cifar10_simple_cnn", "resume=auto", "threads=1"]
    command = [sys.executable, "src/train.py", "-m", *fixed, f"trainer.max_epochs={args.epochs}", *settings]
    subprocess.run([*command, f"paths.log_dir={args.log_dir}"], cwd=PROJECT_ROOT, check=True)
    ranking = rank_settings(args.log_dir / "sweeps" / sweep)
    ranked = sorted((setting for setting in ranking.settings if setting.rank), key=lambda setting: setting.number)
    values = [setting.mean or 0.0 for setting in ranked]
    best = [max(values[: index + 1]) for index in range(len(values))]
    assert ranking.best is not None
    return {"best_val": best, "test": ranking.test["acc"][0], "setting": ranking.best.settings}


def table(results: dict[str, list[dict]]) -> str:
    """Return a Markdown table: mean and range over the repetitions after 4, 8 and all trials, and of the test."""
    lines = ["| search | best val after 4 | after 8 | at the end | test of the best |", "|---|---|---|---|---|"]
    for name, searches in results.items():
        columns = [[100 * result["best_val"][min(index, len(result["best_val"])) - 1] for result in searches]
                   for index in (4, 8, 10**6)]  # fmt: skip
        columns.append([100 * result["test"] for result in searches])
        cells = [f"{statistics.fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})" for values in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run both searches in turn and store the results after each repetition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="of each trial")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="a setting of both")
    parser.add_argument("--log-dir", type=Path, default=PROJECT_ROOT / "logs", help="directory of the sweeps")
    parser.add_argument("--json", type=Path, default=PROJECT_ROOT / "benchmarks" / "results" / "search.json")
    args = parser.parse_args()
    results: dict[str, list[dict]] = {name: [] for name in SAMPLERS}
    for repetition in range(args.repetitions):
        for name in SAMPLERS:
            results[name].append(search(name, repetition, args))
        content = {"command": " ".join(["benchmarks/search.py", *sys.argv[1:]]), "environment": describe_environment()}
        args.json.write_text(json.dumps(content | {"epochs": args.epochs, "results": results}, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
