"""The teacher of task=distillation: a finished run, or a network with its own weights (`+model@task.teacher=NAME`)."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from imago.errors import ConfigError, DataError, UserError
from imago.images import Preprocess
from imago.inference.load import checkpoint_path, load_classifier
from imago.instantiate import build, find_target

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.model.classifier import Classifier
    from imago.task.distillation import Teacher


def resolve_teacher(task: DictConfig) -> None:
    """Write paths into the settings by their real names: `logs/latest` will soon be the student.

    Raises:
        ConfigError: if there is no such run, or a run is given as weights.
    """
    teacher = task.get("teacher")
    if isinstance(teacher, str):
        try:
            checkpoint_path(Path(teacher))
        except DataError as error:
            raise ConfigError(
                f"task.teacher={error} A network is typed +model@task.teacher=NAME task.teacher.weights=FILE."
            ) from error
        task.teacher = str(Path(teacher).resolve())
    elif teacher and Path(teacher.weights).exists():
        path = Path(teacher.weights).resolve()
        if path.is_dir() or path.suffix == ".ckpt":
            raise ConfigError(
                f"task.teacher.weights={teacher.weights}: a run is typed task.teacher=RUN, which compares its classes."
            )
        teacher.weights = str(path)


def load_run(cfg: DictConfig) -> "Classifier | None":
    """Load the run that teaches, before the seed is set, so that the student starts as it would without.

    Returns:
        None where no run does; of a network it is only asked whether its weights are there.
    """
    teacher = cfg.task.get("teacher")
    if not teacher:
        return None
    try:
        if isinstance(teacher, str):
            return load_classifier(Path(teacher), cfg.extra_targets)
        network = find_target(teacher._target_)
        if hasattr(network, "find_weights"):
            network.find_weights(teacher.get("name"), teacher.weights)
    except UserError as error:
        raise ConfigError(_of_teacher(error) if not isinstance(teacher, str) else f"task.teacher={error}") from error
    return None


def prepare_teacher(cfg: DictConfig, run: "Classifier | None", data: "ImageDataModule") -> "Teacher":
    """Make the run that `load_run` gave, or else the network of the settings, see what the student sees.

    Raises:
        ConfigError: if it knows other classes, or its weights do not fit.
    """
    import torch

    from imago.task.distillation import Teacher

    if run is None:
        net, preprocess = _build_network(cfg, data)
    elif run.class_names != data.class_names:
        raise ConfigError(
            f"task.teacher={cfg.task.teacher} tells {' '.join(run.class_names)} apart, in this order, and the data "
            f"has {' '.join(data.class_names)}; take a teacher of the same classes."
        )
    else:
        net, preprocess = run.net, run.preprocess
    return Teacher(net.to(memory_format=torch.channels_last), preprocess.to_dict(), data.preprocess.to_dict())


def _build_network(cfg: DictConfig, data: "ImageDataModule") -> tuple[Any, Preprocess]:
    """Build the network for the data's classes, with what its weights expect of an image."""
    import torch

    settings: Any = OmegaConf.to_container(cfg.task.teacher, resolve=True)
    ask = getattr(find_target(settings["_target_"]), "weights_preprocess", lambda name, weights: None)
    try:
        record = data.preprocess.to_dict() | (ask(settings.get("name"), settings["weights"]) or {})
        facts = {"num_classes": len(data.class_names), "image_size": record["size"]}
        with torch.random.fork_rng(devices=[]):  # the student starts as it would without a teacher
            net = build(settings, extra_targets=cfg.extra_targets, **facts)
    except UserError as error:
        raise ConfigError(_of_teacher(error)) from error
    if getattr(net, "replaced", ()):
        raise ConfigError(
            f"task.teacher.weights={settings['weights']} has no values for {' and '.join(net.replaced)}: a teacher "
            f"must know the {len(data.class_names)} classes of the data; train it on them, then type task.teacher=RUN."
        )
    return net, Preprocess.from_dict(record)


def _of_teacher(error: UserError) -> str:
    """Let a network's own word on its settings name the teacher's."""
    return re.sub(r"\bmodel\.(name|weights|in_channels|freeze)\b", r"task.teacher.\1", str(error))
