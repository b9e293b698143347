"""Check the settings of a run before torch is imported and before data is read."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from importlib.util import find_spec
from math import inf
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from imago.augment.settings import Augment
from imago.errors import ConfigError
from imago.images import CROPS, INTERPOLATIONS, TTA_MODES
from imago.resources import is_thread_setting
from imago.schedule.duration import duration_in_steps, is_time_limit, is_whole_epoch
from imago.settings import typed_value
from imago.training.monitors import callback_settings, monitor_problems
from imago.training.pruning import pruning_problems

# Classes of Lightning that need a package; it is also the name of an extra in pyproject.toml.
_EXTRA_PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "RichProgressBar": "rich"}

# Settings that must be one of a few values; null where the default is null.
_CHOICES: dict[str, tuple[Any, ...]] = {
    "trainer.precision": ("auto", "32-true", "bf16-mixed", "16-mixed"),
    "preprocess.crop": (None, *CROPS),
    "preprocess.interpolation": (None, *INTERPOLATIONS),
    "tta": TTA_MODES,
    "calibrate": ("none", "auto"),
    "tune": (None, "lr"),
    "compile": (False, True, "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}
# Arguments of DataLoader that can be set; the others would change the batches.
LOADER_ARGUMENTS = ("prefetch_factor", "pin_memory", "timeout", "multiprocessing_context", "persistent_workers")

# Arguments of the Trainer that would break a guarantee of a run or have no effect in it, and what to type instead.
_REFUSED_TRAINER_ARGUMENTS = {
    "logger": "type logger=NAME, or logger.NAME.KEY=VALUE",
    "callbacks": "type callbacks=NAME, or callbacks.NAME.KEY=VALUE",
    "enable_checkpointing": "type callbacks.best_checkpoint=null callbacks.last_checkpoint=null to save nothing",
    "default_root_dir": "type paths.log_dir=DIR or run_name=NAME",
    "fast_dev_run": "type debug=default for a short run of all parts",
    "barebones": "callbacks.NAME=null and logger.NAME=null turn parts of a run off",
    "use_distributed_sampler": "the samplers already divide the images between the devices",
    "reload_dataloaders_every_n_epochs": "each epoch already has a new order of samples",
    "limit_predict_batches": "predict.py takes the images that input names",
    "model_registry": "export.py writes the network to a file",
}
_POSITIVE = ("greater than 0", lambda value: value > 0)
_SEED = ("0 .. 4294967295", lambda value: 0 <= value < 2**32)
_AT_LEAST_1 = ("1 or more", lambda value: value >= 1)
_BETWEEN_0_AND_1 = ("between 0 and 1, both excluded", lambda value: 0 < value < 1)
_FROM_0_TO_1 = ("between 0 and 1", lambda value: 0 <= value <= 1)
_BELOW_1 = ("at least 0 and below 1", lambda value: 0 <= value < 1)
_SHARE_OR_NUMBER = ("a share up to 1.0, or a number of batches", lambda n: n >= 0 and (type(n) is int or n <= 1))
_COLORS_OR_GRAY = ("3 (images are read as RGB) or 1 (gray)", lambda value: value in (1, 3))

# Settings with a condition, as text and as function. A setting that is null or absent is not checked.
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seed": _SEED,
    "threads": ("1 or more, or auto", is_thread_setting),
    "run_name": (
        "a directory name without slashes",
        lambda name: str(name).strip(". ") != "" and not {*str(name)} & {*"/\\"},
    ),
    "optimizer.lr": ("greater than 0, e.g. optimizer.lr=1e-3", lambda value: value > 0),
    "optimizer.head_lr_multiplier": _POSITIVE,
    "optimizer.layer_lr_decay": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "data.batch_size": _AT_LEAST_1,
    "data.num_workers": ("0 or more", lambda value: value >= 0),
    "data.loader.prefetch_factor": _AT_LEAST_1,
    "callbacks.best_checkpoint.save_top_k": _AT_LEAST_1,
    "data.split_seed": _SEED,
    "data.val_fraction": _BETWEEN_0_AND_1,
    "trainer.max_epochs": ("1 or more, or -1 with trainer.max_steps", lambda value: value >= 1 or value == -1),
    "trainer.max_steps": ("1 or more, or -1 for no limit", lambda value: value >= 1 or value == -1),
    "trainer.limit_train_batches": ("greater than 0; eval.py evaluates without training", lambda value: value > 0),
    "trainer.limit_val_batches": _SHARE_OR_NUMBER,
    "trainer.limit_test_batches": _SHARE_OR_NUMBER,
    "trainer.overfit_batches": ("0 or more", lambda value: value >= 0),
    "trainer.log_every_n_steps": _AT_LEAST_1,
    "trainer.check_val_every_n_epoch": ("1 or more, or null to count batches instead", lambda value: value >= 1),
    "trainer.val_check_interval": ("above 0: a share of an epoch up to 1.0, or a number of batches", lambda n: n > 0),
    "trainer.max_time": ("DD:HH:MM:SS, e.g. 00:01:30:00 for 90 minutes", is_time_limit),
    "trainer.num_nodes": _AT_LEAST_1,
    "trainer.accumulate_grad_batches": _AT_LEAST_1,
    "trainer.gradient_clip_val": ("greater than 0, or null for none", lambda value: value > 0),
    "schedule.start_factor": _FROM_0_TO_1,
    "schedule.final_factor": _FROM_0_TO_1,
    "schedule.min_factor": _FROM_0_TO_1,
    "schedule.factor": _BETWEEN_0_AND_1,
    "task.temperature": _POSITIVE,
    "task.alpha": _FROM_0_TO_1,
    "preprocess.size": _AT_LEAST_1,
    "preprocess.mean": ("three numbers, one per color channel", lambda values: len(values) == 3),
    "preprocess.std": (
        "three numbers above 0, one per color channel",
        lambda values: len(values) == 3 and min(values) > 0,
    ),
    "model.in_channels": _COLORS_OR_GRAY,
    "task.teacher.in_channels": _COLORS_OR_GRAY,
    "model.dropout": _BELOW_1,
    "loss.label_smoothing": _BELOW_1,
}


def check_settings(cfg: DictConfig) -> None:
    """Check the values of settings and their combinations.

    Raises:
        ConfigError: with one line for each setting that cannot work.
    """
    if malformed := list(_malformed_nodes(cfg)):
        raise ConfigError("\n".join(malformed))
    checks: tuple[Callable[[DictConfig], Iterable[str]], ...] = (
        *(_value_problems, _trainer_problems, _schedule_problems, monitor_problems, _callback_and_logger_problems),
        *(_augment_problems, _data_and_loss_problems, _freezing_problems, pruning_problems),
    )
    problems = [problem for check in checks for problem in check(cfg)]
    if problems:
        raise ConfigError("\n".join(problems))


def _malformed_nodes(cfg: DictConfig) -> Iterator[str]:
    """Yield one line for each value that the other checks could not read."""
    for group in ("callbacks", "logger", "metrics"):
        for name, node in (cfg[group] or {}).items():
            if node is not None and not isinstance(node, DictConfig):
                yield f"{group}.{name}={typed_value(node)} must be a node with _target_ and arguments, or null."
    if cfg.trainer.get("max_steps", -1) is None:
        yield "trainer.max_steps=null must be 1 or more, or -1 for no limit."


def _value_problems(cfg: DictConfig) -> Iterator[str]:
    for key in ("sweep", "sweep_name"):
        if cfg.get(key) is not None:
            yield f"{key}: this is a setting of a sweep, which needs -m before its settings."
    for key, allowed in _CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if value not in allowed:
            yield f"{key}={value} is not one of {', '.join(typed_value(choice) for choice in allowed if choice)}."
    for key, (wanted, is_correct) in _RANGES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and not _satisfies(value, is_correct):
            yield f"{key}={value} must be {wanted}."
    size, resize = cfg.preprocess.size, cfg.preprocess.resize
    if size is not None and resize is not None and resize < size:
        yield f"preprocess.resize={resize} must be at least preprocess.size={size}."
    teacher = cfg.task.get("teacher")
    if isinstance(teacher, DictConfig) and teacher.get("weights") is None:
        yield "task.teacher.weights=null: a teacher needs trained weights; type task.teacher.weights=FILE."


def _satisfies(value: Any, condition: Callable[[Any], bool]) -> bool:
    try:
        return condition(value)
    except TypeError:  # a value of another type, e.g. text
        return False


def _trainer_problems(cfg: DictConfig) -> Iterator[str]:
    for key, remedy in _REFUSED_TRAINER_ARGUMENTS.items():
        if key in cfg.trainer:
            yield f"trainer.{key}={cfg.trainer[key]} is not supported: {remedy}."
    if cfg.trainer.max_epochs in (None, -1) and cfg.trainer.get("max_steps", -1) == -1:
        yield f"trainer.max_epochs={typed_value(cfg.trainer.max_epochs)} needs trainer.max_steps=N, which ends the run."
    if cfg.trainer.max_time is not None and (cfg.trainer.get("min_epochs") or cfg.trainer.get("min_steps")):
        yield "trainer.max_time ends a run, also before trainer.min_epochs or trainer.min_steps; leave one out."
    if cfg.trainer.get("overfit_batches") and not is_whole_epoch(cfg.trainer.limit_train_batches):
        yield "trainer.overfit_batches already limits the training batches; leave trainer.limit_train_batches out."
    strategy = str(cfg.trainer.strategy)
    if any(word in strategy.lower() for word in ("fsdp", "parallel", "deepspeed", "spawn", "notebook")):
        yield (
            f"trainer.strategy={strategy} is not supported; use ddp or, on a CPU, ddp_fork. Less memory is needed with "
            "trainer.precision=bf16-mixed, or a smaller data.batch_size and trainer.accumulate_grad_batches=N."
        )
    is_fp16 = cfg.trainer.precision == "16-mixed"
    if is_fp16 and cfg.trainer.gradient_clip_val is not None and cfg.optimizer.get("fused"):
        yield "trainer.gradient_clip_val with trainer.precision=16-mixed needs optimizer.fused=false."
    if cfg.trainer.get("deterministic") and cfg.trainer.get("benchmark"):
        fault = "trainer.benchmark=true chooses algorithms by their time, which differs from run to run"
        yield f"trainer.deterministic={typed_value(cfg.trainer.deterministic)}: {fault}; type trainer.benchmark=false."
    if str(cfg.optimizer._target_).endswith(".LBFGS") and cfg.channels_last:
        yield "optimizer._target_=torch.optim.LBFGS needs contiguous gradients: type channels_last=false."
    if cfg.tune and cfg.resume is not None:
        yield f"tune={cfg.tune} starts from the initial weights and cannot resume; leave resume= out."
    if cfg.tune and str(cfg.trainer.devices) != "1":
        yield f"tune={cfg.tune} runs in one process; type trainer.devices=1."


def _schedule_problems(cfg: DictConfig) -> Iterator[str]:
    for key, epochs in cfg.schedule.items():
        name = str(key).removesuffix("_epochs")
        if name != key and f"{name}_steps" in cfg.schedule:
            try:
                duration_in_steps(name, epochs, cfg.schedule[f"{name}_steps"], steps_per_epoch=1)
            except ConfigError as error:
                yield str(error)


def set_batch_limits(cfg: DictConfig) -> None:
    """Replace limits of null by all batches, and that of training by `overfit_batches`, before they are stored."""
    for split in ("train", "val", "test"):
        if cfg.trainer.get(f"limit_{split}_batches", 1.0) is None:
            cfg.trainer[f"limit_{split}_batches"] = 1.0
    if cfg.trainer.get("overfit_batches"):
        cfg.trainer.limit_train_batches = cfg.trainer.overfit_batches


def _callback_and_logger_problems(cfg: DictConfig) -> Iterator[str]:
    for group in ("callbacks", "logger"):
        for name, settings in cfg[group].items():
            target = str(settings.get("_target_")).rpartition(".")[2] if settings else ""
            if settings is not None and "_target_" not in settings:  # of an experiment whose callbacks= was replaced
                yield f"{group}.{name} has no _target_: type {group}={name} too, or {group}.{name}=null."
            elif settings and target == "StochasticWeightAveraging" and "swa_lrs" not in settings:
                yield f"{group}.{name} needs {group}.{name}.swa_lrs=LR; callbacks=ema averages weights without it."
            package = _EXTRA_PACKAGES.get(target)
            if package and find_spec(package) is None:
                remedy = f"it is an extra of this project: pip install -e '.[{package}]'"
                yield f"{group}.{name} needs the package {package}, which is not installed; {remedy}."
    for name in ("callbacks.best_checkpoint", "callbacks.last_checkpoint"):
        dirpath = OmegaConf.select(cfg, f"{name}.dirpath", default=None)
        if dirpath not in (None, f"{cfg.paths.run_dir}/checkpoints"):
            yield (
                f"{name}.dirpath={dirpath}: resume and eval.py read checkpoints/ of the run directory; type "
                "paths.log_dir=DIR or run_name=NAME, or add a ModelCheckpoint as callbacks.NAME._target_."
            )


def _augment_problems(cfg: DictConfig) -> list[str]:
    unknown = sorted(set(cfg.augment) - {field.name for field in fields(Augment)})
    if unknown:
        return [f"augment.{unknown[0]}: there is no such augmentation; configs/augment/none.yaml lists them."]
    try:
        Augment(**cfg.augment)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def _data_and_loss_problems(cfg: DictConfig) -> Iterator[str]:
    for name, value in (cfg.data.get("loader") or {}).items():
        if name not in LOADER_ARGUMENTS:
            hint = "data.batch_size, data.num_workers and data.sampler are settings of their own"
            yield f"data.loader.{name}={value} is not one of {', '.join(LOADER_ARGUMENTS)}; {hint}."
    weight = cfg.loss.get("weight")
    if weight == "balanced" and cfg.data.get("sampler") == "balanced":
        yield "data.sampler=balanced with loss.weight=balanced corrects twice for uneven classes; choose one."
    elif isinstance(weight, str) and weight != "balanced" and not weight.startswith("{"):
        yield f"loss.weight={weight} is not one of null, balanced; one number per class is typed {{ant: 1, bee: 2}}."
    elif isinstance(weight, ListConfig | DictConfig):
        numbers = weight.values() if isinstance(weight, DictConfig) else weight
        if not all(isinstance(number, (int, float)) and 0 < number < inf for number in numbers):
            yield f"loss.weight={weight} must hold a number above 0 for each class."


def _freezing_problems(cfg: DictConfig) -> Iterator[str]:
    freezing = [f"model.freeze={cfg.model.freeze}"] if cfg.model.get("freeze") not in (None, "none") else []
    for name, settings in callback_settings(cfg).items():
        if str(settings.get("_target_")).endswith(".BackboneFinetuning"):
            freezing.append(name)
    if "weights" in cfg.model and cfg.model.weights is None:  # a network of the user's own may load weights itself
        yield from (f"{setting} with model.weights=null would freeze random features." for setting in freezing)
    elif len(freezing) == 2:
        yield f"{freezing[0]} and {freezing[1]} exclude each other; choose one."
