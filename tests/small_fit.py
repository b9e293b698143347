"""A task under a real Trainer in less than a second: the first drawn shapes, from memory, and a narrow network."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from omegaconf import DictConfig, open_dict

from imago.callbacks.train_metrics import TrainMetrics
from imago.data import shapes
from imago.data.datamodule import ClassNamesAndSplits, ImageDataModule
from imago.data.dataset import LabeledArray
from imago.images import Preprocess
from imago.instantiate import build, to_plain
from imago.runs.checkpoint import AtomicCheckpointIO
from imago.runs.run_directory import RunDirectory
from imago.runs.signals import Signals
from imago.task.base import ImageTask
from imago.training.build import build_run
from imago.training.checks import set_batch_limits
from imago.training.monitors import set_modes

QUIET = (  # warnings of Lightning that say nothing here
    "ignore:.*does not have many workers.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*isinstance.treespec, LeafSpec.*",  # Lightning's own, of a newer torch
)

# 10 small batches for a narrow network, where their size does not matter: most tests here take less than a second.
SMALL = ("data.batch_size=32", "model.hidden_features=16", "trainer.max_epochs=1")


@functools.cache
def drawn(split: str, count: int) -> LabeledArray:
    return LabeledArray(*shapes.render_split(split, count), tuple(f"{split}/{index}" for index in range(count)))


class DrawnShapes(ImageDataModule):
    """The first drawn shapes, from memory; calls `on_arrival` for each batch."""

    num_train = 1280
    on_arrival: Callable[[], None] = staticmethod(lambda: None)

    def load_dataset(self) -> ClassNamesAndSplits:
        sizes = {"train": self.num_train, "val": 100, "test": 100}
        return shapes.CLASS_NAMES, {split: drawn(split, count) for split, count in sizes.items()}

    def default_preprocess(self) -> Preprocess:
        return Preprocess(size=32, resize=32, crop="center", mean=shapes.MEAN, std=shapes.STD)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.on_arrival()
        return batch


class SmallShapes(DrawnShapes):
    num_train = 320  # 10 batches of 32


def build_data(cfg: DictConfig, kind: type[DrawnShapes] = SmallShapes) -> DrawnShapes:
    data = kind(cfg.data.batch_size, num_workers=0, augment=dict(cfg.augment), seed=cfg.seed)
    data.set_up_data()
    return data


def build_task(cfg: DictConfig, data: ImageDataModule, **extra: Any) -> ImageTask:
    """As `run` builds it: the first weights follow from the seed."""
    seed_everything(cfg.seed, verbose=False)
    set_modes(cfg)
    of_data = {"class_names": list(data.class_names), "preprocess": data.preprocess.to_dict()}
    task = build(cfg.task, **of_data, **extra)
    task.net.to(memory_format=torch.channels_last)
    return task


def build_trainer(cfg: DictConfig, run_dir: Path, *callbacks: Callback) -> Trainer:
    """The Trainer of the configs with all of their callbacks and loggers, and some more."""
    cfg.paths.run_dir = str(run_dir)
    set_modes(cfg)
    settings = to_plain(cfg)  # Hydra copies the whole config for each part of a DictConfig
    parts = {
        "callbacks": [
            *(TrainMetrics(), *(build(part) for part in settings["callbacks"].values() if part is not None)),
            *callbacks,
        ],
        "logger": [build(part) for part in settings["logger"].values() if part is not None],
        "plugins": [AtomicCheckpointIO("a task")],
        "precision": "32-true" if cfg.trainer.precision == "auto" else cfg.trainer.precision,
        "default_root_dir": str(run_dir),
    }
    return build(settings["trainer"], accelerator="cpu", use_distributed_sampler=False, **parts)


def build_whole_run(cfg: DictConfig, run_dir: Path) -> tuple[DrawnShapes, ImageTask, Trainer, str]:
    """Build all parts as `train.py` does, with the first drawn shapes as the data."""
    cfg.paths.run_dir = str(run_dir)
    with open_dict(cfg):
        cfg.data = {name: cfg.data[name] for name in ("batch_size", "augment", "seed", "on_device") if name in cfg.data}
        cfg.data |= {"_target_": "small_fit.SmallShapes", "num_workers": 0}
    set_modes(cfg)
    set_batch_limits(cfg)
    run_dir.mkdir(exist_ok=True)
    return build_run(cfg, "32-true", RunDirectory(run_dir, run_dir))  # type: ignore[return-value]


def fit_run(cfg: DictConfig, run_dir: Path, *callbacks: Callback) -> Trainer:
    """Fit what `build_whole_run` returns; continue if there is a last.ckpt."""
    last = run_dir / "checkpoints" / "last.ckpt"
    with Signals().handle():
        data, task, trainer, _ = build_whole_run(cfg, run_dir)
        trainer.callbacks[-1:-1] = callbacks  # type: ignore[attr-defined]
        trainer.fit(task, datamodule=data, ckpt_path=str(last) if last.exists() else None)
    return trainer


class EachStep(Callback):
    """Calls `see(trainer)` just before each optimizer step."""

    def __init__(self, see: Callable[[Trainer], None]) -> None:
        self.see = see

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.see(trainer)
