"""Measure the time of a checkpoint save of 100 MB against a plain `torch.save` with fsync.

python benchmarks/save_cost.py            # prints the results and writes benchmarks/results/save_cost.json
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from imago.runs.checkpoint import AtomicCheckpointIO

NUM_ROUNDS = 15
RESULT_FILE = Path(__file__).parent / "results" / "save_cost.json"


def make_checkpoint() -> dict:
    """Return weights and two Adam moments each: 100 MB in 60 tensors."""
    weights = {f"layer{number}": torch.randn(416_000) for number in range(20)}
    moments = {n: {"exp_avg": w.clone(), "exp_avg_sq": w.square()} for n, w in enumerate(weights.values())}
    return {"state_dict": weights, "optimizer_states": [{"state": moments}]}


def save_plainly(checkpoint: dict, path: Path) -> None:
    """Save with `torch.save` and fsync."""
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def measure_save(save: Callable[[dict, Path], None], checkpoint: dict, path: Path) -> float:
    """Return the seconds of one save over an existing file."""
    start = perf_counter()
    save(checkpoint, path)
    return perf_counter() - start


def main() -> None:
    """Measure both alternately, so that a busy disk slows both, and compare the medians."""
    checkpoint = make_checkpoint()
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(dir=".") as directory:
        for _ in range(NUM_ROUNDS):
            theirs.append(measure_save(save_plainly, checkpoint, Path(directory) / "plain.ckpt"))
            ours.append(measure_save(AtomicCheckpointIO().save_checkpoint, checkpoint, Path(directory) / "last.ckpt"))
        size = (Path(directory) / "last.ckpt").stat().st_size
    results = {
        "megabytes": round(size / 1e6, 1),
        "rounds": NUM_ROUNDS,
        "ours_s": round(statistics.median(ours), 4),
        "torch_save_fsync_s": round(statistics.median(theirs), 4),
        "ratio_of_medians": round(statistics.median(ours) / statistics.median(theirs), 3),
        "median_of_ratios": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3),
    }
    RESULT_FILE.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
