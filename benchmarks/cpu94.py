"""Compare the accuracy and the core-seconds of experiment=cifar10_cpu94 with those of airbench94 on this CPU.

    IMAGO_DATA_DIR=data OMP_NUM_THREADS=1 python benchmarks/cpu94.py    # three seeds of both, in turn: 95 minutes
    ... cpu94.py --seeds 0; ... cpu94.py --add --seeds 1 2              # in two parts, of the same commit

Both are tested on CIFAR-10's official test images, which neither uses for a choice, and with both the allocator keeps
freed memory, as `imago.system.keep_freed_memory` does.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from paired import Side, add_arguments, describe_difference, difference, run_sides, store, summarize
from train_speed import measure

OURS, OTHER = "cifar10_cpu94", "airbench94"
KEEP_FREED_MEMORY = ("env", "MALLOC_MMAP_MAX_=0", f"MALLOC_TRIM_THRESHOLD_={2**62}")  # glibc's names of both settings
NUM_TEST_IMAGES = 10_000


def run_airbench(seed: int) -> tuple[float, int, float, float]:
    """Run `airbench94.py`; return accuracy, number of test images, CPU seconds and wall seconds."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "airbench.json"
        command = [*KEEP_FREED_MEMORY, sys.executable, "benchmarks/airbench94.py"]
        cpu_s, wall_s = measure([*command, f"--seed={seed}", f"--json={result}"])
        return json.loads(result.read_text(encoding="utf-8"))["acc"], NUM_TEST_IMAGES, cpu_s, wall_s


def main() -> None:
    """Run both sides and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "cpu94")
    args = parser.parse_args()
    if args.override:
        parser.error(f"--override {args.override[0]} would not reach airbench94.")
    sides: dict[str, Side] = {OURS: [f"experiment={OURS}"], OTHER: run_airbench}
    runs = run_sides(sides, args, "cpu94")
    figures = {side: summarize(runs, side) for side in sides}
    ratio = figures[OURS]["core_minutes"] / figures[OTHER]["core_minutes"]
    store(args.json, args, runs, sides=figures, difference=difference(runs, OURS, OTHER), ratio_of_core_minutes=ratio)
    print(describe_difference(difference(runs, OURS, OTHER)))
    print(f"core-minutes: {ratio:.2f} of {OTHER}'s")


if __name__ == "__main__":
    main()
