"""Measure the speed and the accuracy of bf16 against fp32.

    IMAGO_DATA_DIR=data python benchmarks/precision.py
    python benchmarks/precision.py --only step

Requires `make setup`.

step: one training step of ResNet-18 with a stem for 32 px, in this process: bf16 autocast, channels_last and a fused
AdamW against plain fp32. CPU seconds of the process in alternating order; ratios are computed within a round.
accuracy: SimpleCNN on CIFAR-10 with trainer.precision=bf16-mixed and 32-true, paired by seed and by image.
"""

import argparse
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch
from paired import (
    add_arguments,
    describe_difference,
    difference,
    difference_on_images,
    run_sides,
    store,
    summarize,
)
from torch import nn

from imago.model.torchvision_net import TorchvisionNet

BF16, FP32 = "bf16-mixed", "32-true"


def build_network() -> nn.Module:
    """Return ResNet-18 as built by `model=resnet18 model.weights=null` for images of 32 px."""
    torch.manual_seed(0)
    return TorchvisionNet(num_classes=10, image_size=32, name="resnet18")


class Side:
    """A network with its optimizer and a batch of random images."""

    def __init__(self, is_fast: bool, batch_size: int) -> None:
        self.net = build_network()
        self.images, self.labels = torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
        if is_fast:
            self.net.to(memory_format=torch.channels_last)
            self.images = self.images.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, fused=is_fast)
        self.is_fast = is_fast

    def step(self) -> None:
        """Take one training step."""
        context: Any = torch.autocast("cpu", torch.bfloat16) if self.is_fast else nullcontext()
        with context:
            loss = nn.functional.cross_entropy(self.net(self.images), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def cpu_s(self, num_steps: int) -> float:
        """Return the CPU seconds of a step, averaged over `num_steps`."""
        start = time.process_time()
        for _ in range(num_steps):
            self.step()
        return (time.process_time() - start) / num_steps


def compare_steps(args: argparse.Namespace) -> dict[str, Any]:
    """Time both sides in alternating order and return seconds and ratios."""
    plain, fast = Side(False, args.batch_size), Side(True, args.batch_size)
    for side in (plain, fast):
        side.step()  # the first step allocates memory and compiles kernels
    rounds = []
    for index in range(args.rounds):
        order = (plain, fast) if index % 2 == 0 else (fast, plain)
        seconds = {side.is_fast: side.cpu_s(args.steps) for side in order}
        rounds.append((seconds[False], seconds[True]))
        print(f"round {index}: fp32 {seconds[False]:.2f} CPU s a step, fast {seconds[True]:.2f}", flush=True)
    ratios = [before / after for before, after in rounds]
    print(f"step ratio {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")
    return {
        "batch_size": args.batch_size,
        "num_threads": torch.get_num_threads(),
        "cpu_s_per_step": [{"fp32": before, "fast": after} for before, after in rounds],
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }


def main() -> None:
    """Run the selected parts and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["step", "accuracy"], help="run only this part")
    parser.add_argument("--batch-size", type=int, default=128, help="images of a step (default: 128)")
    parser.add_argument("--steps", type=int, default=5, help="consecutive steps of each side (default: 5)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of both sides (default: 5)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of SimpleCNN on CIFAR-10 (default: 4)")
    add_arguments(parser, "precision")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    runs = []
    if args.only != "accuracy":
        figures["step"] = compare_steps(args)
    if args.only != "step":
        both = ["model=simple_cnn", f"trainer.max_epochs={args.epochs}"]
        runs = run_sides({side: [*both, f"trainer.precision={side}"] for side in (BF16, FP32)}, args, "precision")
        figures |= {"epochs": args.epochs, "sides": {side: summarize(runs, side) for side in (BF16, FP32)}}
        figures["difference"] = difference(runs, BF16, FP32)
        figures["difference_on_images"] = difference_on_images(runs, BF16, FP32, args.log_dir)
        for result in (figures["difference"], figures["difference_on_images"]):
            print(describe_difference(result))
    store(args.json, args, runs, **figures)


if __name__ == "__main__":
    main()
