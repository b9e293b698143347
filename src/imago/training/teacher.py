"""Load the teacher of task=distillation: a run, or a network with weights of its own (`+model@task.teacher=NAME`)."""

import re
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from imago.data.datamodule import ImageDataModule
from imago.errors import ConfigError, UserError
from imago.inference.load import load_classifier
from imago.instantiate import to_plain
from imago.model.adapt import build_network, find_weights, weights_preprocess
from imago.model.classifier import Classifier
from imago.task.distillation import Teacher


def load_teacher_run(cfg: DictConfig) -> Classifier | None:
    """Load the run that is the teacher; of a network, only look up the weights file, and return None.

    Call it before the seed is set, so that the student's weights do not change.
    """
    teacher = cfg.task.teacher
    try:
        if isinstance(teacher, str):
            return load_classifier(Path(teacher), cfg.trust)
        find_weights(teacher)
    except UserError as error:
        raise ConfigError(f"task.teacher={error}" if isinstance(teacher, str) else _teacher_error(error)) from error
    return None


def prepare_teacher(cfg: DictConfig, teacher_run: Classifier | None, data: ImageDataModule) -> Teacher:
    """Wrap the result of `load_teacher_run`, or the network of `task.teacher`, so that it takes the student's images.

    Raises:
        ConfigError: if the teacher has other classes than `data`, or its weights do not fit.
    """
    if teacher_run is not None and teacher_run.class_names != data.class_names:
        raise ConfigError(
            f"task.teacher={cfg.task.teacher} has the classes {' '.join(teacher_run.class_names)}, and the data "
            f"{' '.join(data.class_names)}; use a teacher with the same classes in the same order."
        )
    with torch.random.fork_rng(devices=[]):  # the student's initial weights do not depend on the teacher
        net, record = (teacher_run.net, teacher_run.preprocess.to_dict()) if teacher_run else _build_network(cfg, data)
    return Teacher(net.to(memory_format=torch.channels_last), record, data.preprocess.to_dict())


def _build_network(cfg: DictConfig, data: ImageDataModule) -> tuple[Any, dict[str, Any]]:
    """Build the teacher for the data's classes; return it with the preprocess record that its weights need."""
    settings, num_classes = to_plain(cfg.task.teacher), len(data.class_names)
    try:
        record = data.preprocess.to_dict() | (weights_preprocess(settings) or {})
        net = build_network(settings, num_classes, record["size"], record, data.class_names)
    except UserError as error:
        raise ConfigError(_teacher_error(error)) from error
    if new_tensor_names := getattr(net, "new_tensor_names", ()):
        raise ConfigError(
            f"task.teacher.weights={settings['weights']} has no values for {' and '.join(new_tensor_names)}: the "
            f"teacher must have the {num_classes} classes of the data; train it on them, then type task.teacher=RUN."
        )
    return net, record


def _teacher_error(error: UserError) -> str:
    """Return a network's error message with its settings named as those of the teacher."""
    return re.sub(r"\bmodel\.(name|weights|in_channels|freeze)\b", r"task.teacher.\1", str(error))
