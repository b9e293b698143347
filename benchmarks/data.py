"""Compare the project's loaders with the per-sample pipelines of tutorials, as ratios within one run.

    IMAGO_DATA_DIR=data python benchmarks/data.py
    python benchmarks/data.py --rounds 3 --cases cifar jpeg_500
    python benchmarks/data.py --rounds 3 --cases cifar jpeg_500 jpeg_1000 --against ../other-checkout

With --against, the `benchmarks/data.py` of this and of another checkout run in turns, and the speeds of the project in
the two are compared instead.

Every measurement runs in a forked child process that prepares batches through a DataLoader with one intra-op thread and
no workers, so that CPU seconds count the whole work of one core. A round measures all sides of a case one after the
other, in alternating order; ratios are computed within a round.

    cifar     CIFAR-10, crop and flip: the project, torchvision v1 on PIL images, and a plain gather `X[indices]`.
              Also with jitter of brightness, contrast and saturation and with normalization, which the project
              computes per batch.
    jpeg_500  JPEG of 500 x 375 px, quality 90: random resized crop to 224 px and flip. The project without a cache,
              with data.cache=ram from the second epoch on, and PIL with torchvision v2, which also normalizes. The
              project's batches are uint8; normalizing them on the CPU is a case of its own.
    jpeg_1000 the same with 1000 x 750 px.
    overload  images per second of wall clock, alone and with three busy processes per core, the loader included;
              also a counting loop, which measures the share of the CPU that is left.
    memory    private memory of two workers, after epoch 2 and after the last one.

The JPEG images are the photographs of hymenoptera_data, resized; both datasets are in $IMAGO_DATA_DIR. Linux only.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2
from train_speed import PROJECT_ROOT, busy_processes, describe_environment

from imago.data.datamodule import ImageDataModule
from imago.instantiate import build
from imago.paths import register_resolvers
from imago.resources import available_cores

CASES = ("cifar", "jpeg_500", "jpeg_1000", "overload", "memory")
JITTER = ["augment.brightness=0.2", "augment.contrast=0.2", "augment.saturation=0.2"]
SCALE = (0.35, 1.0)  # of the random resized crop: augment=standard
JPEG_SIZES = {"jpeg_500": (500, 375), "jpeg_1000": (1000, 750)}
NUM_PIL_IMAGES = 4_000  # CIFAR images that the slow side prepares
MEMORY_EPOCHS = 8
NUM_COUNTED_STEPS = 50_000_000
NUM_BUSY_PER_CORE = 3  # busy processes per core under overload, the loader included
MIB = 2**20
# With glibc's own, variable thresholds the speed of large tensors depends on what was allocated before.
FIXED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**28), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


@dataclass(frozen=True)
class Check:
    """A target: the median over the rounds of speed `side` / speed `than`, between `least` and `most`."""

    side: str
    than: str
    least: float = 0.0
    most: float = float("inf")


CHECKS = {
    "cifar": [
        Check("project", "pil", least=60),
        Check("project", "gather", least=0.9),
        Check("project, jitter, normalized", "pil, jitter", least=15),
    ],
    "jpeg_500": [Check("project", "pil", least=1.4), Check("project, cached", "pil", least=9)],
    "jpeg_1000": [Check("project", "pil", least=1.6), Check("project, cached", "pil", least=9)],
    "overload": [
        Check("cifar alone", "cifar overloaded", most=3.5),
        Check("jpeg cached alone", "jpeg cached overloaded", most=3.5),
    ],
}


class PerSample(Dataset):
    """The pipeline of tutorials: one image at a time through a chain of transforms."""

    def __init__(self, samples: list, labels: np.ndarray, transform: Callable) -> None:
        self.images, self.labels, self.transform = samples, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Open the image if it is a file, and transform it."""
        sample = self.images[index]
        image = Image.open(sample).convert("RGB") if isinstance(sample, Path) else Image.fromarray(sample)
        return self.transform(image), int(self.labels[index])


def build_data(*overrides: str) -> ImageDataModule:
    """Build a data module as `train.py` does, with one process, and read the data."""
    register_resolvers()
    with initialize_config_dir(str(PROJECT_ROOT / "configs")):
        cfg = compose("train", overrides=[*overrides, "data.num_workers=0"])
    data = build(cfg.data)
    data.set_up_data()
    data.preprocess = data.default_preprocess()
    return data


