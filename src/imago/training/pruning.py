"""Prune the network of a trained run, which `model=pruned` then fine-tunes; loads torch only for that."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from imago.errors import ConfigError, DataError, UserError
from imago.images import Preprocess
from imago.inference.find_model import is_onnx, resolve_checkpoint
from imago.inference.load import TorchPredictor, load_classifier
from imago.inference.run_split import run_split
from imago.instantiate import import_target, to_plain
from imago.schedule.duration import is_whole_epoch
from imago.text import join_names

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import nn

    from imago.data.datamodule import ImageDataModule
    from imago.runs.run_directory import RunDirectory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrunedRun:
    """The settings of `model=pruned`.

    The checkpoint of a pruned network has other settings: those of the network that was pruned, with `pruned_shapes`.

    Args:
        run: a run directory (its best checkpoint) or a checkpoint file; not needed any more when the run is resumed.
        ratio: share of the channels of each layer to remove, in (0, 1).
    """

    run: str
    ratio: float


class PrunedNetwork(NamedTuple):
    """A network after pruning, before it is fine-tuned."""

    settings: dict[str, Any]  # see `imago.model.adapt`, with `pruned_shapes`
    preprocess: dict[str, Any]  # an `imago.images.Preprocess` of the run, as a dict
    output_names: Sequence[str]
    net: "nn.Module | None"  # None in a resumed run, whose checkpoint has the weights
    before: "nn.Module | None"  # the network of the run


def is_pruned(cfg: DictConfig) -> bool:
    """Return whether the network is that of a run, pruned."""
    return cfg.model.get("_target_") == f"{PrunedRun.__module__}.{PrunedRun.__name__}"


def built_settings(cfg: DictConfig, task: Any) -> dict[str, Any]:
    """Return all groups of settings; `model` is the network that is trained, also if it was pruned."""
    groups = {str(group): settings for group, settings in cfg.items()}
    return groups | ({"model": task.hparams["net"]} if is_pruned(cfg) else {})


def pruning_problems(cfg: DictConfig) -> Iterator[str]:
    """Check the settings of `model=pruned`, as `imago.training.checks` does."""
    if not is_pruned(cfg):
        return
    if not 0 < cfg.model.ratio < 1:
        yield f"model.ratio={cfg.model.ratio} must be between 0 and 1, both excluded: the share of channels to remove."
    for key in sorted(cfg.model.keys() - {"_target_", "freeze", *PrunedRun.__annotations__}):
        if cfg.model[key] is not None:  # as experiment=cifar10_resnet18 sets model.weights
            yield f"model.{key}={cfg.model[key]}: model=pruned takes the network from model.run; leave it out."
    if is_onnx(Path(cfg.model.run)):
        yield f"model.run={cfg.model.run} is an ONNX file, which cannot be trained; type the run directory."
    if cfg.resume in (None, "auto") and find_spec("torch_pruning") is None:
        yield "model=pruned needs the package torch-pruning, an extra of this project: pip install -e '.[prune]'."


def resolve_pruned_run(cfg: DictConfig) -> None:
    """Replace `model.run` by the absolute path of its checkpoint; a resumed run does not need it.

    Raises:
        ConfigError: if the run has no checkpoint.
    """
    try:
        cfg.model.run = str(resolve_checkpoint(Path(cfg.model.run)).resolve())
    except DataError as error:
        if cfg.resume in (None, "auto"):
            raise ConfigError(f"model.run={error}") from error


def load_pruned(cfg: DictConfig) -> PrunedNetwork | None:
    """Load the network of `model.run` and prune it; None for another network.

    Call it before the seed is set. Of a resumed run, settings and preprocess are read from its last checkpoint.

    Raises:
        ConfigError: if the network cannot be pruned, or the task does not save its settings.
        DataError: if the checkpoint is damaged.
    """
    if not is_pruned(cfg):
        return None
    from imago.model.pruning import prune
    from imago.training.other_task import is_image_task

    if not is_image_task(cfg):
        raise ConfigError(f"model=pruned needs a task derived from imago.task.base.ImageTask, not {cfg.task._target_}.")
    if cfg.resume is not None:
        classifier = load_classifier(resolve_checkpoint(Path(cfg.resume), "last"), cfg.trust)
        record = classifier.preprocess.to_dict()
        return PrunedNetwork(dict(classifier.network_settings), record, classifier.class_names, None, None)
    try:
        classifier = load_classifier(Path(cfg.model.run), cfg.trust)
        net, shapes = prune(classifier.net, cfg.model.ratio, classifier.preprocess.size)
    except UserError as error:
        raise ConfigError(f"model.run={cfg.model.run} model.ratio={cfg.model.ratio}: {error}") from error
    settings = {**classifier.network_settings, "freeze": cfg.model.get("freeze")}
    settings["pruned_shapes"] = {**settings.get("pruned_shapes", {}), **shapes}
    return PrunedNetwork(settings, classifier.preprocess.to_dict(), classifier.class_names, net, classifier.net)


def choose_pruned_preprocess(cfg: DictConfig, pruned: PrunedNetwork, data: "ImageDataModule") -> tuple[Preprocess, str]:
    """Return how the run prepared its images, with what is typed, and the origin in a few words.

    Raises:
        ConfigError: if the data has other classes than the run, or the typed size is another.
    """
    from imago.model.adapt import choose_preprocess

    names = import_target(cfg.task._target_).output_names(data.class_names)
    if tuple(names) != tuple(pruned.output_names):
        raise ConfigError(
            f"model.run={cfg.model.run} has the classes {join_names(pruned.output_names)}, and the data "
            f"{join_names(names)}; use a run with the same classes in the same order."
        )
    record = Preprocess.from_dict(pruned.preprocess)
    chosen, origin = choose_preprocess(to_plain(cfg.preprocess), pruned.preprocess, record)
    if chosen.size != record.size:
        raise ConfigError(
            f"preprocess.size={chosen.size}: the network of model.run was trained for {record.size} px; leave it out."
        )
    return chosen, origin.replace("the pretrained weights", "model.run")


def measure_pruned(
    pruned: PrunedNetwork | None,
    task: "LightningModule",
    data: "ImageDataModule",
    trainer: "Trainer",
    directory: "RunDirectory",
) -> None:
    """Log size and validation accuracy before and after pruning, and write them to summary.json, when a run starts.

    The accuracies are those of all validation images in fp32; absent if `trainer.limit_val_batches` leaves images out,
    or if the outputs are not the classes of the data.
    """
    if pruned is None or pruned.net is None or not directory.is_main_process:
        return
    import torch

    from imago.model.classifier import Classifier
    from imago.model.pruning import count_multiply_adds

    nets: Any = (pruned.before, pruned.net)
    size = data.preprocess.size
    results: dict[str, Any] = {
        "parameters": [sum(parameter.numel() for parameter in net.parameters()) for net in nets],
        "multiply_adds": [count_multiply_adds(net, size) for net in nets],
    }
    texts = [f"{before:,} to {after:,} {name.replace('_', '-')}" for name, (before, after) in results.items()]
    log.info("pruned: %s", ", ".join(texts))
    if is_whole_epoch(trainer.limit_val_batches) and task.hparams["predicts_classes"]:
        classifiers = [Classifier(net, pruned.output_names, data.preprocess).eval() for net in nets]
        accelerator = "cpu" if trainer.strategy.root_device.type == "cpu" else "auto"
        allows_tf32 = torch.backends.cudnn.allow_tf32
        outputs = [run_split(TorchPredictor(part, accelerator), data, "val") for part in classifiers]
        torch.backends.cudnn.allow_tf32 = allows_tf32  # a predictor turns it off
        results["val_acc"] = [float(output.is_correct.mean()) for output in outputs]
        log.info("val accuracy %s before pruning, %s after it\n", *(f"{acc:.2%}" for acc in results["val_acc"]))
    directory.update(pruned=results)
