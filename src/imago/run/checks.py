"""What can be told wrong before any data is read or torch is loaded: all problems at once, a line each."""

from math import inf

from omegaconf import DictConfig, ListConfig

from imago.errors import ConfigError

_MONITORED = ("train/loss", "train/acc", "val/loss", "val/acc")
_PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")


def check_settings(cfg: DictConfig) -> None:
    """Check values and how they fit together.

    Raises:
        ConfigError: with a line for each setting that cannot work.
    """
    problems = [*_number_problems(cfg), *_trainer_problems(cfg), *_preprocess_problems(cfg), *_model_problems(cfg)]
    problems += [*_callback_problems(cfg), *_name_problems(cfg), *_augment_problems(cfg), *_loss_problems(cfg)]
    if problems:
        raise ConfigError("\n".join(problems))


def _number_problems(cfg: DictConfig) -> list[str]:
    problems = []
    if cfg.seed < 0:
        problems.append(f"seed={cfg.seed} must be 0 or more.")
    if cfg.optimizer.get("lr") is not None and not cfg.optimizer.lr > 0:
        problems.append(f"optimizer.lr={cfg.optimizer.lr} must be greater than 0, e.g. optimizer.lr=1e-3.")
    if cfg.data.batch_size < 1:
        problems.append(f"data.batch_size={cfg.data.batch_size} must be 1 or more.")
    if cfg.data.num_workers is not None and cfg.data.num_workers < 0:
        problems.append(f"data.num_workers={cfg.data.num_workers} must be 0 or more.")
    fraction = cfg.data.get("val_fraction")
    if fraction is not None and not 0 < fraction < 1:
        problems.append(f"data.val_fraction={fraction} must lie between 0 and 1, e.g. data.val_fraction=0.1.")
    return problems


def _augment_problems(cfg: DictConfig) -> list[str]:
    from imago.data.augment_settings import Augment

    try:
        Augment(**cfg.augment)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def _loss_problems(cfg: DictConfig) -> list[str]:
    weight = cfg.loss.get("weight")
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
    return problems


def _callback_problems(cfg: DictConfig) -> list[str]:
    watched = {name: part.get("monitor") for name, part in cfg.callbacks.items() if part is not None}
    return [
        f"callbacks.{name}.monitor={monitor} is not one of {', '.join(_MONITORED)}."
        for name, monitor in watched.items()
        if monitor is not None and monitor not in _MONITORED
    ]


def _preprocess_problems(cfg: DictConfig) -> list[str]:
    problems = []
    size, resize, crop = cfg.preprocess.size, cfg.preprocess.resize, cfg.preprocess.crop
    if size is not None and size < 1:
        problems.append(f"preprocess.size={size} must be 1 or more.")
    if size is not None and resize is not None and resize < size:
        problems.append(f"preprocess.resize={resize} must be at least preprocess.size={size}.")
    if crop not in (None, "center", "squash"):
        problems.append(f"preprocess.crop={crop} is not one of center, squash.")
    for name in ("mean", "std"):
        values = cfg.preprocess[name]
        if values is not None and len(values) != 3:
            problems.append(f"preprocess.{name}={list(values)} must be three numbers, one a colour channel.")
    if cfg.preprocess.std is not None and not all(value > 0 for value in cfg.preprocess.std):
        problems.append(f"preprocess.std={list(cfg.preprocess.std)} must be greater than 0.")
    return problems


def _model_problems(cfg: DictConfig) -> list[str]:
    if cfg.model.get("freeze") is not None and cfg.model.get("weights") is None:
        return [f"model.freeze={cfg.model.freeze} with model.weights=null would train a head on random features."]
    problems = []
    for key, value in (
        ("model.dropout", cfg.model.get("dropout")),
        ("loss.label_smoothing", cfg.loss.get("label_smoothing")),
    ):
        if value is not None and not 0 <= value < 1:
            problems.append(f"{key}={value} must be at least 0 and below 1.")
    return problems


def _name_problems(cfg: DictConfig) -> list[str]:
    name = cfg.run_name
    if name is not None and (not str(name).strip(". ") or "/" in str(name) or "\\" in str(name)):
        return [f"run_name={name} must be the name of a folder, without slashes."]
    return []
