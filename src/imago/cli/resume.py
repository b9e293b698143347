"""Add the saved settings of a run to a command line with `resume=RUN`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from imago.errors import ConfigError
from imago.files import read_json
from imago.paths import checkpoint_file, quote_for_hydra


def resume_arguments(argv: Sequence[str], log_dir: Path) -> list[str]:
    """Put the settings that RUN was started with before the typed ones, and keep its run directory.

    Args:
        argv: arguments as typed, path-like values quoted for Hydra.
        log_dir: where `run_name=NAME resume=auto` searches for NAME, unless paths.log_dir is typed.

    Returns:
        Flags, then one argument per setting; `argv` itself if there is nothing to resume.

    Raises:
        ConfigError: if RUN is not a run directory, or if `resume=auto` comes without a run_name.
    """
    typed = {_key(argument): argument for argument in argv if "=" in argument}
    if typed.get("resume") == "resume=":
        raise ConfigError("resume= has no value; type a run directory, e.g. resume=logs/latest.")
    resume = _value(typed, "resume")
    if resume is None:
        return list(argv)
    run_dir = _named_directory(typed, log_dir) if resume == "auto" else Path(resume).resolve()
    if resume == "auto" and not checkpoint_file(run_dir, "last").is_file():
        return list(argv)  # it is new, or ended before its first checkpoint: start in the same directory
    saved = read_json(run_dir / "provenance.json").get("overrides")
    if not isinstance(saved, list):
        raise ConfigError(
            f"resume={resume} is not a run directory: it has no readable provenance.json; e.g. resume=logs/latest."
        )
    directory = [f"{key}={quote_for_hydra(str(run_dir))}" for key in ("resume", "hydra.run.dir")]
    merged: dict[str, str] = {}
    for argument in [*map(str, saved), *typed.values(), *directory]:
        key = _key(argument)
        # A key that the run added (+callbacks.mine=...) must be added again, whether or not the + is typed again.
        is_added = merged.get(key, "").startswith("+") and not argument.startswith("+")
        merged[key] = f"+{argument}" if is_added else argument
    return [*(argument for argument in argv if "=" not in argument), *merged.values()]


def _named_directory(typed: Mapping[str, str], log_dir: Path) -> Path:
    """Return the run directory that `run_name=NAME resume=auto` continues or starts."""
    name = _value(typed, "run_name")
    if name is None:
        raise ConfigError("resume=auto needs run_name=NAME, the run to continue or to start.")
    return Path(_value(typed, "paths.log_dir") or log_dir) / "train" / name


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+")


def _value(typed: Mapping[str, str], key: str) -> str | None:
    """Return the typed value of a key without its quotes; None if it is absent, empty or null."""
    if key not in typed:
        return None
    from hydra.core.override_parser.overrides_parser import OverridesParser

    value = OverridesParser.create().parse_override(typed[key]).value()
    return None if value in (None, "") else str(value)
