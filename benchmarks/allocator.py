"""Compare the CPU time of training steps with glibc's usual allocator and with `keep_freed_memory`.

    python benchmarks/allocator.py                  # 4 minutes of one core

Each network is trained on random pixels, with and without in turn, in processes of their own with one thread: only the
time of a step is compared, and no accuracy. Results go to benchmarks/results/allocator.json. Linux with glibc only.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from train_speed import PROJECT_ROOT, describe_environment

from imago.model.simple_cnn import SimpleCNN
from imago.model.torchvision_net import TorchvisionNet
from imago.model.whitened_resnet import WhitenedResNet
from imago.system import keep_freed_memory

# Network, batch size, side of the images in px, steps that are measured.
CASES: dict[str, tuple[Any, int, int, int]] = {
    "SimpleCNN": (lambda: SimpleCNN(10, 32), 128, 32, 100),
    "WhitenedResNet": (lambda: WhitenedResNet(10, 32, [64, 256, 256], 0.1), 512, 32, 8),
    "ResNet-18": (lambda: TorchvisionNet(10, 224, "resnet18"), 32, 224, 8),
}
SIDES = ("usual", "kept")


def train_steps(case: str, side: str) -> None:
    """Train for some steps and print ms of CPU time per image, page faults per step and the peak of memory in MB."""
    torch.set_num_threads(1)
    if side == "kept" and not keep_freed_memory():
        sys.exit("error: the C library is not glibc")
    build, batch_size, size_px, num_steps = CASES[case]
    net = build().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW([weight for weight in net.parameters() if weight.requires_grad], fused=True)
    labels = torch.zeros(batch_size, dtype=torch.int64)
    for step in range(num_steps + 2):
        if step == 2:  # the first ones allocate
            start = resource.getrusage(resource.RUSAGE_SELF)
        images = torch.randn(batch_size, 3, size_px, size_px).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(images)
        optimizer.zero_grad()
        cross_entropy(logits.float(), labels).backward()
        optimizer.step()
    end = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    faults = (end.ru_minflt - start.ru_minflt) / num_steps
    print(json.dumps([1000 * cpu_s / num_steps / batch_size, faults, end.ru_maxrss / 1024]))


def main() -> None:
    """Run all cases and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=PROJECT_ROOT / "benchmarks" / "results" / "allocator.json"
    )
    parser.add_argument("--child", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        train_steps(*args.child)
        return
    results = {}
    print(f"{'network':<16} {'usual':>12} {'kept':>12} {'ratio':>7}   peak memory")
    for case in CASES:
        found: dict[str, list[list[float]]] = {side: [] for side in SIDES}
        for _ in range(args.rounds):
            for side in SIDES:
                command = [sys.executable, __file__, "--child", case, side]
                found[side].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        medians = {side: [statistics.median(column) for column in zip(*found[side], strict=True)] for side in SIDES}
        (usual, _, usual_mb), (kept, _, kept_mb) = (medians[side] for side in SIDES)
        ratios = [ours[0] / theirs[0] for theirs, ours in zip(*found.values(), strict=True)]
        results[case] = {"rounds": found, "medians": medians, "ratio": kept / usual, "ratios": ratios}
        print(f"{case:<16} {usual:>9.3f} ms {kept:>9.3f} ms {kept / usual:>7.2f}   {usual_mb:.0f}, {kept_mb:.0f} MB")
    columns = "ms of CPU time per image, page faults per step, peak of resident memory in MB"
    content = {"environment": describe_environment(), "columns": columns, "cases": results}
    args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
