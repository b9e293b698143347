"""From the shell to a command: compose the config, check it, call the command, and turn errors into exit codes.

Exit codes: 0 done, 2 a mistake of the user (one line on stderr), 1 a bug (with its traceback), 130 Ctrl-C. Neither
torch nor Lightning is imported before the config is known to be right, so a typo is answered at once.
"""

import argparse
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from imago.cli.overrides import check_complete, check_types, compose_defaults, explain_composition_error, quote_paths
from imago.cli.resume import resume_arguments
from imago.errors import ConfigError, UserError
from imago.instantiate import ALLOWED, check_targets
from imago.paths import PROJECT_ROOT, job_output_dir, register_resolvers
from imago.text import printable

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG_DIR = PROJECT_ROOT / "configs"

# What runs for each title page in src/: module:function, imported only when the config is checked. It is called with
# the config, and what it returns is a sweeper's to optimize.
COMMANDS = {
    "train": "imago.training.train:train",
    "export": "imago.export.export:export",
    "eval": "imago.inference.evaluate:evaluate",
    "predict": "imago.inference.predict:predict",
    "report": "imago.analysis.report:report",
    "check": "imago.dataset_check.check:check",
}

_STARTED = datetime.now()  # once per process: the run directory is asked for more than once


@dataclass
class _Jobs:
    """What became of the jobs of this process: one, or the trials of a sweep."""

    number: int = 0
    is_sweep: bool = False
    failures: list[Exception] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 2 if all(isinstance(error, UserError) for error in self.failures) else 1


def run_command(command: str, config_dir: Path = CONFIG_DIR) -> None:
    """Run `configs/<command>.yaml` with the command line's overrides; ends the process if anything failed.

    Args:
        command: a key of COMMANDS and the name of its YAML.
        config_dir: absolute.
    """
    jobs = _Jobs()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting itself
    try:
        _check_python()
        # Hydra reads it there, and Lightning passes it on to its ranks.
        sys.argv[1:] = resume_arguments(quote_paths(sys.argv[1:]), PROJECT_ROOT / "logs")
        _check_ranks()
        _check_loading()
        _read_flags()
        _quote_completed_line()
        register_run_folder()
        _start_hydra(command, config_dir, jobs)
    except KeyboardInterrupt:
        _fail(130, "stopped by Ctrl-C")
    except Exception as error:
        if _is_completion():
            sys.exit(0)  # a line that cannot be composed yet has nothing to offer, and must not write into the prompt
        if jobs.is_sweep and jobs.failures:
            _end_sweep(jobs)
        if isinstance(error, UserError):
            _fail(2, str(error))
        if error not in jobs.failures and _is_about_the_config(error):
            _fail(2, _explain(error, config_dir, command))
        raise
    if jobs.failures:  # a sweeper may swallow what a trial raised
        _end_sweep(jobs)


def _start_hydra(command: str, config_dir: Path, jobs: _Jobs) -> None:
    import hydra

    def job(config: "DictConfig") -> Any:
        return _run_job(command, config, jobs)

    job.__module__ = command  # where Hydra takes `hydra.job.name` from, hence the name in logs/<command>/
    hydra.main(config_path=str(config_dir), config_name=command, execution_whitelist=list(ALLOWED))(job)()


def _run_job(command: str, config: "DictConfig", jobs: _Jobs) -> Any:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    jobs.number += 1
    jobs.is_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        _check_config(config)
        return _load(command)(config)
    except Exception as error:  # no BaseException: Ctrl-C and SystemExit end a whole sweep
        jobs.failures.append(error)
        with suppress(OSError):
            job_output_dir().rmdir()  # Hydra made it; after a typo it would stay behind, empty
        if jobs.is_sweep:
            _report_trial(error)
        elif isinstance(error, UserError):
            _fail(2, str(error))  # from in here: Hydra adds a line of its own to an exception, but not to an exit
        raise


def _check_config(config: "DictConfig") -> None:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    check_complete(config)
    check_targets(config, config.get("extra_targets") or ())
    loader: Any = GlobalHydra.instance().config_loader()
    hydra_overrides, typed = _overrides("hydra"), _overrides("task")
    if typed:  # composing once more takes a tenth of a second
        defaults = compose_defaults(loader, str(HydraConfig.get().job.config_name), [*hydra_overrides, *typed])
        check_types(config, defaults, typed)


