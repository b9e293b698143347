"""The sweeper behind `-m`, a plugin of Hydra: read and check the settings of a sweep, then run it."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from imago.analysis.ranking import SWEEP_FILE
from imago.cli.experiment import check_experiment
from imago.cli.overrides import check_complete, check_types, compose, compose_defaults
from imago.cli.search_space import parse_space
from imago.errors import ConfigError
from imago.files import write_json
from imago.instantiate import to_plain
from imago.paths import PROJECT_ROOT, command, quote_for_hydra, short_path
from imago.settings import typed_value
from imago.sweep.machine import threads_per_process
from imago.sweep.run import run_sweep
from imago.sweep.running_trial import Plan
from imago.sweep.space import Space
from imago.sweep.study import check_names
from imago.training.checks import check_settings
from imago.training.monitors import direction_of, logged_names

_SWEEP_KEYS = ("sweep", "sweep_name", "resume")  # settings of the sweep, not of its runs
_MONITOR_KEYS = ("callbacks.best_checkpoint.monitor", "callbacks.best_checkpoint.mode")
_DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}


class TrialSweeper(Sweeper):
    """Run a process for each trial, whose values a grid lists or a sampler of Optuna chooses.

    With another launcher than Hydra's basic one, Hydra's own sweeper runs all combinations.
    """

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        self.hydra_sweeper = BasicSweeper(max_batch_size, params)
        self.params = [f"{key}={values}" for key, values in (params or {}).items()]  # hydra.sweeper.params

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.settings: Any = config
        self.loader: Any = hydra_context.config_loader
        self.hydra_sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep that the overrides describe; return the objective of the best setting.

        Raises:
            UserError: for settings that no run can have, before anything is started.
        """
        typed = [text for text in arguments if _key(text).partition(".")[0] not in _SWEEP_KEYS]
        settings = self._checked_settings(arguments)
        space = parse_space([*typed, *self.params], settings["space"], self.loader)
        if space.parameters and any(_key(text) == "test" for text in typed):
            raise ConfigError("test: a search is ranked by val, and only its best setting is tested, once, at the end.")
        if space.parameters:  # with several seeds or folds only, nothing is chosen
            space = space._replace(fixed=(*space.fixed, "test=false"))
        if any(_has_own_sweep(text) for text in typed):
            space = space._replace(fixed=(*space.fixed, "sweep=[]"))
        config = self._check_runs(space)
        settings["objective"], settings["direction"], is_monitored = _objective(config, settings)
        if any(_key(parameter.key) in _MONITOR_KEYS for parameter in space.parameters):
            if self.settings.sweep.objective is None:
                raise ConfigError(
                    "callbacks.best_checkpoint.monitor has several values: type sweep.objective=val/acc, or another "
                    "metric, by which all are ranked."
                )
            is_monitored = False
        directory = Path(self.settings.hydra.sweep.dir).absolute()
        num_devices = config.trainer.devices if isinstance(config.trainer.devices, int) else 1
        num_threads = threads_per_process(settings["parallel"] * num_devices)
        sources = self.settings.hydra.runtime.config_sources
        flags = [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
        flags.append(f"--config-name={self.settings.hydra.job.config_name}")
        is_tested = bool(space.parameters or config.test)
        plan = Plan(directory, space, settings, is_monitored, num_threads, flags, is_tested)
        if str(self.settings.hydra.launcher._target_).endswith(".BasicLauncher"):
            return run_sweep(plan, is_continued=self.settings.resume == "auto")
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / SWEEP_FILE, plan.description)
        # Jobs that other processes compose would find another directory: without a name, it is the time.
        fixed = [f"hydra.sweep.dir={quote_for_hydra(str(directory))}", *(["test=false"] if space.parameters else [])]
        result = self.hydra_sweeper.sweep([*typed, *fixed])
        print(f"next:\n  {command('report')} run={shlex.quote(short_path(directory))}   # the ranking")
        return result

    def _checked_settings(self, arguments: list[str]) -> dict[str, Any]:
        """Return the group `sweep` as plain data.

        Raises:
            ConfigError: for a value of another type, or that cannot work.
        """
        own = [text for text in arguments if _key(text).partition(".")[0] in _SWEEP_KEYS]
        parsed = OverridesParser.create(config_loader=self.loader).parse_overrides(own)
        if several := next(
            (text for text, override in zip(own, parsed, strict=True) if override.is_sweep_override()), None
        ):
            raise ConfigError(f"{several}: a setting of the sweep itself has one value.")
        self._check_types(self.settings, [text for text in own if text.startswith("sweep.")])
        settings = to_plain(self.settings.sweep)
        for key in ("n_trials", "max_hours", "parallel"):
            if settings[key] is not None and not settings[key] > 0:
                raise ConfigError(f"sweep.{key}={settings[key]} must be greater than 0.")
        check_names(settings)
        if settings["sampler"] != "grid" and settings["n_trials"] is settings["max_hours"] is None:
            raise ConfigError("sweep.n_trials=null: type sweep.n_trials=N or sweep.max_hours=H, which end the search.")
        return settings

    def _check_runs(self, space: Space) -> DictConfig:
        """Check a run with the first value of each setting, and one with each option of a group; return its config.

        Raises:
            UserError: for a value that no run can have.
        """
        if not space.parameters and len(space.repeats) == 1:
            raise ConfigError("-m: no setting has several values; type e.g. optimizer.lr=1e-3,3e-3 or seed=1,2,3.")
        if self.settings.sweep.sampler == "grid":
            next(space.combinations())
        for parameter in space.parameters:
            if self.loader.get_group_options(parameter.key):
                for option in parameter.choices[1:]:
                    self._check_run(space.first({parameter.key: option}))
        return self._check_run(space.first({}))

    def _check_run(self, overrides: list[str]) -> DictConfig:
        """Compose and check the config of one run, before any is started; return the config."""
        composed = compose(self.loader, self.settings.hydra.job.config_name, overrides)
        config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        check_complete(config)
        self._check_types(config, overrides)
        check_settings(config)
        return config

    def _check_types(self, config: DictConfig, overrides: list[str]) -> None:
        choices = [text for text in self.settings.hydra.overrides.task if text.startswith("sweep=")]
        name = self.settings.hydra.job.config_name
        defaults = compose_defaults(self.loader, name, [*overrides, *choices])
        check_types(config, defaults, overrides)
        check_experiment(defaults, self.loader, name, [*overrides, *choices])


