"""`train.py`: data, then task, then Trainer; fit, then one look at the test split with the best checkpoint."""

import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from imago.errors import ConfigError
from imago.run.checks import check_settings
from imago.run.folder import RunFolder, refuse_used_folder
from imago.run.requeue import requeueing
from imago.run.resume import refuse_other_run
from imago.run.room import check_writable


def train(cfg: DictConfig) -> float:
    """Train and test as the settings say; everything lands in the run folder.

    Returns:
        The best validation accuracy, in [0, 1]: what a sweep maximises. The test split decides nothing.

    Raises:
        UserError: for what the user can mend.
    """
    check_settings(cfg)
    job = HydraConfig.get()
    path = Path(job.runtime.output_dir)
    if job.mode == RunMode.MULTIRUN and cfg.trainer.devices not in (1, "1"):
        from imago.run.trial import run_trial

        return run_trial(list(job.overrides.task), path)
    folder = RunFolder(path, Path(cfg.paths.log_dir))
    cfg.paths.run_dir = str(path)
    if cfg.data.get("root"):
        cfg.data.root = str(Path(cfg.data.root).absolute())  # so that eval.py finds it from any folder
    if cfg.resume == "auto":  # a run that ended before its first checkpoint
        cfg.resume = None
    elif folder.is_main_process:
        _check_folder(cfg, path)
    if folder.is_main_process:
        check_writable(path)
    with requeueing(), folder.recording(cfg, list(job.overrides.task)):
        from imago.run.fit import fit_and_test  # torch is loaded only now, when nothing is left to refuse

        return fit_and_test(cfg, folder)


def _check_folder(cfg: DictConfig, path: Path) -> None:
    """A new run never writes over an old one, and a resumed one is the same run."""
    if cfg.resume is None:
        refuse_used_folder(path, cfg.run_name)
        return
    if not (path / "checkpoints" / "last.ckpt").is_file():
        raise ConfigError(f"resume={path}: it was stopped before its first checkpoint; start it again as a new run.")
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise ConfigError(f"resume={path}: its config.yaml or summary.json cannot be read ({error}).") from error
    now: Any = OmegaConf.to_container(cfg, resolve=True)
    refuse_other_run(saved, now, summary.get("epochs", 0), is_tested="test" in summary)
