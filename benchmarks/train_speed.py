"""Compare the project's training speed with a plain PyTorch script, in images per CPU-second.

    IMAGO_DATA_DIR=data python benchmarks/train_speed.py
    python benchmarks/train_speed.py --epochs 1 --rounds 5 --b-override data.num_workers=0 --clean
    python benchmarks/train_speed.py --against ../other-checkout --json /tmp/against.json

Side A is `benchmarks/plain_pytorch.py`, or with --against the `src/train.py` of another checkout; side B is
`src/train.py`. Each round runs both as child processes, one after
the other, in alternating order, so that a machine that becomes slower does not favor one side.

Images per CPU-second are 45,000 x epochs / CPU seconds of the whole process: user + system time of the child and of its
own children (data workers), including start-up, imports, validation and test. With few epochs, a difference in the
training loop is therefore diluted on both sides. CPU time is less sensitive to other load than wall time.

Both sides run with OMP_WAIT_POLICY=passive. By default, a waiting OpenMP thread spins, which counts as CPU time on a
busy machine: with a load of 3.5 on 2 cores, side A took 47 and 66 CPU seconds for 9,000 images with the default, and 28
and 30 with passive, for the same accuracy.

Both sides keep freed memory (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_). By default, glibc may return the
activations of every step to the system, or not: the same 80 steps took 0.95 to 1.8 million page faults and 6.5 to 9.0
s, and 0.2 million and 5.4 to 6.8 s with these settings.

`--b-override` must keep the 45,000 training images and the epochs; this script does not check it. Linux only. Both
sides start in the project root with this interpreter.
"""

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
NUM_TRAIN_IMAGES = 45_000  # one epoch, both sides; CIFAR-10's other 5,000 train images validate
CHILD_ENVIRONMENT = {  # of both sides; see the module's docstring
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
FIGURE_NAMES = ("images_per_cpu_s", "cpu_s", "wall_s", "test_acc")


@dataclass(frozen=True)
class Run:
    """The results of one side in one round; `test_acc` in [0, 1], `load_1min` is the load average before the start."""

    round: int
    side: str
    images_per_cpu_s: float
    cpu_s: float
    wall_s: float
    test_acc: float
    load_1min: float


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent ended without waiting for them.

    Otherwise their CPU time would be lost, and the side that left them would seem faster than it is.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed; this benchmark needs Linux")


def measure(command: list[str], checkout: Path = PROJECT_ROOT) -> tuple[float, float]:
    """Run a command in the root of a checkout and return its (CPU seconds, wall seconds).

    CPU seconds are user + system time of the process and its children; orphans are waited for.

    Raises:
        RuntimeError: if the command fails; the message ends with the last lines of its output.
    """
    with tempfile.TemporaryFile(encoding="utf-8", mode="w+") as output:
        start = time.perf_counter()
        child = subprocess.Popen(
            command,
            cwd=checkout,
            env=os.environ | CHILD_ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait again
        if child.returncode != 0:
            output.seek(0)
            tail = "".join(output.readlines()[-20:])
            raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{tail}")
    return usage.ru_utime + usage.ru_stime + reap_orphans(), wall_s


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep `count` processes computing, at most until this process ends."""
    code = f"import os\nwhile os.getppid() == {os.getpid()}: all(range(1, 10**6))"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def reap_orphans() -> float:
    """Wait for every adopted process to end and return their CPU seconds, user + system."""
    cpu_s = 0.0
    while True:
        try:
            _, _, usage = os.wait4(-1, 0)
        except ChildProcessError:  # none left
            return cpu_s
        cpu_s += usage.ru_utime + usage.ru_stime


def run_plain(epochs: int, seed: int) -> tuple[float, float, float]:
    """Run side A and return its (CPU seconds, wall seconds, test accuracy)."""
    with tempfile.TemporaryDirectory() as directory:
        figures_path = Path(directory) / "plain.json"
        command = [sys.executable, "benchmarks/plain_pytorch.py", f"--epochs={epochs}", f"--seed={seed}"]
        cpu_s, wall_s = measure([*command, f"--json={figures_path}"])
        return cpu_s, wall_s, json.loads(figures_path.read_text())["test_acc"]


def run_project(
    epochs: int, seed: int, run_name: str, overrides: list[str], checkout: Path = PROJECT_ROOT
) -> tuple[float, float, float]:
    """Run `src/train.py` of a checkout and return its (CPU seconds, wall seconds, test accuracy)."""
    command = [sys.executable, "src/train.py", f"trainer.max_epochs={epochs}", f"seed={seed}"]
    cpu_s, wall_s = measure([*command, f"run_name={run_name}", *overrides], checkout)
    return cpu_s, wall_s, read_test_acc(checkout / "logs" / "train" / run_name / "summary.json")


def read_test_acc(summary_path: Path) -> float:
    """Return `test.acc` of a run's summary.

    Raises:
        RuntimeError: if the file is missing or has no float in [0, 1] there.
    """
    if not summary_path.is_file():
        raise RuntimeError(f"src/train.py succeeded but wrote no {summary_path}")
    summary = json.loads(summary_path.read_text(encoding="utf-8"))
    test_acc = summary.get("test", {}).get("acc")
    if not isinstance(test_acc, float) or not 0 <= test_acc <= 1:
        raise RuntimeError(f"{summary_path}: test.acc={test_acc!r}, want a float in [0, 1]")
    return test_acc


def run_rounds(args: argparse.Namespace, run_dirs: list[Path]) -> list[Run]:
    """Run both sides once for each of side B's directories, print a line for each run, and return them in order."""
    runs = []
    print(f"{'round':>6} {'side':>4} {'images/CPU-s':>13} {'CPU s':>9} {'wall s':>9} {'test acc':>9} {'load':>6}")
    for round_, run_dir in enumerate(run_dirs):
        for side in ("A", "B") if round_ % 2 == 0 else ("B", "A"):
            load_1min = os.getloadavg()[0]
            if side == "B":
                cpu_s, wall_s, test_acc = run_project(args.epochs, round_, run_dir.name, args.b_override)
            elif args.against:
                cpu_s, wall_s, test_acc = run_project(args.epochs, round_, run_dir.name, [], args.against)
            else:
                cpu_s, wall_s, test_acc = run_plain(args.epochs, round_)
            speed = NUM_TRAIN_IMAGES * args.epochs / cpu_s
            runs.append(Run(round_, side, speed, cpu_s, wall_s, test_acc, load_1min))
            print(
                f"{round_:>6} {side:>4} {speed:>13.1f} {cpu_s:>9.1f} {wall_s:>9.1f} {test_acc:>9.4f} {load_1min:>6.2f}",
                flush=True,
            )
    return runs


def summarize(runs: list[Run]) -> dict[str, dict]:
    """Return each side's medians and the speed ratio B/A: median, min and max of the ratios within a round."""
    sides = {side: [run for run in runs if run.side == side] for side in ("A", "B")}
    medians = {
        side: {name: statistics.median(getattr(run, name) for run in side_runs) for name in FIGURE_NAMES}
        for side, side_runs in sides.items()
    }
    ratios = [b.images_per_cpu_s / a.images_per_cpu_s for a, b in zip(sides["A"], sides["B"], strict=True)]
    ratio = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {"medians": medians, "ratio_b_over_a": ratio}


def print_summary(summary: dict[str, dict]) -> None:
    """Print the medians of both sides and the ratio of each round."""
    for side, median in summary["medians"].items():
        speed, cpu_s, wall_s, test_acc = (median[name] for name in FIGURE_NAMES)
        print(f"{'median':>6} {side:>4} {speed:>13.1f} {cpu_s:>9.1f} {wall_s:>9.1f} {test_acc:>9.4f}")
    ratio = summary["ratio_b_over_a"]
    print(f"images per CPU-second, B/A: {ratio['median']:.2f} (min {ratio['min']:.2f}, max {ratio['max']:.2f})")


def describe_environment(checkout: Path = PROJECT_ROOT) -> dict[str, str | int]:
    """Return date, commit, CPU, cores, threads and versions; no host name and no paths."""
    cpu_models = re.findall(
        r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    # --exclude: print the hash even if there is a tag.
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(describe, cwd=checkout, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": commit or "none",
        "cpu_model": cpu_models[0] if cpu_models else platform.machine(),
        "num_cores": len(os.sched_getaffinity(0)),
        "num_threads": int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))),
        "torch": importlib.metadata.version("torch"),
        "python": platform.python_version(),
    }