def prepare_sweep() -> None:
    """Choose `sweep=grid` unless another search is typed, and register our sweeper with Hydra."""
    typed = dict(text.replace('"', "").partition("=")[::2] for text in sys.argv[1:] if "=" in text)
    if typed.get("resume", "auto") != "auto":
        raise ConfigError(
            f"resume={typed['resume']} continues one run, and -m starts several: leave -m out, or type "
            "sweep_name=NAME resume=auto to continue a sweep."
        )
    if typed.get("resume") == "auto" and not typed.get("sweep_name"):
        raise ConfigError("resume=auto needs sweep_name=NAME, by which the command finds its sweep again.")
    if several := [key for key in ("sweep", "sweep_name") if "," in typed.get(key, "") or typed.get(key) == "[]"]:
        raise ConfigError(f"{several[0]}={typed[several[0]]}: a sweep has one; type one value.")
    if "run_name" in typed:
        raise ConfigError(f"run_name={typed['run_name']}: a sweep is named sweep_name=NAME; its runs are numbered.")
    if "hydra/sweeper" in typed:
        raise ConfigError(
            f"hydra/sweeper={typed['hydra/sweeper']}: the search is chosen with sweep=optuna, sweep=random or "
            "sweep=grid, which can be continued after a crash."
        )
    for text in sys.argv[1:]:
        if "interval(" in text and "," in re.sub(r"\(.*\)", "", text):
            raise ConfigError(f"{text}: an interval stands alone; leave the other values out.")
    if "sweep" not in typed and not any(map(_has_own_sweep, sys.argv[1:])):
        sys.argv.append("sweep=grid")
    Plugins.instance().register(TrialSweeper)


def _objective(config: DictConfig, settings: dict[str, Any]) -> tuple[str, Literal["maximize", "minimize"], bool]:
    """Return the metric to rank by, its direction, and whether the best checkpoint is chosen by it.

    Raises:
        ConfigError: for a metric of the test split, or one whose direction is not known.
    """
    best = config.callbacks.get("best_checkpoint")
    if best is None:
        raise ConfigError("callbacks.best_checkpoint=null: a sweep ranks its runs by what this callback monitors.")
    objective: str = settings["objective"] or best.monitor
    is_monitored = objective == best.monitor
    names = [name for name in (logged_names(config) or [objective]) if name.startswith("val/")]
    if not is_monitored and objective not in names:
        raise ConfigError(
            f"sweep.objective={objective}: settings are chosen by validation: {', '.join(names)}, or what "
            "callbacks.best_checkpoint monitors; the test split is only for the final test of the best one."
        )
    mode = (best.mode if is_monitored else None) or direction_of(config, objective)
    direction = settings["direction"] or _DIRECTIONS.get(str(mode))
    wanted = _DIRECTIONS.get(str(mode))
    if is_monitored and None not in (wanted, settings["direction"]) and direction != wanted:
        raise ConfigError(
            f"sweep.direction={direction}: the best checkpoint of a run is chosen by {objective} to {wanted}; leave it "
            "out, or also type callbacks.best_checkpoint.mode."
        )
    if direction is None or direction not in _DIRECTIONS.values():
        raise ConfigError(
            f"sweep.direction={typed_value(direction)} for sweep.objective={objective}: type sweep.direction=maximize "
            "or sweep.direction=minimize."
        )
    return objective, direction, is_monitored


def _has_own_sweep(override: str) -> bool:
    """Return whether an override chooses an experiment of `configs/experiment` that chooses a sweep."""
    key, _, name = override.partition("=")
    file = PROJECT_ROOT / "configs" / "experiment" / f"{name}.yaml"
    return key == "experiment" and file.is_file() and "override /sweep:" in file.read_text(encoding="utf-8")


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
