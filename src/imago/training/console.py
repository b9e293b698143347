"""Format what a run prints at its start and at its end."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from imago.data.datamodule import ImageDataModule
from imago.data.sampling import EvalSampler, limited_batches
from imago.images import MAX_SMALL_PX
from imago.paths import checkpoint_file, command, executable, short_path
from imago.resources import available_cores
from imago.runs.records import summary_metrics
from imago.statistics.intervals import far_above_note
from imago.statistics.metrics import MIN_IMBALANCE_RATIO
from imago.task.base import ImageTask
from imago.text import counted, join_names, metric_text
from imago.training.monitors import monitors
from imago.training.pruning import built_settings

_FEW_IMAGES = 5_000  # photographs, for a network from scratch; our own choice
_MAX_WEIGHTS = 30  # class weights in the start table; our own choice


def start_table(
    cfg: DictConfig,
    data: ImageDataModule,
    task: torch.nn.Module,
    trainer: Trainer,
    precision_reason: str,
    preprocess_origin: str,
) -> str:
    """Return the table of a run's settings and choices, one line each.

    `choose_precision` returns the reason of the precision, and `choose_preprocess` the origin of the preprocess record.
    """
    sizes = " / ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    num_devices = trainer.num_devices * trainer.num_nodes
    num_batches = data.batches_per_epoch(trainer.limit_train_batches)
    steps = f", {counted(trainer.max_steps, 'step')}" if trainer.max_steps > 0 else ""
    device = f"{num_devices} x {trainer.strategy.root_device.type}"
    optional = {
        "channels_last": data.memory_format == torch.channels_last,
        "fused": cfg.optimizer.get("fused"),
        f"compiled{f' ({cfg.compile})' if isinstance(cfg.compile, str) else ''}": cfg.compile,
    }
    num_classes = counted(len(data.class_names), "class", "classes")
    rows = {
        "data": f"{_class_name(cfg.data).removesuffix('DataModule')}: {num_classes}, {sizes}",
        "classes": _classes_text(cfg, data),
        "augment": data.augment.describe(),
        "preprocess": f"{data.preprocess.describe()} ({preprocess_origin})",
        "network": _network_text(built_settings(cfg, task)["model"], task),
        "optimizer": f"{_class_name(cfg.optimizer)}, lr {cfg.optimizer.get('lr')}, {_class_name(cfg.schedule)}, "
        f"{counted(trainer.max_epochs or 1, 'epoch')}{steps}"
        + ("" if isinstance(task, ImageTask) else f", as far as {type(task).__name__} uses them"),
        "batch size": f"{cfg.data.batch_size}, {cfg.data.batch_size // num_devices} per device; "
        f"{counted(num_batches, 'batch', 'batches')} per epoch",
        "device": f"{device}, threads={cfg.threads} of {counted(available_cores(), 'core')}",
        "precision": f"{trainer.precision} ({precision_reason}); test in fp32{_tta_text(cfg.tta)}",
        "fast paths": ", ".join(name for name, is_on in optional.items() if is_on) or "none",
        "run directory": short_path(Path(cfg.paths.run_dir)),
    }
    rows |= _optional_rows(cfg, data, task, trainer)
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _optional_rows(cfg: DictConfig, data: ImageDataModule, task: torch.nn.Module, trainer: Trainer) -> dict[str, str]:
    """Return the rows of the start table that only some runs have."""
    rows = {}
    if trainer.strategy.root_device.type != "cpu" or data.device_splits.setting is True:
        rows["batches"] = f"made {data.device_splits.reason}"
    num_images, is_photos = len(data.splits.train), data.preprocess.size > MAX_SMALL_PX
    if num_images < _FEW_IMAGES and is_photos and cfg.model.get("weights", "") is None and cfg.resume is None:
        recipe = "experiment=finetune_folder data.root=DIR fine-tunes a pretrained network"
        rows["advice"] = f"{num_images:,} images are few for a network from scratch: {recipe}"
    rows |= {"shuffle": data.shuffle_note()} if hasattr(data, "shuffle_note") else {}  # if it is not entirely random
    if data.repeats_first_epoch:
        rows["same images"] = "trainer.overfit_batches: every epoch has the batches of the first one"
    weight = getattr(getattr(task, "loss", None), "weight", None)
    if isinstance(task, ImageTask) and isinstance(weight, torch.Tensor):
        named = zip(task.hparams["output_names"], weight.tolist(), strict=False)
        rows["class weights"] = join_names((f"{name}: {value:.4g}" for name, value in named), _MAX_WEIGHTS)
    if teacher := cfg.task.get("teacher"):
        source = short_path(Path(teacher if isinstance(teacher, str) else teacher.weights))
        rows["teacher"] = f"{source}, temperature {cfg.task.temperature}, {cfg.task.alpha:.0%} of the loss"
    if parts := _evaluated_parts(cfg, data, trainer):
        rows["limits"] = f"{' and '.join(parts)}, drawn by class, the same in every epoch"
    if cfg.trainer.max_time is not None:
        end = f"the schedule does not end there, but after {counted(trainer.max_epochs or 1, 'epoch')}"
        rows["time limit"] = f"trainer.max_time={cfg.trainer.max_time}; {end}"
    return rows


def usable_commands(task: torch.nn.Module) -> Sequence[str]:
    """Return the commands that can use a checkpoint of this task."""
    if not isinstance(task, ImageTask) or "own_forward" in task.hparams:
        return ()
    return ("eval", "predict", "export") if task.hparams["predicts_classes"] else ("predict", "export")


def end_lines(
    summary: Mapping[str, Any],
    run_dir: Path,
    extension: str,
    commands: Sequence[str] = ("eval", "predict", "export"),
    trust: Sequence[str] = (),
) -> str:
    """Return the results of a run in its summary.json, and the commands to type next.

    `extension` are the settings that continue it; `commands` are those that can use it, besides train; they have to
    trust the packages in `trust`.
    """
    lines = _test_lines(summary)
    if "images_per_s" in summary:
        advice = f"; to reduce it: {summary['data_wait_advice']}" if "data_wait_advice" in summary else ""
        lines.append(
            f"{summary['images_per_s']:,.0f} images/s, {summary['data_wait_share']:.0%} of the training time spent "
            f"waiting for data{advice}"
        )
    return "\n".join([*lines, *_next_commands(run_dir, commands, extension, trust)])


def extension_settings(cfg: DictConfig, summary: Mapping[str, Any], max_epochs: int) -> str:
    """Return the settings that continue a run beyond what has ended it, which is in its summary.json."""
    max_steps, stopped, texts = cfg.trainer.get("max_steps", -1), summary.get("stopped_early") or {}, []
    for key, settings in monitors(cfg).items():
        if str(settings._target_).endswith("EarlyStopping") and settings.monitor == stopped.get("monitor"):
            texts.append(f"{key}.patience={2 * stopped['patience']}" if stopped["patience"] else f"{key}=null")
    if 0 < max_steps <= summary["steps"]:
        texts.append(f"trainer.max_steps={2 * max_steps}")
    elif not texts and summary["epochs"] < max_epochs and cfg.trainer.max_time is not None:
        texts.append("trainer.max_time=null")
    elif not texts or summary["epochs"] >= max_epochs:
        texts.append(f"trainer.max_epochs={2 * max(1, summary['epochs'])}")
    return " ".join(texts)


def _test_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the accuracy of the test, its further metrics, and what was left out, as far as the task has them."""
    test, metrics = summary.get("test") or {}, summary_metrics(summary)
    lines = []
    if (acc := metrics.pop("test/acc", None)) is not None:
        views = f"{views}," if (views := _tta_text(test.get("tta", "none"))) else ""
        interval = "95 % interval {:.2%} to {:.2%}".format(*test["interval_95"]) if "interval_95" in test else ""
        groups = f" in {test['num_groups']:,} groups" if "num_groups" in test else ""
        num_images = f"n = {test['num_images']:,}{groups}" if "num_images" in test else ""
        lines.append(", ".join(filter(None, [f"test accuracy{views} {acc:.2%}", interval, num_images])))
    further = [f"{name[5:]} {metric_text(value)}" for name, value in metrics.items() if name.startswith("test/")]
    lines += [f"test {', '.join(further)}"] if further else []
    if lines and "best_epoch" in summary:
        lines[0] += f" (best checkpoint: {_best_text(summary, metrics)})"
    if accuracies := (summary.get("pruned") or {}).get("val_acc"):
        tuned = f", {metrics['val/acc']:.2%} after fine-tuning" if "val/acc" in metrics else ""
        lines.append("val accuracy {:.2%} before pruning, {:.2%} after it".format(*accuracies) + tuned)
    if note := far_above_note(summary.get("val") or {}, test):
        lines.append(f"note: {note}")
    if test.get("num_left_out"):
        lines.append(
            "only a part of the test split: trainer.limit_test_batches left out "
            f"{counted(test['num_left_out'], 'image')}; the others were drawn by class"
        )
    return lines


