"""Compare what a training step costs without the network: a plain loop, Lightning's least, a common style, and imago.

python benchmarks/overhead.py
python benchmarks/overhead.py --steps 2000 --rounds 9

All sides train the same linear layer on the same batch of 128 images in memory, with fused AdamW and a cosine schedule,
each in a process of its own, in turn. Lightning's least is `Trainer(barebones=True)`; the common style is a module
with two torchmetrics that are updated and logged in each step, as in lightning-hydra-template. imago is its own task
with all default callbacks and loggers. The figure is the median of the times between two batches: steps that log, one
of 20 by default, do not count.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from train_speed import PROJECT_ROOT, describe_environment

BATCH_SIZE, NUM_CLASSES, IMAGE_PX = 128, 10, 32
SIDES = ("loop", "barebones", "common", "imago")
WARM_UP = 50  # steps that are not measured


class Batches:
    """The same batch again and again; `times_ms` are the CPU times between two of them."""

    num_workers = 0

    def __init__(self, num_steps: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        images = torch.randn(BATCH_SIZE, 3, IMAGE_PX, IMAGE_PX, generator=generator)
        self.batch = (images, torch.randint(NUM_CLASSES, (BATCH_SIZE,), generator=generator))
        self.num_steps, self.times_ms = num_steps, []  # type: ignore[var-annotated]

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[Any]:
        last_s = time.process_time()
        for _ in range(self.num_steps):
            yield self.batch
            now_s = time.process_time()
            self.times_ms.append(1000 * (now_s - last_s))
            last_s = now_s


def tiny_net() -> Any:
    """Return a linear layer on the pixels."""
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(3 * IMAGE_PX**2, NUM_CLASSES))


def optimization(net: Any, num_steps: int) -> tuple[Any, Any]:
    """Return the optimizer and the schedule of all sides but imago, which builds the same."""
    import torch

    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)


def run_loop(batches: Batches, _: Path) -> None:
    """Train without Lightning."""
    from torch.nn.functional import cross_entropy

    net = tiny_net()
    optimizer, schedule = optimization(net, len(batches))
    for images, labels in batches:
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        optimizer.step()
        schedule.step()


def lightning_module(is_common: bool, num_steps: int) -> Any:
    """Return a module without metrics, or one in the common style."""
    from lightning.pytorch import LightningModule
    from torch.nn.functional import cross_entropy
    from torchmetrics import MeanMetric
    from torchmetrics.classification import MulticlassAccuracy

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net()
            self.train_loss, self.train_acc = MeanMetric(), MulticlassAccuracy(NUM_CLASSES)

        def training_step(self, batch: Any, _: int) -> Any:
            images, labels = batch
            logits = self.net(images)
            loss = cross_entropy(logits, labels)
            if is_common:
                self.train_loss(loss)
                self.train_acc(logits.argmax(dim=1), labels)
                self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
                self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer, schedule = optimization(self.net, num_steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Module()


def run_barebones(batches: Batches, _: Path) -> None:
    """Train with Lightning and nothing else."""
    from lightning.pytorch import Trainer

    Trainer(barebones=True, max_epochs=1, accelerator="cpu").fit(lightning_module(False, len(batches)), batches)


def run_common(batches: Batches, folder: Path) -> None:
    """Train a module in the common style, with Lightning's defaults and a CSV logger."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import CSVLogger

    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=CSVLogger(folder), default_root_dir=folder)
    trainer.fit(lightning_module(True, len(batches)), batches)


def run_imago(batches: Batches, folder: Path) -> None:
    """Train with the task, callbacks and loggers of this project."""
    from hydra import compose, initialize_config_dir
    from lightning.pytorch import LightningDataModule

    from imago.cli.entry import register_resolvers
    from imago.images import Preprocess
    from imago.instantiate import build
    from imago.runs.run_directory import RunDirectory
    from imago.training.build import build_trainer
    from imago.training.machine_checks import hide_missing_gpus

    hide_missing_gpus()
    register_resolvers()
    with initialize_config_dir(str(PROJECT_ROOT / "configs"), version_base=None):
        typed = ["trainer.max_epochs=1", "trainer.accelerator=cpu", f"paths.log_dir={folder}"]
        cfg = compose(
            "train", [*typed, "optimizer.lr=1e-3", "schedule.warmup_epochs=0", "callbacks.best_checkpoint.mode=max"]
        )
    cfg.paths.run_dir = str(folder)
    data: Any = LightningDataModule()
    data.preprocess = Preprocess(IMAGE_PX, IMAGE_PX, "center", mean=(0.5,) * 3, std=(0.25,) * 3)
    data.class_names, data.train_dataloader = tuple("0123456789"), lambda: batches
    data.splits = SimpleNamespace(train=range(BATCH_SIZE * len(batches)))
    of_data = {"class_names": [*data.class_names], "preprocess": data.preprocess.to_dict()}
    task = build(cfg.task, _recursive_=False, net={"_target_": "overhead.tiny_net"}, **of_data)
    directory = RunDirectory(folder, folder)
    with directory.signals.handle():
        build_trainer(cfg, "32-true", directory, task).fit(task, datamodule=data)


def measure(side: str, num_steps: int) -> None:
    """Run one side and print its CPU time per step."""
    import torch

    torch.set_num_threads(1)
    run: Callable[[Batches, Path], None] = globals()[f"run_{side}"]
    batches = Batches(num_steps)
    with tempfile.TemporaryDirectory() as folder:
        run(batches, Path(folder))
    print(json.dumps({"ms": statistics.median(batches.times_ms[WARM_UP:])}))


def main() -> None:
    """Measure all sides in turn and store the results; or be one of the processes of that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=PROJECT_ROOT / "benchmarks" / "results" / "overhead.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return measure(args.side, args.steps)
    rounds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(args.rounds):
        for side, measured in rounds.items():
            command = [sys.executable, __file__, "--side", side, "--steps", str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)
            if done.returncode:
                raise SystemExit(done.stderr)
            measured.append(round(json.loads(done.stdout.splitlines()[-1])["ms"], 3))
        print({side: measured[-1] for side, measured in rounds.items()}, flush=True)
    ms = {side: statistics.median(measured) for side, measured in rounds.items()}
    overhead = {side: round(ms[side] - ms["loop"], 3) for side in SIDES}
    ratios = {
        "overhead_to_common": round(overhead["imago"] / overhead["common"], 3),
        "step_to_barebones": round(ms["imago"] / ms["barebones"], 3),
    }
    print(f"CPU ms per step {ms}\noverhead {overhead}\n{ratios}")
    content = {"ms_per_step": rounds, "medians": ms, "overhead_ms": overhead, "ratios": ratios}
    args.json.write_text(json.dumps(content | {"environment": describe_environment()}, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