def parse_args() -> argparse.Namespace:
    """Read the command line; the help text is the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each run (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side; the round is the seed (default: 3)")
    parser.add_argument(
        "--b-override", action="append", default=[], metavar="KEY=VALUE", help="extra override for side B; repeatable"
    )
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="side A: the src/train.py of this checkout")
    parser.add_argument("--clean", action="store_true", help="delete side B's runs after the results are stored")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=PROJECT_ROOT / "benchmarks/results/train_speed.json",
        help="output file (default: benchmarks/results/train_speed.json)",
    )
    args = parser.parse_args()
    for name in ("epochs", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}={getattr(args, name)} must be at least 1")
    if bad := [override for override in args.b_override if "=" not in override]:
        parser.error(f"--b-override {bad[0]} is not key=value, e.g. --b-override data.num_workers=0")
    return args


def main() -> None:
    """Measure, print and store."""
    args = parse_args()
    adopt_orphans()
    environment = describe_environment()  # before the runs: the commit that was measured
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    run_dirs = [PROJECT_ROOT / f"logs/train/train_speed_{stamp}_{round_}" for round_ in range(args.rounds)]
    runs = run_rounds(args, run_dirs)
    summary = summarize(runs)
    print_summary(summary)
    report = {
        **environment,
        "child_environment": CHILD_ENVIRONMENT,
        "epochs": args.epochs,
        "num_train_images": NUM_TRAIN_IMAGES,
        "against_git_commit": describe_environment(args.against)["git_commit"] if args.against else None,
        "b_overrides": [re.sub(r"=/.*", "=<path>", override) for override in args.b_override],
        **summary,
        "runs": [asdict(run) for run in runs],
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.clean:
        for run_dir in run_dirs:
            shutil.rmtree(run_dir)


if __name__ == "__main__":
    main()
