"""Measure data=litdata: accuracy through chunks, growth from 1,000 to 1,000,000 images, and reading rate.

    IMAGO_DATA_DIR=data python benchmarks/streaming.py                        # all parts; 15 + 10 + 5 minutes, 5 GB
    python benchmarks/streaming.py --parts growth --sizes 1000 10000          # a part of them, smaller
    python benchmarks/streaming.py --plot                                     # draw the stored results again

quality   SimpleCNN on real CIFAR-10, three seeds: from the array; from chunks in the order of CIFAR-10; from chunks
          sorted by class, with windows of one chunk, and with the window that the start table then recommends.
growth    1,000 to 1,000,000 JPEG images of 64 px in one directory: seconds from opening it to the first batch with two
          workers, CPU time per image of one process, resident memory of the main process, private memory of a worker.
rate      images per second of one process without workers, in turns: data=litdata, torchvision's ImageFolder, and
          litdata's StreamingDataset with its own shuffle; all decode the same JPEG files of 64 px to uint8 batches.

Results go to benchmarks/results/streaming.json, and the plot beside it. Linux only.
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch.utils.data import DataLoader
from train_speed import PROJECT_ROOT, describe_environment

from imago.data.litdata_datamodule import LitDataModule
from imago.instantiate import build
from imago.paths import register_resolvers
from imago.statistics.intervals import mean_interval, wilson_interval

RESULTS = PROJECT_ROOT / "benchmarks" / "results" / "streaming.json"
PARTS = ("quality", "growth", "rate")
NUM_DRAWN = 1_000  # different images of the growth part, which repeat
NUM_TIMED = 2_000  # images whose CPU time is measured
BATCH_SIZE = 128
CIFAR_CHUNK_BYTES = 3_108_000  # exactly 1,000 images
NAIVE_WINDOW = 1
MIB = 2**20


def open_data(root: Path, *overrides: str) -> LitDataModule:
    """Set up data=litdata as a training run does."""
    register_resolvers()
    typed = ["data=litdata", f"data.root={root}", f"data.batch_size={BATCH_SIZE}", "augment=none", *overrides]
    with initialize_config_dir(str(PROJECT_ROOT / "configs")):
        cfg = compose("train", overrides=typed)
    data: LitDataModule = build(cfg.data, base=LitDataModule, _recursive_=False)
    data.set_up_data()
    return data


# Accuracy


def measure_quality(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Train on the array and on chunks; return the test accuracies by case and their differences from the array's."""
    sources = {"in order": directory / "in-order", "sorted": directory / "sorted"}
    for name, root in sources.items():
        write_cifar(root, is_sorted=name == "sorted")
    note = open_data(sources["sorted"], f"data.shuffle_window={NAIVE_WINDOW}").shuffle_note()
    window = int(note.partition("data.shuffle_window=")[2].split()[0])
    cases = {
        "array": ["data=cifar10"],
        "chunks in order": ["data=litdata", f"data.root={sources['in order']}", "data.shuffle_window=4"],
        "sorted, window 1": ["data=litdata", f"data.root={sources['sorted']}", f"data.shuffle_window={NAIVE_WINDOW}"],
        f"sorted, window {window}": ["data=litdata", f"data.root={sources['sorted']}", f"data.shuffle_window={window}"],
    }
    accuracies: dict[str, list[float]] = {name: [] for name in cases}
    for seed in range(args.seeds):
        for number, (name, settings) in enumerate(cases.items()):
            accuracies[name].append(train(args, directory / "logs", f"{number}-{seed}", seed, settings))
            print(f"{name}, seed {seed}: {accuracies[name][-1]:.2%}", flush=True)
    return {"epochs": args.epochs, "note": note, "cases": {name: compared(accuracies, name) for name in cases}}


def write_cifar(root: Path, is_sorted: bool) -> None:
    """Write the arrays of CIFAR-10 in 50 chunks of training images, in their order or sorted by class."""
    from write_litdata import open_source, write_chunks, write_sidecar

    class_names, published = open_source("cifar10")
    for split, samples in published.items():
        order = np.argsort(samples.labels, kind="stable") if is_sorted else np.arange(len(samples))
        write_chunks(root / split, samples.take(order), CIFAR_CHUNK_BYTES)
        write_sidecar(root / split, class_names)


