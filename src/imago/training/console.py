"""What a run tells at its start and at its end."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from imago.data.datamodule import ImageDataModule
from imago.paths import short_path
from imago.text import printable

_IMBALANCED = 3  # times as many training images in the largest class as in the smallest


def start_table(
    cfg: DictConfig, data: ImageDataModule, task: torch.nn.Module, trainer: Trainer, notes: Mapping[str, str]
) -> str:
    """Lay out the facts of a run, one line each.

    Args:
        cfg: the settings.
        data: after `set_up_data`.
        task: with the network inside.
        trainer: tells devices and precision.
        notes: `preprocess`, `precision` and `folder`: where these come from.
    """
    sizes = " / ".join(f"{len(split):,} {name}" for name, split in data.splits.named())
    devices = trainer.num_devices * trainer.num_nodes
    batches = data.batches_per_epoch(trainer.limit_train_batches)
    rows = {
        "data": f"{_short(cfg.data)}: {len(data.class_names)} classes, {sizes}",
        "classes": _classes(cfg, data),
        "augment": data.augment.describe(),
        "preprocess": f"{data.preprocess.describe()} ({notes['preprocess']})",
        "network": _network(cfg.model, task),
        **_teacher(cfg.task),
        "optimizer": f"{cfg.optimizer._target_.rsplit('.', 1)[-1]}, lr {cfg.optimizer.get('lr')}, "
        f"{cfg.schedule._target_.rsplit('.', 1)[-1]}, {cfg.trainer.max_epochs} epochs",
        "batch size": f"{cfg.data.batch_size}, {cfg.data.batch_size // devices} on each device; "
        f"{batches} batches an epoch",
        "device": f"{devices} x {trainer.strategy.root_device.type}, {torch.get_num_threads()} threads",
        "precision": f"{trainer.precision} ({notes['precision']}); test in fp32{describe_tta(cfg.tta).rstrip(',')}",
        "fast paths": _fast_paths(cfg),
        "run directory": notes["folder"],
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def describe_tta(tta: str) -> str:
    """Put test-time augmentation in words, with a comma before them; nothing where there is none."""
    return "" if tta == "none" else f", mean over several views of each image (tta={tta}),"


def end_lines(summary: Mapping[str, Any], folder: Path) -> str:
    """Say what came out, and what to type next."""
    test, val, best = summary.get("test"), summary.get("val"), summary.get("best_epoch")
    lines = []
    if test:
        low, high = test["interval_95"]
        lines.append(
            f"test accuracy{describe_tta(test.get('tta', 'none'))} {test['acc']:.2%}, "
            f"95 % interval {low:.2%} to {high:.2%}, n = {test['num_images']:,}"
            + (f" (best checkpoint: epoch {best}, val accuracy {val['acc']:.2%})" if val else "")
        )
    if test and test["num_left_out"]:
        lines.append(
            f"only a part: trainer.limit_test_batches left out {test['num_left_out']:,} images, in class order"
        )
    if "images_per_s" in summary:
        advice = f"; less with {summary['data_wait_advice']}" if "data_wait_advice" in summary else ""
        lines.append(
            f"{summary['images_per_s']:,.0f} images/s, {summary['data_wait_share']:.0%} of the training time spent "
            f"waiting for data{advice}"
        )
    return "\n".join([*lines, *_next_commands(folder, max(1, summary["epochs"]))])


def _next_commands(folder: Path, num_epochs: int) -> list[str]:
    """Give what can be typed next; what needs a checkpoint only where there is one."""
    place = shlex.quote(short_path(folder))
    commands = []
    if (folder / "checkpoints" / "best.ckpt").exists():
        commands += [
            f"python src/eval.py run={place}                  # per class, with a confusion matrix",
            f"python src/predict.py run={place} input=PHOTO   # or a folder of images",
            f"python src/export.py run={place}                # one ONNX file",
        ]
    if (folder / "checkpoints" / "last.ckpt").exists():
        commands.append(f"python src/train.py resume={place} trainer.max_epochs={2 * num_epochs}")
    commands.append(f"tensorboard --logdir {place}")
    return ["next:", *(f"  {command}" for command in commands)]


def _short(data: DictConfig) -> str:
    return data._target_.rsplit(".", 1)[-1].removesuffix("DataModule")


def _classes(cfg: DictConfig, data: ImageDataModule) -> str:
    """Name the classes with their training images, and say so where they are far from equal."""
    counts = np.bincount(data.splits.train.labels, minlength=len(data.class_names))
    listed = _listed([f"{printable(name)} {count:,}" for name, count in zip(data.class_names, counts, strict=True)])
    ratio = counts.max() / counts.min()
    if ratio < _IMBALANCED or data.sampler == "balanced" or cfg.loss.get("weight") is not None:
        return listed
    return (
        f"{listed}; the largest has {ratio:.1f} times as many as the smallest: data.sampler=balanced or "
        "loss.weight=balanced"
    )


def _network(model: DictConfig, task: torch.nn.Module) -> str:
    count = sum(p.numel() for p in task.parameters())
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    parts = [_name(model), f"{count:,} parameters"]
    if trained < count:
        parts.append(f"{trained:,} of them trained")
    if model.get("freeze") not in (None, "none"):
        parts.append(f"frozen: {model.freeze}")
    if model.get("in_channels", 3) == 1:
        parts.append("on gray images")
    if "weights" in model:
        replaced = getattr(task.net, "replaced", ())
        new = f", new: {' '.join(replaced)}" if replaced else ""
        parts.append(f"pretrained ({model.weights}{new})" if model.weights else "from scratch")
    return ", ".join(parts)


def _name(model: DictConfig) -> str:
    return model.get("name") or model._target_.rsplit(".", 1)[-1]


def _teacher(task: DictConfig) -> dict[str, str]:
    if not task.get("teacher"):
        return {}
    facts = f"temperature {task.temperature}, {task.alpha:.0%} of the loss"
    teacher = task.teacher
    name = short_path(Path(teacher)) if isinstance(teacher, str) else f"{_name(teacher)} ({teacher.weights})"
    return {"teacher": f"{name}, {facts}"}


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f" ... ({len(names) - most} more)" if len(names) > most else ""
    return " ".join(names[:most]) + more


def _fast_paths(cfg: DictConfig) -> str:
    paths = ["uint8 to the device", "one draw per sample, batched"]
    if cfg.channels_last:
        paths.append("channels_last")
    if cfg.optimizer.get("fused"):
        paths.append("fused optimizer")
    if cfg.compile:
        paths.append("compiled")
    return ", ".join(paths)
