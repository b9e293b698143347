"""Train the same short runs with two checkouts and compare their checkpoints bit for bit.

    python benchmarks/same_weights.py ../other-checkout
    python benchmarks/same_weights.py ../other-checkout --runs simple_cnn two_processes

Four runs on the drawn shapes, on the CPU with a fixed number of threads: SimpleCNN; ResNet-18 from random weights;
SimpleCNN with MixUp, EMA and accumulated gradients; SimpleCNN in two processes. A refactoring keeps every tensor of
`last.ckpt` and `best.ckpt`: weights, buffers, optimizer state and averaged weights, compared in their order, so that
keys may be renamed. Both checkouts run with this interpreter. The exit code is 1 if a tensor differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from train_speed import PROJECT_ROOT, describe_environment

RUNS = {
    "simple_cnn": [],
    "resnet18": ["model=resnet18", "model.weights=null", "augment=standard", "data.batch_size=16"],
    "mixup_ema": ["augment.mixup_alpha=0.2", "callbacks=[default,ema]", "trainer.accumulate_grad_batches=2"],
    "two_processes": ["trainer.devices=2"],
}
SHORT_RUN = [
    *("data=shapes", "trainer.accelerator=cpu", "trainer.max_epochs=2"),
    *("trainer.limit_train_batches=20", "trainer.limit_val_batches=4", "trainer.limit_test_batches=2"),
]
SECTIONS = ("state_dict", "optimizer_states", "averaging_state", "current_model_state")


def train(checkout: Path, name: str, directory: Path, threads: int) -> Path:
    """Train one of RUNS with the code of a checkout and return the directory of its checkpoints.

    Raises:
        RuntimeError: if the run fails, with what it printed.
    """
    done = subprocess.run(
        [sys.executable, "src/train.py", *SHORT_RUN, *RUNS[name], f"run_name={name}"]
        + [f"paths.data_dir={directory}/data", f"paths.log_dir={directory}/logs"],
        cwd=checkout,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{checkout}: {name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return directory / "logs" / "train" / name / "checkpoints"


def tensors(node: Any) -> Iterator[Tensor]:
    """Iterate over the tensors of nested dicts and lists, in their order; numbers count as tensors."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, float | int):
        yield torch.tensor(node)
    elif isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            yield from tensors(value)


def is_equal(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether type, shape and all bits are equal."""
    ours_bytes, theirs_bytes = (value.contiguous().flatten().view(torch.uint8) for value in (ours, theirs))
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours_bytes, theirs_bytes)


def compare(ours: Path, theirs: Path) -> dict[str, Any]:
    """Return step, number of tensors and number of different ones of two checkpoint files."""
    one, other = (torch.load(path, weights_only=True, map_location="cpu") for path in (ours, theirs))
    pairs = [(list(tensors(one.get(section))), list(tensors(other.get(section)))) for section in SECTIONS]
    num_different = sum(
        sum(not is_equal(*pair) for pair in zip(a, b, strict=False)) + abs(len(a) - len(b)) for a, b in pairs
    )
    num_tensors = sum(len(a) for a, _ in pairs)
    return {"global_step": one["global_step"], "num_tensors": num_tensors, "num_different": num_different}


def parse_args() -> argparse.Namespace:
    """Read the command line; the help text is the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT", help="a checkout of another commit")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process (default: 1)")
    default = PROJECT_ROOT / "benchmarks" / "results" / "same_weights.json"
    parser.add_argument("--json", type=Path, metavar="FILE", default=default, help="where the results are written")
    args = parser.parse_args()
    if not (args.other / "src" / "train.py").is_file():
        parser.error(f"{args.other} has no src/train.py; give the root of a checkout")
    return args


def main() -> None:
    """Train, compare, print a table and store it."""
    args = parse_args()
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(describe, cwd=args.other, capture_output=True, text=True, check=False).stdout.strip()
    rows = []
    print(f"{'run':<14} {'checkpoint':<11} {'step':>5} {'tensors':>8} {'different':>10}")
    with tempfile.TemporaryDirectory() as directory:
        for name in args.runs:
            ours = train(PROJECT_ROOT, name, Path(directory) / "ours", args.threads)
            theirs = train(args.other.resolve(), name, Path(directory) / "other", args.threads)
            for file in ("last.ckpt", "best.ckpt"):
                row = {"run": name, "checkpoint": file, **compare(ours / file, theirs / file)}
                rows.append(row)
                print("{:<14} {:<11} {:>5} {:>8} {:>10}".format(*row.values()), flush=True)
    report = describe_environment() | {"num_threads": args.threads, "other_git_commit": commit or "none", "runs": rows}
    args.json.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(1 if any(row["num_different"] for row in rows) else 0)


if __name__ == "__main__":
    main()
