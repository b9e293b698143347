"""Measure what a trial of a sweep costs over the same run as a command of its own, on runs of a single step.

python benchmarks/trial_cost.py            # 3 rounds, each with a sweep of 2 trials, one of 6, and 4 commands

Both sides start one process for each run. The cost of a trial is (time of 6 trials - time of 2) / 4, without the start
of the sweep and its end, which are the same for both.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train_speed import PROJECT_ROOT, describe_environment

ONE_STEP = ["experiment=quickstart", "trainer.max_epochs=1", "trainer.limit_train_batches=1", "threads=1"]
ONE_STEP += ["trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
NUM_TRIALS = (2, 6)


def seconds(*settings: str) -> float:
    """Run `src/train.py` in a new directory of logs and return its wall time."""
    with tempfile.TemporaryDirectory() as logs:
        start_s = time.perf_counter()
        command = [sys.executable, "src/train.py", *ONE_STEP, f"paths.log_dir={logs}", *settings]
        subprocess.run(command, cwd=PROJECT_ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start_s


def main() -> None:
    """Measure in turn, print the medians and store every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=PROJECT_ROOT / "benchmarks" / "results" / "trial_cost.json")
    args = parser.parse_args()
    few, many = NUM_TRIALS
    rounds = []
    for _ in range(args.rounds):
        times = {number: seconds("-m", f"seed=range({number})") for number in NUM_TRIALS}
        alone = statistics.fmean(seconds() for _ in range(many - few))
        rounds.append({"trial_s": (times[many] - times[few]) / (many - few), "command_s": alone})
    medians = {key: statistics.median(values[key] for values in rounds) for key in rounds[0]}
    content = {"command": " ".join(["benchmarks/trial_cost.py", *sys.argv[1:]]), "environment": describe_environment()}
    args.json.write_text(json.dumps(content | {"rounds": rounds, "medians": medians}, indent=2) + "\n")
    print(f"a trial: {medians['trial_s']:.2f} s; the same run as a command: {medians['command_s']:.2f} s")


if __name__ == "__main__":
    main()