def run_epochs(loader: DataLoader, count: int = 1, finish: Callable = lambda images, labels: images) -> int:
    """Iterate over the batches of `count` epochs, apply `finish` to each, and return the number of images."""
    num_images = 0
    for epoch in range(count):
        if hasattr(loader.batch_sampler, "set_epoch"):
            loader.batch_sampler.set_epoch(epoch)
        for images, labels in loader:
            num_images += len(finish(images, labels))
    return num_images


def measure(work: Callable[[], int], warm_up: Callable[[], object] = lambda: None, num_threads: int = 1) -> dict:
    """Run `work` in a forked child and return images per CPU-second and per second of wall clock.

    Raises:
        RuntimeError: if the child fails; it has printed the reason.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(num_threads)
        warm_up()
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        num_images = work()
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        sender.send({"per_cpu_s": num_images / cpu_s, "per_s": num_images / wall_s, "num_images": num_images})

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    if process.exitcode != 0 or not receiver.poll():
        raise RuntimeError(f"a measurement ended with exit code {process.exitcode}")
    return receiver.recv()


def cifar_sides() -> dict[str, Callable[[], dict]]:
    """Return the sides of case cifar."""
    plain, full = (build_data("data=cifar10", "augment=crop_flip", *more) for more in ([], JITTER))
    train = plain.splits.train
    pixels, labels = torch.from_numpy(np.array(train.images)), torch.from_numpy(train.labels)
    samples = list(np.ascontiguousarray(train.images[:NUM_PIL_IMAGES].transpose(0, 2, 3, 1)))
    crop_flip = [v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip()]
    to_tensor = [v1.ToTensor(), v1.Normalize(plain.preprocess.mean, plain.preprocess.std)]
    jitter = v1.ColorJitter(0.2, 0.2, 0.2)

    def per_sample(*transforms: Callable) -> dict:
        loader = DataLoader(PerSample(samples, train.labels, v1.Compose(transforms)), batch_size=128, shuffle=True)
        return measure(lambda: run_epochs(loader))

    def gather() -> int:
        order = torch.randperm(len(labels))
        return sum(len((pixels[part], labels[part])[0]) for _ in range(8) for part in order.split(128))

    loader, full_loader = plain.train_dataloader(), full.train_dataloader()
    finish = lambda images, labels: full.augment_batch(images, labels, (0, 0, 0))[0]  # noqa: E731
    return {
        "pil": lambda: per_sample(*crop_flip, *to_tensor),
        "gather": lambda: measure(gather, gather),
        "project": lambda: measure(lambda: run_epochs(loader, 8), lambda: run_epochs(loader)),
        "pil, jitter": lambda: per_sample(*crop_flip, jitter, *to_tensor),
        "project, jitter, normalized": lambda: measure(lambda: run_epochs(full_loader, 2, finish)),
    }


def jpeg_sides(folder: Path) -> dict[str, Callable[[], dict]]:
    """Return the sides of the cases jpeg_*."""
    decoding, cached = (folder_data(folder, cache) for cache in ("none", "ram"))
    mean, std = decoding.preprocess.mean, decoding.preprocess.std
    chain = v2.Compose(
        [
            v2.RandomResizedCrop(224, scale=SCALE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    train: Any = decoding.splits.train
    pil = DataLoader(PerSample(train.paths, train.labels, chain), batch_size=32, shuffle=True)
    ours, again = decoding.train_dataloader(), cached.train_dataloader()
    finish = lambda images, labels: cached.augment_batch(images, labels, (0, 0, 0))[0]  # noqa: E731
    return {
        # Pillow's default; `imago.images` makes it reuse the memory of an image for the next one.
        "pil": lambda: measure(lambda: run_epochs(pil), lambda: Image.core.set_blocks_max(0)),
        "project": lambda: measure(lambda: run_epochs(ours)),
        "project, cached": lambda: measure(lambda: run_epochs(again, 4), lambda: run_epochs(again)),
        "project, cached, normalized": lambda: measure(lambda: run_epochs(again, 4, finish), lambda: run_epochs(again)),
    }


def overload_sides(folder: Path) -> dict[str, Callable[[], dict]]:
    """Return the sides of case overload; the main process may use all cores, as in training."""
    cifar = build_data("data=cifar10", "augment=crop_flip").train_dataloader()
    jpeg = folder_data(folder, "ram").train_dataloader()
    cores = available_cores()

    def run(loader: DataLoader, count: int, num_busy: int) -> dict:
        with busy_processes(num_busy):
            return measure(lambda: run_epochs(loader, count), lambda: run_epochs(loader), cores)

    def count_up(num_busy: int) -> dict:
        with busy_processes(num_busy):
            return measure(_count_up)

    num_busy = NUM_BUSY_PER_CORE * cores - 1
    return {
        "counting alone": lambda: count_up(0),
        "counting overloaded": lambda: count_up(num_busy),
        "cifar alone": lambda: run(cifar, 30, 0),
        "cifar overloaded": lambda: run(cifar, 30, num_busy),
        "jpeg cached alone": lambda: run(jpeg, 20, 0),
        "jpeg cached overloaded": lambda: run(jpeg, 20, num_busy),
    }


def measure_memory(folder: Path) -> dict[str, float]:
    """Return the private memory of two workers in MiB, after the second and after the last epoch."""
    data = folder_data(folder, "ram")
    data.num_workers = 2
    loader = data.train_dataloader()
    sizes = []
    for _ in range(MEMORY_EPOCHS):
        run_epochs(loader)
        sizes.append(sum(_own_bytes(process.pid) for process in multiprocessing.active_children()) / MIB)
    return {"after_epoch_2": sizes[1], "after_last_epoch": sizes[-1]}


def _own_bytes(pid: int | None) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def folder_data(folder: Path, cache: str) -> ImageDataModule:
    """Build the data module of a folder of images; decode the images if they are cached."""
    data = build_data("data=image_folder", f"data.root={folder}", "augment=standard", f"data.cache={cache}")
    data.fill_cache(num_processes=1, num_epochs=10)
    return data


def _count_up() -> int:
    """Compute without data: the speed measures the share of the CPU that is left."""
    return sum(1 for _ in range(NUM_COUNTED_STEPS))


def write_jpegs(folder: Path, size: tuple[int, int], num_samples: int) -> None:
    """Write the photographs of hymenoptera_data in one size, in folders named after their classes."""
    source = Path(os.environ["IMAGO_DATA_DIR"]) / "hymenoptera_data" / "train"
    for path in sorted(source.rglob("*.jpg"))[::-1][:num_samples]:
        target = folder / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as sample:
            ImageOps.fit(sample.convert("RGB"), size, Image.Resampling.LANCZOS).save(target, quality=90)


def run_case(name: str, sides: dict[str, Callable[[], dict]], rounds: int) -> dict[str, Any]:
    """Measure the sides in alternating order, print medians and checks, and return all readings."""
    readings: dict[str, list[dict]] = {side: [] for side in sides}
    for round_ in range(rounds):
        for side in list(sides)[:: 1 if round_ % 2 == 0 else -1]:
            readings[side].append(sides[side]())
    unit = "per_s" if name == "overload" else "per_cpu_s"
    speeds = {side: [reading[unit] for reading in of_side] for side, of_side in readings.items()}
    for side, values in speeds.items():
        print(f"{name:>10}  {side:<28} {statistics.median(values):>12,.0f} images {unit.replace('_', ' ')}")
    return {"unit": unit, "readings": readings, "checks": [judge(name, check, speeds) for check in CHECKS[name]]}


def judge(name: str, check: Check, speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Compare a ratio with its target, print and return the result."""
    ratios = [ours / theirs for ours, theirs in zip(speeds[check.side], speeds[check.than], strict=True)]
    median = statistics.median(ratios)
    is_met = check.least <= median <= check.most
    target = f"at least {check.least:g}" if check.least else f"at most {check.most:g}"
    print(
        f"{name:>10}  {check.side} / {check.than}: {median:.2f} [{min(ratios):.2f}-{max(ratios):.2f}], {target}: "
        f"{'met' if is_met else 'NOT MET'}",
        flush=True,
    )
    wanted = {key: value for key, value in asdict(check).items() if value not in (0.0, float("inf"))}
    return wanted | {"median": median, "min": min(ratios), "max": max(ratios), "is_met": is_met}