def _overrides(kind: str) -> list[str]:
    """What was typed for this job, `hydra` or `task`, with its references (`lr=${x}`) unresolved."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides, resolve=False)
    return list(overrides[kind])


def _load(command: str) -> Callable[["DictConfig"], Any]:
    module, _, function = COMMANDS[command].partition(":")
    loaded: Callable[[DictConfig], Any] = getattr(importlib.import_module(module), function)
    return loaded


def _report_trial(error: Exception) -> None:
    from hydra.core.hydra_config import HydraConfig

    if not isinstance(error, UserError):
        traceback.print_exception(error)
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    _print_error(f"trial {HydraConfig.get().job.num} ({' '.join(_overrides('task'))}): {kind}{error}")


def _end_sweep(jobs: _Jobs) -> NoReturn:
    _fail(jobs.exit_code, f"{len(jobs.failures)} of {jobs.number} trials failed")


def _fail(exit_code: int, message: str) -> NoReturn:
    _print_error(message)
    sys.exit(exit_code)


def _print_error(message: str) -> None:
    for line in message.splitlines() or [""]:
        print(f"error: {printable(line)}", file=sys.stderr, flush=True)  # it may hold a name from a disk


def _is_about_the_config(error: Exception) -> bool:
    """Whether an error from outside the command comes from what was typed or from a YAML, rather than from a bug."""
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("hydra", "omegaconf", "yaml"):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, ValueError) and str(frames[-1].f_globals.get("__name__")).startswith("hydra.")


def _explain(error: Exception, config_dir: Path, command: str) -> str:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path_from_sources

    flags = _read_flags()
    folders = [str(config_dir), *([os.path.abspath(flags.config_dir)] if flags.config_dir else [])]
    loader = ConfigLoaderImpl(create_config_search_path_from_sources(folders))
    return explain_composition_error(error, flags.overrides, loader, flags.config_name or command)


def _read_flags() -> argparse.Namespace:
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:  # instead of a page of usage
        raise ConfigError(f"{message}; settings are typed key=value, without dashes, and --help shows the flags.")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args()


def _check_python() -> None:
    if importlib.util.find_spec("hydra") is None:
        raise ConfigError(f"{sys.executable} lacks the project's packages; run make setup, then use .venv/bin/python.")


def _is_completion() -> bool:
    return not {"-sc", "--shell-completion"}.isdisjoint(sys.argv)


def _quote_completed_line() -> None:
    """Let TAB work behind `data.root=~/flowers`: the shell hands the line over in a variable, typed as it is."""
    if _is_completion() and "COMP_LINE" in os.environ:
        *words, unfinished = os.environ["COMP_LINE"].split(" ")
        os.environ["COMP_LINE"] = " ".join([*quote_paths(words), unfinished])


def _check_ranks() -> None:
    """Refuse an environment in which ranks would wait for each other for ever, or write to a folder each."""
    for name in ("LOCAL_RANK", "RANK"):
        if name in os.environ and "WORLD_SIZE" not in os.environ:
            raise ConfigError(
                f"{name}={os.environ[name]} is set in the environment, but WORLD_SIZE is not: this process would wait "
                f"for others that never come. Unset {name}, or start with torchrun."
            )
    # SLURM's own batch script has a number of tasks, too, but only what srun starts has a step.
    num_tasks = os.environ.get("SLURM_NTASKS", "1") if "SLURM_STEP_ID" in os.environ else "1"
    is_alone = os.environ.get("WORLD_SIZE", num_tasks) == "1"
    is_named = any(text.startswith(("hydra.run.dir=", "run_name=")) for text in sys.argv[1:])
    if not is_alone and not is_named and "RUN_ID" not in os.environ:
        raise ConfigError("there are several ranks: give them all one folder, by run_name=NAME or the variable RUN_ID.")


def _check_loading() -> None:
    """Refuse the variable that lets torch run code from a file that some library loads without saying how."""
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    if os.environ.get(name, "0").lower() in ("1", "y", "yes", "true"):
        raise ConfigError(f"{name} is set in the environment: checkpoints could run code; unset {name}.")


def register_run_folder() -> None:
    """Make `${project_root:}` and `${name_or_time:${run_name}}` known to OmegaConf."""
    from omegaconf import OmegaConf

    register_resolvers()
    time = os.environ.get("RUN_ID") or _STARTED.strftime("%Y-%m-%d_%H-%M-%S-%f")
    OmegaConf.register_resolver("name_or_time", lambda name: name or time, replace=True)
