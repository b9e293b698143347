"""Measure imago on one GPU: loader, training speed against a plain loop, accuracy of two recipes, time to 94 %.

    IMAGO_DATA_DIR=data bash benchmarks/gpu.sh [--airbench FILE]
    bash benchmarks/gpu.sh --smoke

Each step has a time limit and runs in processes of its own, so that one that fails leaves the others; the results of
each are written to `--json` when it ends:

    card      name, versions, CPU cores
    loader    images/s that are augmented and normalized on the device: kept there (data.on_device), and from the CPU
    small     experiment=cifar10_small_resnet: test accuracy and time
    speed     ResNet-18, 32 px, batches of 512: src/train.py (bf16, channels_last, compiled) against a plain loop with
              PIL transforms in worker processes, in fp32 as torch trains by default and in bf16; three rounds in turn
    time94    settings for a GPU that aim at 94 %: test accuracy, seconds of training with compilation and without
    compile   images/s of the same network by compile=MODE
    airbench  the script of cifar10-airbench, if its path is given with `--airbench`; it is not part of this project
    resnet18  experiment=cifar10_resnet18 for as many epochs as the rest of the time allows: test accuracy

Images/s of src/train.py are the median between its logging steps, which wait for the device.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train_speed import PROJECT_ROOT, describe_environment

LOGS, PACKED_COMMIT = PROJECT_ROOT / "build/gpu/logs", PROJECT_ROOT / "build/gpu/commit"
BATCH_SIZE = 512
# Seconds; together less than the whole, of which `resnet18` takes the rest.
LIMITS_S = {"loader": 45, "small": 90, "speed": 200, "time94": 75, "compile": 75, "airbench": 75}
UNSAVED = ("callbacks.best_checkpoint=null", "callbacks.last_checkpoint=null", "logger.tensorboard=null")
RESNET = ("experiment=cifar10_resnet18", f"data.batch_size={BATCH_SIZE}", "optimizer.lr=0.4", "compile=true")
# Width, batch size and epochs of airbench94 (Jordan 2024, arXiv:2404.00498); the other values are our own choice.
TIME_94 = (
    *("experiment=cifar10_small_resnet", "model.widths=[64,256,256]", "data.batch_size=1024", "data.val_fraction=0.02"),
    *("optimizer.lr=0.6", "schedule.warmup_epochs=2", "trainer.max_epochs=14", "trainer.check_val_every_n_epoch=14"),
    *("callbacks.progressive_size=null", "calibrate=none", "tta=flip_shift", *UNSAVED),
)
SMOKE = (  # of every training: a few images, small batches
    *("trainer=cpu", "data.batch_size=16", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "compile=false"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "trainer.log_every_n_steps=1"),
    *("trainer.check_val_every_n_epoch=1", "trainer.precision=32-true", "schedule.warmup_epochs=0"),
)


class Bench:
    """Runs the steps, each within its time limit, and writes the results after each."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.results = args, {"card": _card(), "is_smoke": args.smoke}
        self.begin_s = time.monotonic()
        self.step_end_s = self.end_s = self.begin_s + args.limit_s

    def run(self) -> None:
        """Run all steps, and print and write what each returns."""
        self._write("card")
        steps = (self.loader, self.small, self.speed, self.time94, self.compile, self.airbench, self.resnet18)
        due_s = self.begin_s
        for step in steps:
            name, start_s = step.__name__, time.monotonic()
            due_s += LIMITS_S.get(name, self.args.limit_s)  # what a step leaves goes to the next ones
            self.step_end_s = min(self.end_s, due_s)
            try:
                self.results[name] = {}  # a step may fill it while it runs
                self.results[name] |= step(self.results[name])
            except (RuntimeError, subprocess.TimeoutExpired, OSError, ValueError, KeyError) as error:
                self.results[name]["error"] = " ".join(str(error).split())[-1000:]
            self.results[name]["step_s"] = round(time.monotonic() - start_s, 1)
            self._write(name)

    def loader(self, found: dict[str, Any]) -> dict[str, Any]:
        figures = self._child("loader")
        return figures | {"ratio": _ratio(figures["on_device"], figures["from_cpu"])}

    def small(self, found: dict[str, Any]) -> dict[str, Any]:
        return self._train("small", "experiment=cifar10_small_resnet", "calibrate=none")

    def speed(self, found: dict[str, Any]) -> dict[str, Any]:
        found |= {"goal": 3.0, "ours": [], "plain": [], "plain_bf16": []}
        short = ("trainer.max_epochs=4", "trainer.limit_val_batches=0", "test=false", "calibrate=none")
        settings = (*RESNET, *short, *UNSAVED)
        for number in range(1 if self.args.smoke else 3):
            found["ours"].append(self._train(f"speed{number}", *settings)["images_per_s"])
            for name in ("plain", "plain_bf16"):
                found[name].append(self._child(name)["images_per_s"])
            found |= {f"over_{name}": _ratio(found["ours"], found[name]) for name in ("plain", "plain_bf16")}
        return found

    def time94(self, found: dict[str, Any]) -> dict[str, Any]:
        run = self._train("time94", *TIME_94, "compile=true")
        seconds = run["num_images"] / run["images_per_s"] if run["images_per_s"] else None
        return run | {"goal_acc": 0.94, "settings": list(TIME_94), "steady_s": seconds}

    def compile(self, found: dict[str, Any]) -> dict[str, Any]:
        for mode in ("true",) if self.args.smoke else ("false", "true", "reduce-overhead"):
            short = ("trainer.max_epochs=5", "trainer.check_val_every_n_epoch=5", "test=false", f"compile={mode}")
            found[mode] = self._train(f"compile_{mode}", *TIME_94, *short)["images_per_s"]
        return found

    def airbench(self, found: dict[str, Any]) -> dict[str, Any]:
        if self.args.airbench is None:
            return {"not_run": "type --airbench FILE, the path of a script of cifar10-airbench"}
        with tempfile.TemporaryDirectory() as directory:  # the script reads the folder cifar10, and writes into it
            images = Path("cifar10", "cifar-10-batches-py")
            (Path(directory) / images.parent).mkdir()
            (Path(directory) / images).symlink_to(Path(os.environ["IMAGO_DATA_DIR"], images.name))
            command = [sys.executable, str(self.args.airbench.absolute())]
            output = self._call(command, Path(directory), is_cut_off=True)
        return {"script": self.args.airbench.name, "last_lines": output.splitlines()[-15:]}

    def resnet18(self, found: dict[str, Any]) -> dict[str, Any]:
        speeds = self.results["speed"].get("ours") or [20_000.0]  # images/s of a small GPU
        left_s = self.end_s - time.monotonic() - 60  # to start, compile, save and test
        # 0.7: our own choice, as the last weights have to be tested in time.
        epochs = min(200, max(1, int(left_s * statistics.median(speeds) * 0.7 / 50_000)))
        warm_up = f"schedule.warmup_epochs={min(5, epochs / 4):g}"
        lengths = (f"trainer.max_epochs={epochs}", f"trainer.check_val_every_n_epoch={epochs}", warm_up)
        return self._train("resnet18", *RESNET, *lengths, "calibrate=none", *UNSAVED) | {"epochs": epochs}

    def _train(self, name: str, *overrides: str) -> dict[str, Any]:
        """Run src/train.py; return accuracy, images/s between logging steps, and times."""
        shutil.rmtree(LOGS / "train" / name, ignore_errors=True)
        smoke = list(SMOKE) if self.args.smoke else ["trainer=gpu"]
        command = [sys.executable, "src/train.py", *overrides, *smoke, f"run_name={name}", f"paths.log_dir={LOGS}"]
        self._call(command, PROJECT_ROOT)
        summary = json.loads((LOGS / "train" / name / "summary.json").read_text(encoding="utf-8"))
        times = summary["time_s"]
        with (LOGS / "train" / name / "metrics.csv").open(encoding="utf-8", newline="") as rows:
            rates = [float(row["images_per_s"]) for row in csv.DictReader(rows) if row.get("images_per_s")]
        steady = rates[len(rates) // 4 :]  # the first ones compile and warm up
        return {
            "test_acc": summary.get("test", {}).get("acc"),
            "images_per_s": statistics.median(steady) if steady else 0.0,
            "num_images": round(summary["images_per_s"] * (times["train"] + times["data_wait"])),
            "time_s": times,
        }

    def _child(self, name: str) -> dict[str, Any]:
        sizes = ("16", "--smoke") if self.args.smoke else (str(BATCH_SIZE),)
        command = [sys.executable, "benchmarks/gpu_sides.py", name, *sizes]
        return json.loads(self._call(command, PROJECT_ROOT).splitlines()[-1])

    def _call(self, command: list[str], directory: Path, is_cut_off: bool = False) -> str:
        """Run a command until the end of the step; return its output, and with `is_cut_off` the part before the end."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            pipes: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
            child = subprocess.Popen(command, cwd=directory, **pipes)
            try:
                code = child.wait(max(1.0, self.step_end_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                if not is_cut_off:
                    raise
                code = 0
            output.seek(0)
            text = output.read()
        if code:
            raise RuntimeError(f"{Path(command[1]).name} ended with {code}: {text[-800:]}")
        return text

    def _write(self, name: str) -> None:
        print(name, json.dumps(self.results[name]), flush=True)
        self.args.json.parent.mkdir(parents=True, exist_ok=True)
        self.args.json.write_text(json.dumps(self.results, indent=2) + "\n", encoding="utf-8")


def _ratio(ours: list[float], other: list[float]) -> dict[str, float]:
    ratios = [one / two for one, two in zip(ours, other, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _card() -> dict[str, Any]:
    import torch
    import torchvision

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (CPU)"
    versions = {"torchvision": torchvision.__version__, "cuda": torch.version.cuda}
    environment = describe_environment() if shutil.which("git") else {"torch": torch.__version__}
    if environment.get("git_commit", "none") == "none" and PACKED_COMMIT.is_file():  # a tree without its history
        versions["git_commit"] = PACKED_COMMIT.read_text(encoding="utf-8").strip()
    return {"name": name, **environment, **versions}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--airbench", type=Path, metavar="FILE", help="a script of cifar10-airbench to run beside ours")
    parser.add_argument("--smoke", action="store_true", help="a few images in each step, on a CPU too")
    parser.add_argument("--limit-s", type=float, default=580, metavar="S", help="seconds for everything (default: 580)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="default: benchmarks/results/gpu.json; smoke: build/gpu"
    )
    args = parser.parse_args()
    data_dir = Path(os.environ.get("IMAGO_DATA_DIR", "")).absolute()
    if not (data_dir / "cifar-10-batches-py").is_dir():
        parser.error("set IMAGO_DATA_DIR to the directory that contains cifar-10-batches-py")
    os.environ["IMAGO_DATA_DIR"] = str(data_dir)
    if args.airbench is not None and not args.airbench.is_file():
        parser.error(f"--airbench {args.airbench}: there is no such file")
    folder = "build/gpu" if args.smoke else "benchmarks/results"
    args.json = args.json or PROJECT_ROOT / folder / "gpu.json"
    Bench(args).run()


if __name__ == "__main__":
    main()
