"""Compare the CPU time of an epoch with lightning-hydra-template: its own network, images, optimizer and batch size.

git clone https://github.com/ashleve/lightning-hydra-template ../theirs  # and install its requirements
python benchmarks/template.py --template ../theirs --python ../theirs/.venv/bin/python

Both sides run in turn, on one thread and in fp32, for one and for three epochs: the difference is the time of two
epochs, without start-up. The files of MNIST must be in data/MNIST/raw of the template. The other side trains on 55,000
images and validates on 5,000, as here; its network gets one channel, here three, which makes the first layer larger.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from train_speed import PROJECT_ROOT, describe_environment

EPOCHS = (1, 3)
NETWORK = "src.models.components.simple_dense_net.SimpleDenseNet"
SIZES = {"input_size": 3 * 28 * 28, "lin1_size": 64, "lin2_size": 128, "lin3_size": 64, "output_size": 10}


def commands(template: Path, python: str, logs: str, epochs: int) -> dict[str, tuple[list[str], Path, dict[str, str]]]:
    """Return the command of each side with its directory and environment variables."""
    theirs = [python, "src/train.py", "trainer=cpu", "trainer.min_epochs=1", f"trainer.max_epochs={epochs}"]
    ours = [sys.executable, "src/train.py", "data=torchvision", "data.name=MNIST", f"data.data_dir={template / 'data'}"]
    ours += ["data.batch_size=128", "data.val_fraction=0.0833", "augment=none", f"model._target_={NETWORK}"]
    ours += [f"model.{name}={size}" for name, size in SIZES.items()]
    ours += ["optimizer=adam", "trainer.precision=32-true", "threads=1", f"trainer.max_epochs={epochs}"]
    return {
        "template": ([*theirs, "test=False", f"paths.log_dir={logs}/theirs"], template, {}),
        "imago": ([*ours, "test=false", f"paths.log_dir={logs}/ours"], PROJECT_ROOT, {"PYTHONPATH": str(template)}),
    }


def cpu_seconds(command: list[str], directory: Path, variables: dict[str, str]) -> float:
    """Run a command and return the CPU time of its processes."""
    before = os.times()
    done = subprocess.run(
        command, cwd=directory, env=os.environ | {"OMP_NUM_THREADS": "1"} | variables, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Measure both sides and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, required=True, help="a clone of the template")
    parser.add_argument("--python", required=True, help="the Python of its environment")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    epoch_s: dict[str, list[float]] = {"template": [], "imago": []}
    with tempfile.TemporaryDirectory() as logs:
        for _ in range(args.rounds):
            for side in epoch_s:
                used = [cpu_seconds(*commands(args.template.resolve(), args.python, logs, n)[side]) for n in EPOCHS]
                epoch_s[side].append(round((used[1] - used[0]) / (EPOCHS[1] - EPOCHS[0]), 2))
                print(f"{side}: {epoch_s[side][-1]} CPU seconds per epoch", flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=args.template, capture_output=True, text=True).stdout
    ratio = statistics.median(epoch_s["template"]) / statistics.median(epoch_s["imago"])
    print(f"ratio of the medians: {ratio:.2f}")
    content = {"cpu_s_per_epoch": epoch_s, "ratio": round(ratio, 2), "template_commit": commit.strip()}
    file = PROJECT_ROOT / "benchmarks" / "results" / "template.json"
    file.write_text(json.dumps(content | {"environment": describe_environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
