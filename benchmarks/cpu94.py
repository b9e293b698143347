"""Compare the accuracy and the core-seconds of experiment=cifar10_cpu94 with those of airbench94 on this CPU.

    IMAGO_DATA_DIR=data python benchmarks/cpu94.py          # three seeds of each side, in turn: 80 minutes of two cores

All are tested on CIFAR-10's official test images, which none of them uses for a choice. Our training keeps freed memory
(`imago.system.keep_freed_memory`); airbench94 runs as it is and with the same setting of glibc, which shows how much of
the difference is the allocator.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from paired import Side, add_arguments, describe_difference, difference, run_sides, store, summarize
from train_speed import measure

OURS, OTHER, OTHER_KEPT = "cifar10_cpu94", "airbench94", "airbench94, freed memory kept"
KEEP_FREED_MEMORY = ("env", "MALLOC_MMAP_MAX_=0", f"MALLOC_TRIM_THRESHOLD_={2**62}")
NUM_TEST_IMAGES = 10_000


def run_airbench(prefix: Sequence[str], seed: int) -> tuple[float, int, float, float]:
    """Run `airbench94.py` behind `prefix`; return accuracy, number of test images, CPU seconds and wall seconds."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "airbench.json"
        command = [*prefix, sys.executable, "benchmarks/airbench94.py"]
        cpu_s, wall_s = measure([*command, f"--seed={seed}", f"--json={result}"])
        return json.loads(result.read_text(encoding="utf-8"))["acc"], NUM_TEST_IMAGES, cpu_s, wall_s


def main() -> None:
    """Run the sides and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "cpu94")
    args = parser.parse_args()
    sides: dict[str, Side] = {
        OURS: [f"experiment={OURS}"],
        OTHER: partial(run_airbench, ()),
        OTHER_KEPT: partial(run_airbench, KEEP_FREED_MEMORY),
    }
    runs = run_sides(sides, args, "cpu94")
    figures = {side: summarize(runs, side) for side in sides}
    results = [difference(runs, OURS, other) for other in (OTHER, OTHER_KEPT)]
    ratios = {other: figures[OURS]["core_minutes"] / figures[other]["core_minutes"] for other in (OTHER, OTHER_KEPT)}
    store(args.json, args, runs, sides=figures, differences=results, ratios_of_core_minutes=ratios)
    print(*map(describe_difference, results), sep="\n")
    print(*(f"core-minutes: {ratio:.2f} of those of {other}" for other, ratio in ratios.items()), sep="\n")


if __name__ == "__main__":
    main()
