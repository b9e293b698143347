"""Measure whether time and memory stay flat as datasets, classes, epochs and processes grow.

    IMAGO_DATA_DIR=data python benchmarks/growth.py
    IMAGO_DATA_DIR=data python benchmarks/growth.py --cases files --rounds 1 --json /tmp/growth.json

Every measurement runs in a process of its own, in turn, for several rounds; the table has medians.

    memory     images of CIFAR-10 in memory, repeated to N: the split, the first batch and the other batches of an epoch
    files      N JPEG files of 64 px, made of the photographs of hymenoptera_data: listing, first batch, other batches
    epochs     the same 50,000 images for 20 epochs: each epoch, and the memory after it
    classes    `train.py` and `eval.py` with a linear network on 30,000 images of 8 px, of K classes
    processes  `train.py` with SimpleCNN on 20,000 images of CIFAR-10, in 1 and in 2 processes

Writes growth.json and growth.png. Linux only; the case memory needs 12 GB of memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import build_data
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import DataLoader
from train_speed import PROJECT_ROOT, adopt_orphans, describe_environment, measure

from imago.data.dataset import LabeledArray, numbered_names
from imago.text import table_lines

SIZES: dict[str, tuple[int, ...]] = {
    "memory": (1_000, 10_000, 100_000, 1_000_000),
    "files": (1_000, 10_000, 100_000),
    "epochs": (1, 5, 10, 20),
    "classes": (10, 100, 1_000, 10_000),
    "processes": (1, 2),
}
UNITS = {"memory": "images", "files": "files", "epochs": "epochs", "classes": "classes", "processes": "processes"}
MAX_IMAGES = {"memory": 100_000, "files": 2_000}  # of an epoch that are read to measure the cost of one
NUM_PIXELS = 3 * 32**2


class Noise(torch.utils.data.Dataset):
    """20,000 training, 5,000 validation or 5,000 test images of 8 px, of `num_classes` classes."""

    def __init__(self, num_classes: int, num_images: int) -> None:
        self.images = np.random.default_rng(num_images).integers(0, 256, (num_images, 8, 8, 3), np.uint8)
        self.targets = list(np.arange(num_images) % num_classes)
        self.classes = [f"class {number}" for number in range(num_classes)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and its label."""
        return Image.fromarray(self.images[index]), int(self.targets[index])


class MeanColor(torch.nn.Module):
    """A linear layer on the mean color: images (N, 3, H, W) to logits (N, `num_classes`)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.head(images.mean((2, 3)))


def memory_bytes() -> int:
    """Return the resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def read_epoch(loader: DataLoader, max_images: int) -> dict[str, float]:
    """Return the CPU seconds until the first batch, and CPU microseconds per image of the others."""
    start_s = time.process_time()
    batches = iter(loader)
    next(batches)
    first_s, cpu_s, num_images = time.process_time() - start_s, time.process_time(), 0
    for images, _ in batches:
        num_images += len(images)
        if num_images >= max_images:
            break
    return {"first_batch_s": first_s, "us_per_image": 1e6 * (time.process_time() - cpu_s) / num_images}


def measure_memory(size: int) -> dict[str, float]:
    """Measure the case memory; the memory is that beside the images and their padded copies."""
    data = build_data("data=cifar10", "augment=crop_flip", "data.val_fraction=0.1")
    samples = data.splits.train
    images = np.resize(samples.images, (size, *samples.images.shape[1:]))
    labels = np.resize(samples.labels, size)
    before = memory_bytes()
    start_s = time.process_time()
    published = {"train": LabeledArray(images, labels, numbered_names("train", size)), "test": data.splits.test}
    class_names = data.class_names
    data.load_dataset = lambda: (class_names, published)  # type: ignore[method-assign]
    del data.splits
    data.set_up_data()
    split_s = time.process_time() - start_s
    loader = data.train_dataloader()
    result = read_epoch(loader, MAX_IMAGES["memory"])
    # Of nine tenths: a copy, as val is split off, and one with 4 px of zeros on each side.
    copies = 0.9 * size * (NUM_PIXELS + 3 * 40**2) + 0.1 * size * NUM_PIXELS
    return {
        **result,
        "setup_us_per_image": 1e6 * split_s / size,
        "other_memory_mb": (memory_bytes() - before - copies) / 1e6,
    }


def measure_files(size: int) -> dict[str, float]:
    """Measure the case files; the folder is $GROWTH_FOLDER/SIZE."""
    before, start_s = memory_bytes(), time.process_time()
    data = build_data(
        "data=image_folder", f"data.root={os.environ['GROWTH_FOLDER']}/{size}", "augment=standard", "data.cache=none"
    )
    setup_s = time.process_time() - start_s
    result = read_epoch(data.train_dataloader(), MAX_IMAGES["files"])
    return {**result, "setup_s": setup_s, "memory_mb": (memory_bytes() - before) / 1e6}


def measure_epochs(size: int) -> dict[str, float]:
    """Measure epoch number `size` of the case epochs, and the memory after it."""
    data = build_data("data=cifar10", "augment=crop_flip")
    loader = data.train_dataloader()
    for epoch in range(size):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        result = read_epoch(loader, len(data.splits.train))
    return {**result, "memory_mb": memory_bytes() / 1e6}


