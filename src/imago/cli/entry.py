"""Run a command: compose the config, check it, call the command's function and turn exceptions into exit codes.

Exit codes: 0 success; 1 a bug (with its traceback), or images or findings that need attention (predict.py, check.py);
2 an error of the user (one line on stderr); 130 Ctrl-C; 143 another stop signal.
Neither torch nor Lightning is imported before the config is checked, so that a typo is reported within a second.
"""

import argparse
import importlib.util
import io
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from imago.cli.arguments import accept_arguments
from imago.cli.experiment import check_experiment
from imago.cli.messages import explain_composition_error
from imago.cli.overrides import (
    check_complete,
    check_group_choices,
    check_types,
    compose,
    compose_defaults,
    quote_paths,
)
from imago.cli.resume import check_saved_outputs, check_saved_settings, is_group_choice, override_key, resume_arguments
from imago.errors import ConfigError, UserError
from imago.instantiate import to_plain
from imago.log import ignore_closed_pipes
from imago.paths import CONFIG_DIR, PROJECT_ROOT, job_output_dir, register_resolvers
from imago.runs.failure import to_user_error
from imago.settings import as_typed
from imago.system import keep_freed_memory
from imago.text import printable

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Command -> module:function, imported after the config is checked and called with it. A sweeper optimizes the return
# value.
COMMANDS = {
    "train": "imago.training.train:train",
    "export": "imago.export.export:export",
    "eval": "imago.inference.evaluate:evaluate",
    "predict": "imago.inference.predict:predict",
    "report": "imago.analysis.report:report",
    "check": "imago.dataset_check.check:check",
}
CARD_COMMAND = "imago.export.model_card:write_model"  # report.py card=true push=NAME: it exports, which loads torch


class _Job:
    """The function that Hydra calls with a composed config of a command: once, or once per trial of a sweep."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.__module__ = command  # becomes `hydra.job.name`, the <command> in logs/<command>/
        self.saved: list[str] = []  # overrides that come from the directory of a resumed run
        self.num_trials = 0
        self.failures: list[Exception] = []

    def __call__(self, cfg: "DictConfig") -> Any:
        """Check the config and run the command; return what a sweep optimizes, NaN for a trial that failed."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        self.num_trials += 1
        job = HydraConfig.get()
        overrides = to_plain(job.overrides, resolve=False)
        try:
            self._check_config(cfg, overrides)
            if self.command in ("train", "eval"):
                keep_freed_memory()
            is_card = self.command == "report" and (cfg.card or cfg.push)
            return pkgutil.resolve_name(CARD_COMMAND if is_card else COMMANDS[self.command])(cfg)
        except Exception as error:  # not BaseException: Ctrl-C and SystemExit end the sweep
            error = to_user_error(error)  # the disk is full, or the memory
            self.failures.append(error)
            with suppress(OSError):
                job_output_dir().rmdir()  # created by Hydra, and still empty after a typo
            if job.mode == RunMode.MULTIRUN:
                if not isinstance(error, UserError):
                    traceback.print_exception(error)
                reason = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                typed = " ".join(as_typed(overrides["task"], to_plain(cfg, resolve=False)))
                _print_error(f"trial {job.job.num} ({typed}): {reason}")
                return float("nan")
            if isinstance(error, UserError):  # exit here: Hydra prints a line of its own for an exception
                _fail(error.exit_code, str(error))
            raise

    def accept_arguments(self) -> None:
        """Rewrite `sys.argv` so that Hydra accepts the arguments of targets, see `imago.cli.arguments`.

        A command line that does not compose is left to Hydra, whose error is explained.
        """
        flags = _read_flags()
        if not flags.overrides or flags.help or flags.hydra_help or flags.shell_completion:
            return
        try:
            replaced = accept_arguments(flags.overrides, _config_loader(flags), flags.config_name or self.command)
        except Exception as error:
            if not _is_config_error(error):
                raise
            return
        sys.argv[1:], self.saved = (
            [new for text in line for new in replaced.get(text, [text])] for line in (sys.argv[1:], self.saved)
        )

    def _check_config(self, cfg: "DictConfig", overrides: dict[str, list[str]]) -> None:
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.hydra_config import HydraConfig

        check_complete(cfg)
        if not (typed := overrides["task"]):
            return
        loader: Any = GlobalHydra.instance().config_loader()
        name = str(HydraConfig.get().job.config_name)
        if self.saved:
            # With ++, as a value may be typed below a key that the run added.
            saved = set(map(override_key, self.saved))
            own_values = [
                f"++{text.lstrip('+')}"
                for text in typed
                if not (override_key(text) in saved or text.startswith("~") or is_group_choice(text))
            ]
            own = compose(loader, name, [*overrides["hydra"], *filter(is_group_choice, typed), *own_values])
            own_settings, run_dir = to_plain(own, resolve=False), Path(cfg.resume)
            check_saved_settings(to_plain(cfg), own_settings, run_dir, cfg.trust)
            check_saved_outputs(to_plain(cfg, resolve=False), own_settings, run_dir)
        defaults = compose_defaults(loader, name, [*overrides["hydra"], *typed])
        check_types(cfg, defaults, typed)
        check_experiment(defaults, loader, name, [*overrides["hydra"], *typed])