def _best_text(summary: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Return the epoch of the best checkpoint, its validation accuracy, and the monitored value if that is another."""
    monitor = f"val/{str(summary['val']['monitor'])[4:]}"  # other tasks log val_loss
    accuracy = f", val accuracy {metrics['val/acc']:.2%}" if "val/acc" in metrics else ""
    other = f", {monitor} {metric_text(metrics[monitor])}" if monitor in metrics and monitor != "val/acc" else ""
    return f"epoch {summary['best_epoch']}{accuracy}{other}"


def _next_commands(run_dir: Path, names: Sequence[str], extension: str, trust: Sequence[str]) -> list[str]:
    run = shlex.quote(short_path(run_dir))
    if trust:
        run += f" 'trust=[{','.join(trust)}]'"
    commands = []
    if checkpoint_file(run_dir).exists():
        lines = {
            "eval": f"  {command('eval')} run={run}                  # per class, with a confusion matrix",
            "predict": f"  {command('predict')} run={run} input=PHOTO   # or a folder of images",
            "export": f"  {command('export')} run={run}                # one ONNX file",
        }
        commands += [lines[name] for name in names]
    if checkpoint_file(run_dir, "last").exists():
        commands.append(f"  {command('train')} resume={run} {extension}")
    if (run_dir / "tensorboard").exists():
        commands.append(f"  {executable('tensorboard')} --logdir {shlex.quote(short_path(run_dir))}")
    return ["next:", *commands] if commands else []  # a run without checkpoints and loggers has none


def _evaluated_parts(cfg: DictConfig, data: ImageDataModule, trainer: Trainer) -> list[str]:
    """Return the numbers of images in each of val and test that is only evaluated in part."""
    texts = []
    for name, samples in data.splits.items()[1:]:
        batches = EvalSampler(len(samples), cfg.data.batch_size, 0, trainer.world_size)
        num_batches = limited_batches(len(batches), getattr(trainer, f"limit_{name}_batches"))
        if 0 < num_batches < len(batches):
            num_images = num_batches * cfg.data.batch_size * trainer.world_size
            texts.append(f"{num_images:,} of {counted(len(samples), f'{name} image')}")
    return texts


def _class_name(settings: Mapping[str, Any]) -> str:
    return str(settings["_target_"]).rpartition(".")[2]


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


def _network_text(model: Mapping[str, Any], task: torch.nn.Module) -> str:
    num_parameters = sum(p.numel() for p in task.parameters())
    num_trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    net = getattr(task, "net", getattr(task, "model", None))
    name = (model.get("name") or _class_name(model)) if net is not None else type(task).__name__
    texts = [name, counted(num_parameters, "parameter")]
    if num_trained < num_parameters:
        texts.append(f"{num_trained:,} of them trained")
    if net is None:  # built by the task itself, without the settings of the group `model`
        return ", ".join(texts)
    if model.get("freeze") not in (None, "none"):
        texts.append(f"frozen: {model['freeze']}")
    if model.get("in_channels", 3) == 1:
        texts.append("on gray images")
    if "pruned_shapes" in model:
        texts.append("pruned")
    elif "weights" in model:
        new_tensor_names = getattr(net, "new_tensor_names", ())
        new = f", new: {' '.join(new_tensor_names)}" if new_tensor_names else ""
        texts.append(f"pretrained ({model['weights']}{new})" if model["weights"] else "from scratch")
    return ", ".join(texts)
