"""What can be told wrong before any data is read or torch is loaded: all problems at once, a line each."""

from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from math import inf

from omegaconf import DictConfig, ListConfig

from imago.errors import ConfigError
from imago.images import INTERPOLATIONS, TTA
from imago.schedule.duration import duration_in_steps

_EXTRAS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # packages of loggers, and extras in pyproject.toml
_MONITORED = ("train/loss", "train/acc", "val/loss", "val/acc")
_PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")


def check_settings(cfg: DictConfig) -> None:
    """Check values and how they fit together.

    Raises:
        ConfigError: with a line for each setting that cannot work.
    """
    problems = [*_number_problems(cfg), *_trainer_problems(cfg), *_preprocess_problems(cfg), *_model_problems(cfg)]
    problems += [*_schedule_problems(cfg), *_watch_problems(cfg), *_logger_problems(cfg), *_task_problems(cfg)]
    problems += [*_name_problems(cfg), *_augment_problems(cfg), *_loss_problems(cfg)]
    if problems:
        raise ConfigError("\n".join(problems))


def _number_problems(cfg: DictConfig) -> list[str]:
    problems = []
    if cfg.seed < 0:
        problems.append(f"seed={cfg.seed} must be 0 or more.")
    if cfg.optimizer.get("lr") is not None and not cfg.optimizer.lr > 0:
        problems.append(f"optimizer.lr={cfg.optimizer.lr} must be greater than 0, e.g. optimizer.lr=1e-3.")
    if str(cfg.optimizer._target_).endswith(".LBFGS") and cfg.channels_last:
        problems.append(
            "optimizer._target_=torch.optim.LBFGS reads gradients in one order only: type channels_last=false."
        )
    if cfg.data.batch_size < 1:
        problems.append(f"data.batch_size={cfg.data.batch_size} must be 1 or more.")
    if cfg.data.num_workers is not None and cfg.data.num_workers < 0:
        problems.append(f"data.num_workers={cfg.data.num_workers} must be 0 or more.")
    fraction = cfg.data.get("val_fraction")
    if fraction is not None and not 0 < fraction < 1:
        problems.append(f"data.val_fraction={fraction} must lie between 0 and 1, e.g. data.val_fraction=0.1.")
    return problems


def _augment_problems(cfg: DictConfig) -> list[str]:
    from imago.augment.settings import Augment

    unknown = sorted(set(cfg.augment) - {field.name for field in fields(Augment)})
    if unknown:
        return [f"augment.{unknown[0]}: there is no such augmentation; configs/augment/none.yaml lists them."]
    try:
        Augment(**cfg.augment)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def _loss_problems(cfg: DictConfig) -> list[str]:
    weight = cfg.loss.get("weight")
    if weight == "balanced" and cfg.data.get("sampler") == "balanced":
        return ["data.sampler=balanced with loss.weight=balanced would correct twice for uneven classes; take one."]
    if isinstance(weight, str) and weight != "balanced":
        return [f"loss.weight={weight} is not one of null, balanced; a number for each class is typed [1.0,2.5]."]
    if isinstance(weight, ListConfig) and not all(isinstance(w, (int, float)) and 0 < w < inf for w in weight):
        return [f"loss.weight={list(weight)} must hold a number above 0 for each class."]
    return []