def judge_memory(sizes: dict[str, float]) -> dict[str, Any]:
    """Check that the workers grow by at most 5 %, the uncertainty caused by the allocator."""
    growth = sizes["after_last_epoch"] / sizes["after_epoch_2"]
    is_met = growth <= 1.05
    print(
        f"{'memory':>10}  two workers: {sizes['after_epoch_2']:.0f} MiB after epoch 2, {sizes['after_last_epoch']:.0f} "
        f"after epoch {MEMORY_EPOCHS}: {'met' if is_met else 'NOT MET'}"
    )
    return sizes | {"growth": growth, "is_met": is_met}


def compare_checkouts(other: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmarks of the two checkouts in turns, print and return the ratios of the project's speeds."""
    ratios: dict[str, list[float]] = {}
    for round_ in range(args.rounds):
        of_round = {}
        for checkout in [PROJECT_ROOT, other][:: 1 if round_ % 2 == 0 else -1]:
            of_round[checkout] = run_benchmark(checkout, args)
        for side, speed in of_round[PROJECT_ROOT].items():
            ratios.setdefault(side, []).append(speed / of_round[other][side])
    for side, values in ratios.items():
        print(f"{side:<40} {statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]", flush=True)
    medians = {side: statistics.median(values) for side, values in ratios.items()}
    return {"against_git_commit": describe_environment(other)["git_commit"], "ratios": ratios, "medians": medians}


def run_benchmark(checkout: Path, args: argparse.Namespace) -> dict[str, float]:
    """Run the `benchmarks/data.py` of a checkout and return the median speed of the project on each side."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, checkout / "benchmarks/data.py", "--rounds", "3", "--cases", *args.cases]
        subprocess.run(
            [*command, "--json", file.name],
            env=os.environ | FIXED_MALLOC | {"PYTHONPATH": str(checkout / "src")},
            cwd=checkout,
            check=True,
        )
        cases = json.load(file)["cases"]
    return {
        f"{name}: {side.replace('normalised', 'normalized')}": statistics.median(x[case["unit"]] for x in readings)
        for name, case in cases.items()
        for side, readings in case["readings"].items()
        if side.startswith("project")
    }


def parse_args() -> argparse.Namespace:
    """Read the command line; the help text is the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="readings of each side (default: 5)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with the project in this checkout")
    parser.add_argument("--images", type=int, default=200, help="JPEG of each size (default: 200)")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=PROJECT_ROOT / "benchmarks/results/data.json",
        help="output file (default: benchmarks/results/data.json)",
    )
    args = parser.parse_args()
    if args.rounds < 3:
        parser.error(f"--rounds={args.rounds} must be at least 3 for a median")
    if args.against and not {"overload", "memory"}.isdisjoint(args.cases):
        parser.error("--against compares the cases cifar, jpeg_500 and jpeg_1000; select them with --cases")
    if "IMAGO_DATA_DIR" not in os.environ:
        parser.error("set IMAGO_DATA_DIR to the folder that contains cifar-10-batches-py and hymenoptera_data")
    return args


def main() -> None:
    """Measure, print and store."""
    args = parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {**describe_environment(), "rounds": args.rounds, "images": args.images}
    report |= {"pillow": Image.__version__, "numpy": np.__version__, "load_1min": os.getloadavg()[0]}
    if args.against:
        report["against"] = compare_checkouts(args.against.resolve(), args)
    else:
        report["cases"] = run_cases(args)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2) + "\n")


def run_cases(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the cases, print and return the results."""
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in JPEG_SIZES}
        for name, size in JPEG_SIZES.items():
            write_jpegs(folders[name], size, args.images)
        for name in args.cases:
            if name == "memory":
                cases[name] = judge_memory(measure_memory(folders["jpeg_500"]))
                continue
            sides = {"cifar": cifar_sides, "overload": lambda: overload_sides(folders["jpeg_500"])}.get(name)
            cases[name] = run_case(name, sides() if sides else jpeg_sides(folders[name]), args.rounds)
    return cases


if __name__ == "__main__":
    main()