def train(args: argparse.Namespace, logs: Path, name: str, seed: int, settings: list[str]) -> float:
    """Train SimpleCNN; return the test accuracy."""
    fixed = ["experiment=cifar10_simple_cnn", f"trainer.max_epochs={args.epochs}", f"seed={seed}", "threads=1"]
    loading = ["data.batch_size=128", "data.val_fraction=0.1", "trainer.accelerator=cpu", f"run_name={name}"]
    command = [sys.executable, "src/train.py", *fixed, *settings, *loading, *args.override, f"paths.log_dir={logs}"]
    subprocess.run(command, cwd=PROJECT_ROOT, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((logs / "train" / name / "summary.json").read_text())
    return float(summary["test"]["acc"])


def compared(accuracies: dict[str, list[float]], name: str) -> dict[str, Any]:
    """Return mean and intervals of a case, and of its difference from the array, paired by seed."""
    own = accuracies[name]
    gaps = [accuracy - other for accuracy, other in zip(own, accuracies["array"], strict=True)]
    num_images = 10_000 * len(own)
    return {
        "test_acc": own,
        "mean": statistics.fmean(own),
        "interval_95": wilson_interval(round(statistics.fmean(own) * num_images), num_images),
        "minus_array": statistics.fmean(gaps),
        "minus_array_interval_95": mean_interval(gaps),
    }


# Growth


def write_jpegs(root: Path, num_images: int) -> None:
    """Write JPEG images of 64 px by litdata's writer in chunks of about 4 MB, with their imago.json."""
    from litdata import Image as StoredImage
    from litdata.streaming.writer import BinaryWriter
    from write_litdata import write_sidecar

    writer = BinaryWriter(str(root), chunk_bytes=4_000_000)
    for index, content in enumerate(islice(cycle(jpegs(NUM_DRAWN)), num_images)):
        writer[index] = {"image": StoredImage(bytes=content), "label": index % 10}
    writer.done()
    writer.merge()
    write_sidecar(root, [f"class {number}" for number in range(10)])


def jpegs(num_images: int) -> list[bytes]:
    """Draw images of 64 px, blobs of color, as JPEG files."""
    noise, contents = np.random.default_rng(0), []
    for _ in range(num_images):
        coarse = Image.fromarray(noise.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        file = BytesIO()
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    return contents


def measure_growth(args: argparse.Namespace, directory: Path) -> list[dict[str, Any]]:
    """Measure each size in a process of its own."""
    rows = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory(dir=directory) as root:
            write_jpegs(Path(root), size)
            rows.append({"num_images": size} | in_child(partial(opening_costs, Path(root))))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def in_child(function: Callable[[], Any]) -> Any:
    """Call a function in a new process, which has loaded nothing of the others."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(function).result()


def opening_costs(root: Path) -> dict[str, float]:
    """Return seconds to the first batch, CPU time per image, and memory: resident of this process, a worker's own."""
    torch.set_num_threads(1)
    start_s = time.perf_counter()
    data = open_data(root, "data.num_workers=2")
    data.preprocess  # noqa: B018  # computes mean and std, as a run does before its first batch
    batches = iter(data.train_dataloader())
    next(batches)
    first_batch_s = time.perf_counter() - start_s
    for _ in islice(batches, 100):
        pass
    workers = [
        process for process in psutil.Process().children() if "resource_tracker" not in " ".join(process.cmdline())
    ]
    memory = {
        "main_mib": psutil.Process().memory_info().rss / MIB,
        "worker_mib": max(process.memory_full_info().uss for process in workers) / MIB,
    }
    alone = open_data(root, "data.num_workers=0")
    alone.preprocess = data.preprocess
    single = iter(alone.train_dataloader())
    next(single)
    num_batches, start_s = 0, time.process_time()
    for _ in islice(single, NUM_TIMED // BATCH_SIZE):
        num_batches += 1
    cpu_ms = 1e3 * (time.process_time() - start_s) / max(1, num_batches * BATCH_SIZE)
    return {"first_batch_s": first_batch_s, "cpu_ms_per_image": cpu_ms, **memory}


# Reading rate


def measure_rates(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Read the same images in three ways, in turns; return images per second and the ratios to data=litdata."""
    write_jpegs(directory / "chunks", args.num_rate)
    contents = list(islice(cycle(jpegs(NUM_DRAWN)), args.num_rate))
    for index, content in enumerate(contents):
        file = directory / "folder" / str(index % 10) / f"{index:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    sides = {
        "data=litdata": partial(own_batches, directory / "chunks"),
        "torchvision ImageFolder": partial(folder_batches, directory / "folder"),
        "litdata StreamingDataset": partial(litdata_batches, directory / "chunks", directory / "cache"),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(args.rounds):
        for name in sorted(sides, reverse=number % 2 == 1):
            rates[name].append(in_child(partial(rate, sides[name])))
    own = rates["data=litdata"]
    return {
        name: {
            "images_per_s": statistics.median(values),
            "rounds": values,
            "relative": statistics.median(value / other for value, other in zip(values, own, strict=True)),
        }
        for name, values in rates.items()
    }


def rate(batches: Callable[[], Iterator[Any]]) -> float:
    """Return images per second of an epoch, without the first batch."""
    torch.set_num_threads(1)
    num_images, start_s = 0, 0.0
    for images in batches():
        if start_s:
            num_images += len(images)
        else:
            start_s = time.perf_counter()
    return num_images / (time.perf_counter() - start_s)


def own_batches(root: Path) -> Iterator[torch.Tensor]:
    """Yield the training batches of data=litdata, uint8."""
    data = open_data(root, "data.num_workers=0")
    data.preprocess  # noqa: B018
    for images, _ in data.train_dataloader():
        yield images


def folder_batches(root: Path) -> Iterator[torch.Tensor]:
    """Yield the batches of torchvision's ImageFolder, uint8."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    for images, _ in DataLoader(ImageFolder(str(root), PILToTensor()), BATCH_SIZE, shuffle=True, drop_last=True):
        yield images


def litdata_batches(root: Path, cache: Path) -> Iterator[torch.Tensor]:
    """Yield the batches of litdata's own dataset with its own shuffle, uint8."""
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(root), cache_dir=str(cache), shuffle=True, drop_last=True)
    for batch in StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=0):
        yield batch["image"]


# Results


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw the accuracy by case and the growth."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), dpi=100, layout="constrained")
    cases = results["quality"]["cases"]
    means = [100 * case["mean"] for case in cases.values()]
    errors = np.abs(100 * np.array([case["interval_95"] for case in cases.values()]).T - means)
    axes[0].errorbar(means, range(len(cases)), xerr=errors, fmt="o", capsize=3)
    axes[0].set(
        yticks=range(len(cases)),
        yticklabels=list(cases),
        xlabel="test accuracy, %",
        title=f"CIFAR-10, n = {len(next(iter(cases.values()))['test_acc'])} seeds",
    )
    axes[0].invert_yaxis()
    sizes = [row["num_images"] for row in results["growth"]]
    for name, label in (("first_batch_s", "first batch, s"), ("cpu_ms_per_image", "CPU per image, ms")):
        axes[1].plot(sizes, [row[name] for row in results["growth"]], marker="o", label=label)
    for name, label in (("main_mib", "main process"), ("worker_mib", "worker, its own")):
        axes[2].plot(sizes, [row[name] for row in results["growth"]], marker="o", label=label)
    for panel, title in ((axes[1], "time"), (axes[2], "memory, MiB")):
        top = max(max(line.get_ydata()) for line in panel.lines)
        panel.set(xscale="log", ylim=(0, 1.1 * top), xlabel="images of 64 px", title=title)
        panel.legend(frameon=False)
    figure.savefig(file)


def main() -> None:
    """Measure, store after each part, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="of each training")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="a setting of all runs")
    parser.add_argument("--sizes", nargs="*", type=int, default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--num-rate", type=int, default=20_000, help="images of the part rate")
    parser.add_argument("--rounds", type=int, default=5, help="of the part rate")
    parser.add_argument("--plot", action="store_true", help="only draw the stored results")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    results = json.loads(args.json.read_text()) if args.json.exists() else {}
    measures = {"quality": measure_quality, "growth": measure_growth, "rate": measure_rates}
    for part in () if args.plot else args.parts:
        with tempfile.TemporaryDirectory() as directory:
            results[part] = measures[part](args, Path(directory))
        command = " ".join(["benchmarks/streaming.py", *sys.argv[1:]])
        results.setdefault("measured", {})[part] = {"command": command, **describe_environment()}
        args.json.write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps(results[part], indent=2))
    if all(part in results for part in PARTS[:2]):
        draw(results, args.json.with_suffix(".png"))


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT_ROOT / "tools"))  # for write_litdata
    main()