def run_commands(settings: list[str], evaluates: bool) -> dict[str, float]:
    """Train, and evaluate if asked to; return CPU and wall seconds and the peak memory of the largest process."""
    with tempfile.TemporaryDirectory() as directory:
        run = ["run_name=run", f"paths.log_dir={directory}"]
        cpu_s, wall_s = measure([sys.executable, "src/train.py", *settings, *run])
        result = {"train_cpu_s": cpu_s, "train_wall_s": wall_s}
        if evaluates:
            command = [sys.executable, "src/eval.py", f"run={directory}/train/run", "trust=[growth]"]
            result["eval_cpu_s"], _ = measure(command)
    return {**result, "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6}


def measure_classes(size: int) -> dict[str, float]:
    """Measure the case classes."""
    splits = {"train": 20_000, "val": 5_000, "test": 5_000}
    if size > splits["val"]:
        splits = {"train": 20_000, "val": 10_000, "test": 10_000}
    data = [f"data.{split}={{_target_:growth.Noise,num_classes:{size},num_images:{n}}}" for split, n in splits.items()]
    settings = ["data=dataset", *data, "model={_target_:growth.MeanColor}", "trainer.max_epochs=1", "threads=1"]
    return run_commands(settings, evaluates=True)


def measure_processes(size: int) -> dict[str, float]:
    """Measure the case processes."""
    settings = ["trainer.max_epochs=1", "trainer.limit_train_batches=156", "threads=1", "trainer.accelerator=cpu"]
    return run_commands([*settings, f"trainer.devices={size}"], evaluates=False)


def write_files(folder: Path) -> None:
    """Write the files of the case files, in ten classes: thumbnails of photographs, each with bytes of its own."""
    source = Path(os.environ["IMAGO_DATA_DIR"]) / "hymenoptera_data"
    encoded = []
    for photo in sorted(source.rglob("*.jpg")):
        with Image.open(photo) as image, tempfile.TemporaryFile() as file:
            image.convert("RGB").resize((64, 64)).save(file, "JPEG", quality=90)
            file.seek(0)
            encoded.append(file.read())
    for size in SIZES["files"]:
        for number in range(size):
            path = folder / str(size) / f"class_{number % 10}" / f"{number:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded[number % len(encoded)] + number.to_bytes(4, "big"))


def readings(case: str, rounds: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the size and the result of each measurement, in turn."""
    for _ in range(rounds):
        for size in SIZES[case]:
            command = [sys.executable, __file__, "--measure", case, str(size)]
            done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{case} {size}: {done.stderr[-2000:]}")
            result = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{case:>10} {size:>9,} " + "  ".join(f"{name} {value:,.3f}" for name, value in result.items()),
                flush=True,
            )
            yield size, result


def medians(case: str, rounds: int) -> dict[int, dict[str, float]]:
    """Return the medians over the rounds, by size."""
    by_size: dict[int, list[dict[str, float]]] = {}
    for size, result in readings(case, rounds):
        by_size.setdefault(size, []).append(result)
    return {
        size: {name: statistics.median(result[name] for result in results) for name in results[0]}
        for size, results in by_size.items()
    }


def print_table(case: str, results: dict[int, dict[str, float]]) -> None:
    """Print the medians of a case."""
    names = list(next(iter(results.values())))
    rows = [[f"{size:,}", *(f"{result[name]:,.4g}" for name in names)] for size, result in results.items()]
    print(*table_lines([[UNITS[case], *(name.replace("_", " ") for name in names)], *rows]), sep="\n", flush=True)


def plot(cases: dict[str, Any], file: Path) -> None:
    """Draw each result, as it is stored, relative to that of the smallest size."""
    figure = Figure(figsize=(4 * len(cases), 4), dpi=110, layout="constrained")
    for axes, (case, stored) in zip(np.ravel(figure.subplots(1, len(cases))), cases.items(), strict=True):
        results = {int(size): result for size, result in stored["medians"].items()}
        first = next(iter(results.values()))
        for name, value in first.items():
            if min(result[name] for result in results.values()) <= 0:
                continue  # less memory than before: what was freed has been used again
            axes.plot(
                [*results], [result[name] / value for result in results.values()], "o-", label=name.replace("_", " ")
            )
        axes.set(xscale="log", yscale="log", title=case, xlabel=UNITS[case])
        axes.set_ylim(0.3, max(3.0, axes.get_ylim()[1]))
        axes.legend(fontsize=8)
    np.ravel(figure.axes)[0].set_ylabel("relative to the smallest")
    figure.savefig(file)


def main() -> None:
    """Measure, print, draw and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=SIZES, default=list(SIZES), help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each size (default: 3)")
    default = PROJECT_ROOT / "benchmarks" / "results" / "growth.json"
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=default, help="output file; the figure is beside it"
    )
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        torch.set_num_threads(1)
        adopt_orphans()
        os.environ["PYTHONPATH"] = str(PROJECT_ROOT / "benchmarks")
        print(json.dumps(globals()[f"measure_{args.measure[0]}"](int(args.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GROWTH_FOLDER"] = folder
        if "files" in args.cases:
            write_files(Path(folder))
        stored = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
        for case in args.cases:  # the others keep the results of an earlier run
            results = medians(case, args.rounds)
            print_table(case, results)
            stored[case] = {"measured": {**describe_environment(), "rounds": args.rounds}, "medians": results}
            content = json.dumps(stored, indent=2) + "\n"
            args.json.write_text(content, encoding="utf-8")
            plot(json.loads(content), args.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
