"""Store settings so that a run can be resumed, and check that a resumed run is the same run."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from imago.augment.settings import Augment
from imago.errors import ConfigError, DataError, NothingToDo
from imago.files import read_json
from imago.inference.find_model import resolve_checkpoint
from imago.instantiate import to_plain
from imago.paths import checkpoint_file, quote_for_hydra
from imago.runs.run_directory import has_never_saved
from imago.settings import PATH_SETTINGS, absolute_paths, as_typed, flatten, is_same_value
from imago.training.pruning import is_pruned, resolve_pruned_run

# Settings that may change when a run is resumed: they do not change its weights. A name stands for all settings below
# it. Whether moved data is the same data is checked by its fingerprint.
_CHANGEABLE_KEYS = (
    *("paths", "callbacks", "logger", "resume", "run_name", "sweep_name", "test", "trust", "tags", "compile", "tta"),
    *("threads", "calibrate"),
    *("data.num_workers", "data.loader", "data.on_device", "data.cache", "data.cache_dir", "data.cache_gb"),
    *("data.root", "data.data_dir", "data.split_file", "data.list_file", "data.max_pixels"),
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
    *("trainer.strategy", "trainer.log_every_n_steps", "trainer.profiler", "trainer.limit_test_batches"),
    *("trainer.num_sanity_val_steps", "trainer.deterministic", "trainer.benchmark", "trainer.detect_anomaly"),
    *("trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.enable_autolog_hparams"),
    *("task.net", "task.optimizer", "task.schedule", "task.loss"),  # copies of these groups
)
# Of an augmentation that did not exist yet when the run was started.
_AUGMENT_DEFAULTS = {
    f"{group}.{field.name}": field.default for group in ("augment", "data.augment") for field in fields(Augment)
}
# A checkpoint with averaged weights has two sets of weights, and best.ckpt is the best of the whole run.
_FIXED_KEYS = ("callbacks.ema.", *(f"callbacks.best_checkpoint.{key}." for key in ("monitor", "mode", "save_top_k")))
_PATH_KEYS = (
    "paths.data_dir",
    "paths.log_dir",
    *(f"data.{key}" for key in PATH_SETTINGS),
    "task.teacher",
    "task.teacher.weights",
    "model.weights",
    "model.run",
)


def store_absolute_paths(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Make the paths in the settings absolute, so that resume and eval find the files from any directory.

    `cfg` is changed in place; returned are the overrides, as typed, with the same absolute paths.

    Raises:
        ConfigError: if `model.weights`, `model.run` or `task.teacher` names a run without a checkpoint.
    """
    for name in ("data_dir", "log_dir"):
        cfg.paths[name] = str(Path(cfg.paths[name]).expanduser().absolute())
    cfg.data.update(absolute_paths(cfg.data))
    weights = cfg.model.get("weights")
    if weights and weights != "default" and Path(weights).is_dir():
        try:
            cfg.model.weights = str(resolve_checkpoint(Path(weights)).resolve())
        except DataError as error:
            raise ConfigError(f"model.weights={error}") from error
    resolve_teacher(cfg.task)
    if is_pruned(cfg):
        resolve_pruned_run(cfg)
    stored = as_typed(overrides, to_plain(cfg, resolve=False))
    for index, override in enumerate(stored):
        key, _, value = override.partition("=")
        if key in _PATH_KEYS and value not in ("", "null"):
            stored[index] = f"{key}={quote_for_hydra(str(OmegaConf.select(cfg, key)))}"
    if cfg.resume in (None, "auto"):
        return stored
    saved = read_json(Path(cfg.resume) / "provenance.json").get("overrides", ())  # a resumed run stays where it is
    here = [override for override in saved if str(override).startswith("paths.log_dir=")]
    return [*(override for override in stored if not override.startswith("paths.log_dir=")), *here]


