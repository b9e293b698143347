"""`train.py`: data, then task, then Trainer; fit, then one look at the test split with the best checkpoint."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from imago.errors import ConfigError, DataError
from imago.files import read_json
from imago.inference.load import checkpoint_path
from imago.paths import quote_for_hydra
from imago.runs.run_directory import RunDirectory, refuse_used_directory
from imago.training.checks import check_settings
from imago.training.resume import refuse_other_run
from imago.training.teacher import resolve_teacher


def train(cfg: DictConfig) -> float:
    """Train and test as the settings say; everything lands in the run directory.

    Returns:
        The best validation accuracy, in [0, 1]: what a sweep maximizes. The test split decides nothing.

    Raises:
        UserError: for what the user can mend.
    """
    check_settings(cfg)
    job = HydraConfig.get()
    path = Path(job.runtime.output_dir)
    if job.mode == RunMode.MULTIRUN and cfg.trainer.devices not in (1, "1"):
        from imago.training.trial import run_trial

        return run_trial(list(job.overrides.task), path)
    folder = RunDirectory(path, Path(cfg.paths.log_dir))
    cfg.paths.run_dir = str(path)
    if cfg.data.get("root"):
        cfg.data.root = str(Path(cfg.data.root).absolute())  # so that eval.py finds it from any folder
    if cfg.model.get("weights"):
        cfg.model.weights = _find_weights(cfg.model.weights)
    resolve_teacher(cfg.task)
    typed = [_settled(text, cfg) for text in job.overrides.task]
    is_auto = cfg.resume == "auto"  # a run that ended before its first checkpoint
    if is_auto:
        cfg.resume = None
    settings = OmegaConf.to_yaml(cfg, resolve=True)
    with folder.open(settings, typed, cfg.seed, check=None if is_auto else lambda: _check_folder(cfg, path)):
        if cfg.tune:
            from imago.training.tune import tune_lr

            return tune_lr(cfg, folder, typed)
        from imago.training.fit import fit_and_test  # torch is loaded only now, when nothing is left to refuse

        return fit_and_test(cfg, folder)


def _find_weights(typed: str) -> str:
    """Give the best checkpoint of a run directory, by its real name; what else it may be, the network understands."""
    if typed == "default" or not Path(typed).is_dir():
        return typed
    try:
        return str(checkpoint_path(Path(typed)).resolve())
    except DataError as error:
        raise ConfigError(f"model.weights={error}") from error


def _settled(override: str, cfg: DictConfig) -> str:
    """Give a setting as it is resumed from: a path by what it meant when it was typed."""
    key, _, value = override.partition("=")
    if key not in ("data.root", "task.teacher", "task.teacher.weights", "model.weights") or value in ("", "null"):
        return override
    return f"{key}={quote_for_hydra(str(OmegaConf.select(cfg, key)))}"


def _check_folder(cfg: DictConfig, path: Path) -> None:
    """A new run never writes over an old one, and a resumed one is the same run."""
    if cfg.resume is None:
        refuse_used_directory(path, cfg.run_name)
        return
    if not (path / "checkpoints" / "last.ckpt").is_file():
        raise ConfigError(f"resume={path}: it was stopped before its first checkpoint; start it again as a new run.")
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    except (OSError, ValueError, YAMLError) as error:
        raise ConfigError(f"resume={path}: its config.yaml cannot be read ({error}).") from error
    if not saved:
        raise ConfigError(f"resume={path}: its config.yaml is empty, so nothing tells which run it was.")
    summary = read_json(path / "summary.json")
    now: Any = OmegaConf.to_container(cfg, resolve=True)
    refuse_other_run(saved, now, summary.get("epochs", 0), is_tested="test" in summary)