def _trainer_problems(cfg: DictConfig) -> list[str]:
    problems = []
    if cfg.trainer.max_epochs < 1:
        problems.append(f"trainer.max_epochs={cfg.trainer.max_epochs} must be 1 or more: the schedule ends there.")
    if cfg.trainer.log_every_n_steps < 1:
        problems.append(f"trainer.log_every_n_steps={cfg.trainer.log_every_n_steps} must be 1 or more.")
    if cfg.trainer.accumulate_grad_batches < 1:
        problems.append(f"trainer.accumulate_grad_batches={cfg.trainer.accumulate_grad_batches} must be 1 or more.")
    if not cfg.trainer.limit_train_batches:
        problems.append("trainer.limit_train_batches=0 leaves nothing to train on; eval.py evaluates without training.")
    if str(cfg.trainer.precision) not in _PRECISIONS:
        problems.append(f"trainer.precision={cfg.trainer.precision} is not one of {', '.join(_PRECISIONS)}.")
    strategy = cfg.trainer.strategy
    if isinstance(strategy, str) and ("spawn" in strategy or "notebook" in strategy):
        problems.append(f"trainer.strategy={strategy} is not supported; use ddp or, on a CPU, ddp_fork.")
    clip = cfg.trainer.gradient_clip_val
    if clip is not None and not clip > 0:
        problems.append(f"trainer.gradient_clip_val={clip} must be greater than 0, or null for none.")
    if clip is not None and cfg.trainer.precision == "16-mixed" and cfg.optimizer.get("fused"):
        problems.append("trainer.gradient_clip_val with trainer.precision=16-mixed needs optimizer.fused=false.")
    return problems


def _schedule_problems(cfg: DictConfig) -> Iterator[str]:
    schedule = cfg.schedule
    for key in schedule:
        name = str(key).removesuffix("_epochs")
        if name != key and f"{name}_steps" in schedule:
            try:
                duration_in_steps(name, schedule[key], schedule[f"{name}_steps"], steps_per_epoch=1)
            except ConfigError as error:
                yield str(error)
        if str(key).endswith(("start_factor", "final_factor", "min_factor")) and not 0 <= schedule[key] <= 1:
            yield f"schedule.{key}={schedule[key]} must lie in 0 .. 1."
    if "factor" in schedule and not 0 < schedule.factor < 1:
        yield f"schedule.factor={schedule.factor} must lie between 0 and 1: it is what the learning rate falls by."


def _watch_problems(cfg: DictConfig) -> Iterator[str]:
    """Whoever watches a number needs its name, its direction, and somebody who computes it."""
    callbacks = {f"callbacks.{name}": part for name, part in cfg.callbacks.items() if part is not None}
    for name, part in {"schedule": cfg.schedule, **callbacks}.items():
        monitor, mode = part.get("monitor"), part.get("mode")
        if monitor is None:
            continue
        if monitor not in _MONITORED:
            yield f"{name}.monitor={monitor} is not one of {', '.join(_MONITORED)}."
        elif name == "schedule" and not monitor.startswith("val/"):
            yield f"schedule.monitor={monitor}: what steers training is validation; take val/loss or val/acc."
        elif mode is not None and mode != (better := "max" if monitor.endswith("/acc") else "min"):
            yield f"{name}.mode={mode}: {monitor} is best at its {better}imum; type {name}.mode={better}."
        elif monitor.startswith("val/") and not cfg.trainer.limit_val_batches and "best_checkpoint" not in name:
            yield f"{name}.monitor={monitor}: trainer.limit_val_batches=0 leaves no validation to watch."


def _logger_problems(cfg: DictConfig) -> Iterator[str]:
    for name, part in cfg.logger.items():
        extra = _EXTRAS.get(str(part.get("_target_")).rpartition(".")[2]) if part is not None else None
        if extra and find_spec(extra) is None:
            yield (
                f"logger.{name} needs the package {extra}, which is not installed here; it is an extra of this "
                f"project: pip install -e '.[{extra}]'."
            )