def run_command(command: str) -> None:
    """Compose `configs/<command>.yaml` with the command line and run the command; exit the process on an error.

    It applies `@hydra.main`, a name that Hydra's bash completion requires in the text of the script: hence the comments
    in `src/*.py`.
    """
    ignore_closed_pipes()
    job = _Job(command)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    try:
        job.saved = _prepare_command_line(command)
        register_resolvers()
        job.accept_arguments()
        import hydra

        with _own_completions(command):
            hydra.main(config_path=str(CONFIG_DIR), config_name=command)(job)()
    except KeyboardInterrupt:
        _fail(130, "stopped by Ctrl-C")
    except Exception as error:
        if not {"-sc", "--shell-completion"}.isdisjoint(sys.argv):
            sys.exit(0)  # a line that does not compose has no completions; an error would be printed into the prompt
        if isinstance(error, UserError):
            _fail(error.exit_code, str(error))
        if error not in job.failures and _is_config_error(error):
            flags = _read_flags()  # to compose once more, as Hydra did
            config_name = flags.config_name or command
            _fail(2, explain_composition_error(error, flags.overrides, _config_loader(flags), config_name))
        raise
    if job.failures:  # only in a sweep
        is_bug = not all(isinstance(error, UserError) for error in job.failures)
        _fail(1 if is_bug else 2, f"{len(job.failures)} of {job.num_trials} trials failed")


@contextmanager
def _own_completions(command: str) -> Iterator[None]:
    """Print only those completions that belong to the command: Hydra offers the groups of all of them."""
    if not any(text.startswith("query=") for text in sys.argv[1:]):
        yield
        return
    with redirect_stdout(io.StringIO()) as offered:
        yield
    loader = _config_loader(_read_flags())
    others = {*loader.list_groups("")} - {*compose(loader, command, []).hydra.runtime.choices}
    print(*(text for text in offered.getvalue().split() if re.split("[=./]", text.lstrip("+~"))[0] not in others))


def _prepare_command_line(command: str) -> list[str]:
    """Check the environment and rewrite `sys.argv`, which Hydra reads and Lightning passes on to its ranks.

    Return the overrides that come from the directory of a resumed run.
    """
    if importlib.util.find_spec("hydra") is None:
        raise ConfigError(f"{sys.executable} lacks the project's packages; run make setup, then use .venv/bin/python.")
    sys.argv[1:] = quote_paths(sys.argv[1:])
    is_sweep = command == "train" and _read_flags().multirun
    saved: list[str] = []
    if is_sweep:
        if importlib.util.find_spec("optuna") is None:
            raise ConfigError("-m needs the package optuna, an extra of this project: pip install -e '.[sweep]'.")
        from imago.cli.sweeper import prepare_sweep

        prepare_sweep()
    else:
        sys.argv[1:], saved = resume_arguments(sys.argv[1:], PROJECT_ROOT / "logs")
    _check_ranks()
    check_group_choices(sys.argv[1:])
    unsafe = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # torch.load would then unpickle any object, also in other libraries
    if os.environ.get(unsafe, "0").lower() in ("1", "y", "yes", "true"):
        raise ConfigError(f"{unsafe} is set in the environment: checkpoints could run code; unset {unsafe}.")
    for name, value in os.environ.items():  # Lightning would use it instead of the setting
        if name.startswith("PL_TRAINER_") and value:
            key = f"trainer.{name.removeprefix('PL_TRAINER_').lower()}"
            raise ConfigError(f"{name}={value} is set in the environment: type {key}={value}, and unset {name}.")
    return saved


def _check_ranks() -> None:
    """Refuse an environment in which ranks would wait for each other forever, or each write to its own directory."""
    world_size = os.environ.get("WORLD_SIZE", "")
    ranks = [str(rank) for rank in range(int(world_size))] if world_size.isdecimal() else []
    for name in ("LOCAL_RANK", "RANK"):
        if name in os.environ and os.environ[name] not in ranks:
            raise ConfigError(
                f"{name}={os.environ[name]} is set in the environment, and WORLD_SIZE={world_size} is not a number "
                f"above it: this process would wait for ranks that are not started. Unset {name}, or use torchrun."
            )
    # SLURM sets SLURM_NTASKS in the batch script too, and Lightning would wait for the other tasks. It sets
    # SLURM_STEP_ID only in processes that srun starts.
    if "SLURM_STEP_ID" not in os.environ:
        os.environ.pop("SLURM_NTASKS", None)
    is_single_process = (world_size or os.environ.get("SLURM_NTASKS", "1")) == "1"
    has_directory_name = any(text.startswith(("hydra.run.dir=", "run_name=")) for text in sys.argv[1:])
    if not is_single_process and not has_directory_name and "RUN_ID" not in os.environ:
        raise ConfigError(
            "there are several ranks: name one directory for all of them with run_name=NAME or the variable RUN_ID."
        )


def _fail(exit_code: int, message: str) -> NoReturn:
    if exit_code:
        _print_error(message)
    else:  # a run that has nothing left to do
        print(printable(message))
    sys.exit(exit_code)


def _print_error(message: str) -> None:
    for line in message.splitlines() or [""]:
        print(f"error: {printable(line)}", file=sys.stderr, flush=True)


def _is_config_error(error: Exception) -> bool:
    """Return whether an exception from outside the command is about the command line or a YAML, not a bug."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    return isinstance(error, (OSError, UnicodeDecodeError)) or package in ("hydra", "omegaconf", "yaml")


def _config_loader(flags: argparse.Namespace) -> Any:
    """Return a loader that searches the same directories as Hydra will."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path_from_sources

    directories = [str(CONFIG_DIR), *([os.path.abspath(flags.config_dir)] if flags.config_dir else [])]
    return ConfigLoaderImpl(create_config_search_path_from_sources(directories))


def _read_flags() -> argparse.Namespace:
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.allow_abbrev = False  # --experiment=NAME would be Hydra's --experimental-rerun

    def refuse(message: str) -> NoReturn:  # argparse itself would print its usage and exit
        raise ConfigError(f"{message}; settings are typed key=value, without dashes, and --help shows the flags.")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args()