def resolve_teacher(task: DictConfig) -> None:
    """Make the teacher's path in the settings absolute and resolved: `logs/latest` will point to the student's run.

    Raises:
        ConfigError: if the run does not exist, or if `task.teacher.weights` is a run.
    """
    teacher = task.get("teacher")
    if teacher and isinstance(teacher, str):
        try:
            resolve_checkpoint(Path(teacher))
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


def check_run_directory(cfg: DictConfig, path: Path) -> None:
    """Check that a new run overwrites no other, and that a resumed run has a checkpoint and the same settings.

    The directory of a run that ended before its first save may be used again.

    Raises:
        ConfigError: naming `run_name`, `resume` or each setting that differs.
        NothingToDo: if the run has finished, and no setting extends it.
    """
    if cfg.resume is None:
        if (path / "summary.json").exists() and not has_never_saved(path):
            raise ConfigError(
                f"run_name={cfg.run_name}: {path} already holds a run; choose another name, or resume={path}."
            )
        return
    if not checkpoint_file(path, "last").is_file():
        raise ConfigError(
            f"resume={path}: the run ended before its first checkpoint; type run_name={path.name} without resume= to "
            "start again in its directory."
        )
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    except (OSError, ValueError, YAMLError) as error:
        raise ConfigError(f"resume={path}: its config.yaml cannot be read ({error}).") from error
    summary = read_json(path / "summary.json")
    num_done = summary.get("epochs", 0), summary.get("steps", 0)
    check_unchanged_settings(saved, to_plain(cfg), *num_done, is_finished=summary.get("status") == "finished")


def check_unchanged_settings(
    saved: Mapping[str, Any],
    settings: Mapping[str, Any],
    num_epochs_done: int,
    num_steps_done: int = 0,
    *,
    is_finished: bool,
) -> None:
    """Check that a resumed run keeps every setting that affects its weights, and has something left to do.

    `saved` is `config.yaml` of the run, `settings` those to resume with, both as plain data. A run that was killed
    during or after its final test may do that again.

    Raises:
        ConfigError: with one line for each such setting.
        NothingToDo: if the run has finished, and no setting extends it.
    """
    after = flatten(settings)
    before = {key: _AUGMENT_DEFAULTS[key] for key in after if key in _AUGMENT_DEFAULTS} | flatten(saved)
    different = [key for key in before | after if not is_same_value(key, before.get(key), after.get(key))]
    may_change = tuple(f"{name}." for name in _CHANGEABLE_KEYS)
    changed = [key for key in different if f"{key}.".startswith(_FIXED_KEYS) or not f"{key}.".startswith(may_change)]
    # If the class of a group has changed, the keys below it are not listed.
    changed_groups = tuple(key.removesuffix("_target_") for key in changed if key.endswith("._target_"))
    problems = [
        f"{key}={after.get(key)} cannot change on resume: the run has {key}={before.get(key)}; start a new run instead."
        for key in changed
        if key.endswith("._target_") or not key.startswith(changed_groups)
    ]
    done, reached = {"max_epochs": num_epochs_done, "max_steps": num_steps_done}, []
    try:
        reached = reached_limits(settings["trainer"], **done)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    if is_finished and (reached or not any(key.startswith(("trainer.max_", "callbacks.")) for key in different)):
        name = next(iter(reached), "max_epochs")
        raise NothingToDo(
            f"resume={settings['resume']}: nothing is left to do, this run has finished with "
            f"trainer.{name}={done[name]}; trainer.{name}={2 * done[name]} extends it."
        )


def reached_limits(trainer: Mapping[str, Any], max_epochs: int, max_steps: int) -> list[str]:
    """Return which limits of a trainer's settings are what a run has done, `max_epochs` epochs and `max_steps` steps.

    Raises:
        ConfigError: if a limit is less.
    """
    done = {"max_epochs": max_epochs, "max_steps": max_steps}
    limits = {name: limit for name in done if (limit := trainer.get(name) or -1) > 0}
    for name, limit in limits.items():
        if limit < done[name]:
            raise ConfigError(
                f"trainer.{name}={limit} is less than the {done[name]} that this run has done; type more."
            )
    return [name for name, limit in limits.items() if limit == done[name]]
