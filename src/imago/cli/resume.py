"""`resume=RUN`: the run's own settings first, then what was typed, in the run's own folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imago.errors import ConfigError
from imago.paths import quote_for_hydra


def resume_arguments(argv: Sequence[str], log_dir: Path) -> list[str]:
    """Replace `resume=RUN` on a command line by the settings that RUN was started with.

    Args:
        argv: arguments as typed, path-like values quoted for Hydra.
        log_dir: where `run_name=NAME resume=auto` looks for NAME, unless paths.log_dir is typed.

    Returns:
        The saved settings, the typed ones, and the folder; `argv` itself where there is nothing to resume.

    Raises:
        ConfigError: if RUN is no run directory, or nothing tells which one `auto` means.
    """
    if "resume=" in argv:
        raise ConfigError("resume= names nothing; give a run directory, e.g. resume=logs/latest.")
    typed = {_key(argument): argument for argument in argv if "=" in argument}
    if _value(typed.get("resume")) is None:
        return list(argv)
    folder = _folder(typed, Path(_value(typed.get("paths.log_dir")) or log_dir))
    if folder is None:  # resume=auto, and there is no such run
        return [argument for argument in argv if _key(argument) != "resume"]
    if not (folder / "checkpoints" / "last.ckpt").is_file() and _value(typed["resume"]) == "auto":
        return list(argv)  # it ended before its first checkpoint: it starts again, in its folder
    saved = {_key(argument): argument for argument in _saved_overrides(folder)}
    flags = [argument for argument in argv if "=" not in argument]
    # A key that the run added itself (+callbacks.mine=...) has to be added again, whoever gives its value now.
    typed |= {
        key: f"+{typed[key]}" for key in typed.keys() & saved.keys() if _adds(saved[key]) and not _adds(typed[key])
    }
    own = {
        "resume": f"resume={quote_for_hydra(str(folder))}",
        "hydra.run.dir": f"hydra.run.dir={quote_for_hydra(str(folder))}",
    }
    return [*flags, *(saved | typed | own).values()]


def _folder(typed: Mapping[str, str], log_dir: Path) -> Path | None:
    value = str(_value(typed["resume"]))
    if value != "auto":
        folder = Path(value).resolve()
        if not (folder / "provenance.json").is_file():
            raise ConfigError(f"resume={value} is not a run directory (no provenance.json); e.g. resume=logs/latest.")
        return folder
    name = _value(typed.get("run_name"))
    if name is None:
        raise ConfigError("resume=auto needs run_name=NAME, which tells the run to continue or to start.")
    folder = log_dir / "train" / name
    return folder if (folder / "summary.json").is_file() or (folder / "checkpoints" / "last.ckpt").is_file() else None


def _saved_overrides(folder: Path) -> list[str]:
    try:
        saved = [
            str(text) for text in json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["overrides"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"resume={folder}: its provenance.json cannot be read ({error}).") from error
    return [argument for argument in saved if _key(argument) != "resume"]


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+")


def _adds(argument: str) -> bool:
    return argument.startswith("+")


def _value(argument: str | None) -> str | None:
    """The value as it was before quoting; None where it is missing or null."""
    value = "null" if argument is None else argument.partition("=")[2]
    if value.startswith('"'):
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parsed: Any = OverridesParser.create().parse_override(str(argument)).value()
        return str(parsed)
    return None if value in ("", "null") else value
