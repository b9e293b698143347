"""The values that a schedule and callbacks monitor: their names, and whether smaller or larger ones are better."""

from collections.abc import Iterator

from omegaconf import DictConfig

from imago.errors import ConfigError
from imago.instantiate import import_target_or_none

_DIRECTIONS = {"train/loss": "min", "train/acc": "max", "val/loss": "min", "val/acc": "max"}


def monitor_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield one line for each `monitor` or `mode` of the schedule or of a callback that cannot work.

    The names that a task of the user's own logs are known only after its first validation.
    """
    names = logged_names(cfg)
    for key, settings in monitors(cfg).items():
        monitor, mode = settings.monitor, settings.get("mode")
        best = _DIRECTIONS.get(monitor)
        if names and monitor not in names:
            yield f"{key}.monitor={monitor} is not one of {', '.join(names)}."
        elif key == "schedule" and not monitor.startswith("val/"):
            yield f"schedule.monitor={monitor}: a schedule can only monitor validation; type val/loss or val/acc."
        elif mode is not None and best is not None and mode != best:
            yield f"{key}.mode={mode}: the best {monitor} is its {best}imum; type {key}.mode={best}."
        elif mode not in (None, "min", "max"):
            yield f"{key}.mode={mode} is not one of null, min, max."
        elif monitor.startswith("val/") and not cfg.trainer.limit_val_batches and "best_checkpoint" not in key:
            yield f"{key}.monitor={monitor}: trainer.limit_val_batches=0 leaves no validation to monitor."


def logged_names(cfg: DictConfig) -> list[str]:
    """Return the names that can be monitored; empty for a task of the user's own, which may log others."""
    if not str(cfg.task._target_).startswith("imago."):
        return []
    return [*_DIRECTIONS, *(f"val/{name}" for name, settings in cfg.metrics.items() if settings is not None)]


def monitors(cfg: DictConfig) -> dict[str, DictConfig]:
    """Return the settings of the schedule and of the callbacks that monitor a value, by their key."""
    nodes = {"schedule": cfg.schedule, **callback_settings(cfg)}
    return {key: settings for key, settings in nodes.items() if settings.get("monitor") is not None}


def set_modes(cfg: DictConfig) -> None:
    """Replace `mode: null` by the direction of the monitored value: that of a metric is its `higher_is_better`.

    Raises:
        ConfigError: if the direction is not known.
    """
    for key, settings in monitors(cfg).items():
        if "mode" in settings and settings.mode is None:
            settings.mode = direction_of(cfg, settings.monitor)
            if settings.mode is None:
                raise ConfigError(f"{key}.monitor={settings.monitor}: type {key}.mode=min or {key}.mode=max.")


def direction_of(cfg: DictConfig, monitor: str) -> str | None:
    """Return min or max for a logged value: what the names say, or `higher_is_better` of a metric; None if unknown."""
    if monitor in _DIRECTIONS:
        return _DIRECTIONS[monitor]
    settings = cfg.metrics.get(monitor.removeprefix("val/"))
    target = import_target_or_none(settings._target_) if settings else None
    higher_is_better = getattr(target, "higher_is_better", None)
    return None if higher_is_better is None else "max" if higher_is_better else "min"


def callback_settings(cfg: DictConfig) -> dict[str, DictConfig]:
    """Return the settings of the callbacks that are not turned off, by their key."""
    return {f"callbacks.{name}": settings for name, settings in cfg.callbacks.items() if settings is not None}