def _task_problems(cfg: DictConfig) -> Iterator[str]:
    if cfg.tta not in TTA:
        yield f"tta={cfg.tta} is not one of {', '.join(TTA)}."
    if cfg.task.get("temperature") is not None and not cfg.task.temperature > 0:
        yield f"task.temperature={cfg.task.temperature} must be greater than 0."
    if cfg.task.get("alpha") is not None and not 0 <= cfg.task.alpha <= 1:
        yield f"task.alpha={cfg.task.alpha} must lie in 0 .. 1."
    if isinstance(teacher := cfg.task.get("teacher"), DictConfig) and teacher.get("weights") is None:
        yield "task.teacher.weights=null: a network from scratch has nothing to teach; give a file of weights."
    if cfg.tune not in (None, "lr"):
        yield f"tune={cfg.tune}: the one thing that can be tuned is tune=lr."
    if cfg.tune is not None and cfg.resume is not None:
        yield f"tune={cfg.tune} starts from the first weights, so there is nothing to resume; leave resume= out."
    if cfg.tune is not None and str(cfg.trainer.devices) != "1":
        yield f"tune={cfg.tune} runs in one process; type trainer.devices=1."


def _preprocess_problems(cfg: DictConfig) -> list[str]:
    problems = []
    size, resize, crop = cfg.preprocess.size, cfg.preprocess.resize, cfg.preprocess.crop
    if size is not None and size < 1:
        problems.append(f"preprocess.size={size} must be 1 or more.")
    if size is not None and resize is not None and resize < size:
        problems.append(f"preprocess.resize={resize} must be at least preprocess.size={size}.")
    if crop not in (None, "center", "squash"):
        problems.append(f"preprocess.crop={crop} is not one of center, squash.")
    if (interpolation := cfg.preprocess.interpolation) not in (None, *INTERPOLATIONS):
        problems.append(f"preprocess.interpolation={interpolation} is not one of {', '.join(INTERPOLATIONS)}.")
    for name in ("mean", "std"):
        values = cfg.preprocess[name]
        if values is not None and len(values) != 3:
            problems.append(f"preprocess.{name}={list(values)} must be three numbers, one a color channel.")
    if cfg.preprocess.std is not None and not all(value > 0 for value in cfg.preprocess.std):
        problems.append(f"preprocess.std={list(cfg.preprocess.std)} must be greater than 0.")
    return problems


def _model_problems(cfg: DictConfig) -> list[str]:
    problems = _freezing_problems(cfg)
    if cfg.model.get("in_channels", 3) not in (1, 3):
        problems.append(
            f"model.in_channels={cfg.model.in_channels} is neither 3 (images are read as RGB) nor 1 (gray)."
        )
    if cfg.optimizer.get("head_lr_multiplier", 1.0) <= 0:
        problems.append(f"optimizer.head_lr_multiplier={cfg.optimizer.head_lr_multiplier} must be greater than 0.")
    if not 0 < cfg.optimizer.get("layer_lr_decay", 1.0) <= 1:
        problems.append(f"optimizer.layer_lr_decay={cfg.optimizer.layer_lr_decay} must be above 0 and at most 1.")
    for key, value in (
        ("model.dropout", cfg.model.get("dropout")),
        ("loss.label_smoothing", cfg.loss.get("label_smoothing")),
    ):
        if value is not None and not 0 <= value < 1:
            problems.append(f"{key}={value} must be at least 0 and below 1.")
    return problems


def _freezing_problems(cfg: DictConfig) -> list[str]:
    freeze = cfg.model.get("freeze")
    settings = [] if freeze in (None, "none") else [f"model.freeze={freeze}"]
    settings += [
        f"callbacks.{name}"
        for name, part in cfg.callbacks.items()
        if part is not None and str(part.get("_target_")).endswith(".BackboneFinetuning")
    ]
    if "weights" in cfg.model and cfg.model.weights is None:  # a network of the user's own may have some all the same
        return [f"{setting} with model.weights=null would keep random features as they are." for setting in settings]
    return [] if len(settings) < 2 else [f"{settings[0]} and {settings[1]} exclude one another; take one."]


def _name_problems(cfg: DictConfig) -> list[str]:
    name = cfg.run_name
    if name is not None and (not str(name).strip(". ") or "/" in str(name) or "\\" in str(name)):
        return [f"run_name={name} must be the name of a folder, without slashes."]
    return []
