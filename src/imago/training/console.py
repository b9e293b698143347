"""Format what a run prints at its start and at its end."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from imago.data.datamodule import ImageDataModule
from imago.paths import checkpoint_file, short_path
from imago.statistics.metrics import MIN_IMBALANCE_RATIO
from imago.text import join_names


def start_table(
    cfg: DictConfig,
    data: ImageDataModule,
    task: torch.nn.Module,
    trainer: Trainer,
    precision_reason: str,
    preprocess_origin: str,
) -> str:
    """Return the table of a run's settings and choices, one line each.

    Args:
        cfg: the composed config of `train.py`.
        data: the data module, after `set_up_data`.
        task: the task, with the network in `net`.
        trainer: the Trainer, which has the devices and the precision.
        precision_reason: why this precision was chosen, see `choose_precision`.
        preprocess_origin: where the preprocess record comes from, see `choose_preprocess`.
    """
    sizes = " / ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    num_devices = trainer.num_devices * trainer.num_nodes
    num_batches = data.batches_per_epoch(trainer.limit_train_batches)
    optional = {"channels_last": cfg.channels_last, "fused": cfg.optimizer.get("fused"), "compiled": cfg.compile}
    rows = {
        "data": f"{_class_name(cfg.data).removesuffix('DataModule')}: {len(data.class_names)} classes, {sizes}",
        "classes": _classes_text(cfg, data),
        "augment": data.augment.describe(),
        "preprocess": f"{data.preprocess.describe()} ({preprocess_origin})",
        "network": _network_text(cfg.model, task),
        "optimizer": f"{_class_name(cfg.optimizer)}, lr {cfg.optimizer.get('lr')}, {_class_name(cfg.schedule)}, "
        f"{cfg.trainer.max_epochs} epochs",
        "batch size": f"{cfg.data.batch_size}, {cfg.data.batch_size // num_devices} per device; "
        f"{num_batches} batches per epoch",
        "device": f"{num_devices} x {trainer.strategy.root_device.type}, {torch.get_num_threads()} threads",
        "precision": f"{trainer.precision} ({precision_reason}); test in fp32{_tta_text(cfg.tta)}",
        "fast paths": ", ".join(name for name, is_on in optional.items() if is_on) or "none",
        "run directory": short_path(Path(cfg.paths.run_dir)),
    }
    if teacher := cfg.task.get("teacher"):
        source = short_path(Path(teacher if isinstance(teacher, str) else teacher.weights))
        rows["teacher"] = f"{source}, temperature {cfg.task.temperature}, {cfg.task.alpha:.0%} of the loss"
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def end_lines(summary: Mapping[str, Any], run_dir: Path) -> str:
    """Return the results of a run and the commands to type next."""
    test, val, best = summary.get("test"), summary.get("val"), summary.get("best_epoch")
    lines = []
    if test and "interval_95" not in test:  # of a LightningModule that is no `ImageTask`
        lines.append(", ".join(f"test {name} {value:.4g}" for name, value in test.items()))
    elif test:
        low, high = test["interval_95"]
        views = f"{views}," if (views := _tta_text(test.get("tta", "none"))) else ""
        lines.append(
            f"test accuracy{views} {test['acc']:.2%}, 95 % interval {low:.2%} to {high:.2%}, n = {test['num_images']:,}"
            + (f" (best checkpoint: epoch {best}, val accuracy {val['acc']:.2%})" if val else "")
        )
        if test["num_left_out"]:
            lines.append(
                f"only a part of the test split: trainer.limit_test_batches left out {test['num_left_out']:,} images, "
                "in class order"
            )
    if "images_per_s" in summary:
        advice = f"; to reduce it: {summary['data_wait_advice']}" if "data_wait_advice" in summary else ""
        lines.append(
            f"{summary['images_per_s']:,.0f} images/s, {summary['data_wait_share']:.0%} of the training time spent "
            f"waiting for data{advice}"
        )
    return "\n".join([*lines, *_next_commands(run_dir, max(1, summary["epochs"]))])


def _next_commands(run_dir: Path, num_epochs: int) -> list[str]:
    run = shlex.quote(short_path(run_dir))
    commands = ["next:"]
    if checkpoint_file(run_dir).exists():
        commands += [
            f"  python src/eval.py run={run}                  # per class, with a confusion matrix",
            f"  python src/predict.py run={run} input=PHOTO   # or a folder of images",
            f"  python src/export.py run={run}                # one ONNX file",
        ]
    if checkpoint_file(run_dir, "last").exists():
        commands.append(f"  python src/train.py resume={run} trainer.max_epochs={2 * num_epochs}")
    return [*commands, f"  tensorboard --logdir {run}"]


def _class_name(settings: DictConfig) -> str:
    return str(settings._target_).rpartition(".")[2]


def _tta_text(tta: str) -> str:
    return "" if tta == "none" else f", mean over several views of each image (tta={tta})"


def _classes_text(cfg: DictConfig, data: ImageDataModule) -> str:
    """List the classes with their number of training images; of very uneven ones, name the settings that help."""
    counts = np.bincount(data.splits.train.labels, minlength=len(data.class_names))
    listed = join_names([f"{name} {count:,}" for name, count in zip(data.class_names, counts, strict=True)])
    ratio = counts.max() / counts.min()
    if ratio < MIN_IMBALANCE_RATIO or data.sampler == "balanced" or cfg.loss.get("weight") is not None:
        return listed
    return f"{listed}; uneven ({ratio:.1f} to 1): data.sampler=balanced or loss.weight=balanced"


def _network_text(model: DictConfig, task: torch.nn.Module) -> str:
    num_parameters = sum(p.numel() for p in task.parameters())
    num_trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    net = getattr(task, "net", getattr(task, "model", None))
    name = (model.get("name") or _class_name(model)) if net is not None else type(task).__name__
    texts = [name, f"{num_parameters:,} parameters"]
    if num_trained < num_parameters:
        texts.append(f"{num_trained:,} of them trained")
    if net is None:  # built by the task itself, without the settings of the group `model`
        return ", ".join(texts)
    if model.get("freeze") not in (None, "none"):
        texts.append(f"frozen: {model.freeze}")
    if model.get("in_channels", 3) == 1:
        texts.append("on gray images")
    if "weights" in model:
        new_tensor_names = getattr(net, "new_tensor_names", ())
        new = f", new: {' '.join(new_tensor_names)}" if new_tensor_names else ""
        texts.append(f"pretrained ({model.weights}{new})" if model.weights else "from scratch")
    return ", ".join(texts)
