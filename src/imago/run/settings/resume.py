"""`resume=RUN`: the run's own settings first, then what was typed, in the run's own folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imago.errors import ConfigError
from imago.run.settings.overrides import quoted

# What may differ when a run goes on: how it is carried out, and the Trainer's settings where they can change midway.
_FREE = (
    *("paths", "callbacks", "logger", "resume", "run_name", "extra_targets", "compile", "tta"),
    *("data.num_workers", "data.cache", "data.cache_dir"),
)
_BINDING = ("callbacks.ema",)  # a checkpoint holds two sets of weights with it, and one without
_JOINED = ("net", "optimizer", "schedule", "loss", "extra_targets")
# Where the data lies may change; that it is the same data is checked by its fingerprint.
_MAY_MOVE = ("data.root", "data.data_dir", "data.split_file", "data.list_file")
# Of the Trainer's settings, those that change how long, where and how loudly it trains. The others change the weights,
# or which of them are the best.
_FREE_IN_TRAINER = (
    *("max_epochs", "max_time", "accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "profiler"),
    *("limit_test_batches", "num_sanity_val_steps", "deterministic", "benchmark", "detect_anomaly"),
    *("enable_model_summary", "enable_progress_bar", "enable_checkpointing", "default_root_dir"),
)


def resume_arguments(argv: Sequence[str], log_dir: Path) -> list[str]:
    """Replace `resume=RUN` on a command line by the settings that RUN was started with.

    Args:
        argv: arguments as typed, path-like values quoted for Hydra.
        log_dir: where `run_name=NAME resume=auto` looks for NAME, unless paths.log_dir is typed.

    Returns:
        The saved settings, the typed ones, and the folder; `argv` itself where there is nothing to resume.

    Raises:
        ConfigError: if RUN is no run folder, or nothing tells which one `auto` means.
    """
    if "resume=" in argv:
        raise ConfigError("resume= names nothing; give a run folder, e.g. resume=logs/latest.")
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
    own = {"resume": f"resume={quoted(str(folder))}", "hydra.run.dir": f"hydra.run.dir={quoted(str(folder))}"}
    return [*flags, *(saved | typed | own).values()]


def refuse_other_run(saved: Mapping[str, Any], now: Mapping[str, Any], num_epochs_done: int, is_tested: bool) -> None:
    """Refuse settings that would make it another run, or leave nothing to do.

    Args:
        saved: `config.yaml` of the run, as plain data.
        now: the settings it would go on with, likewise.
        num_epochs_done: from its summary.
        is_tested: whether the final test is done too; a run that was killed in it may do it again.

    Raises:
        ConfigError: with a line for each such setting.
    """
    before, after = dict(_leaves(saved)), dict(_leaves(now))
    changed = [key for key in before | after if before.get(key) != after.get(key) and not _is_free(key)]
    # Of a group that was swapped, its class says it all; the keys below differ as a matter of course.
    swapped = {key.removesuffix("_target_") for key in changed if key.endswith("._target_")}
    changed = [key for key in changed if key.endswith("._target_") or not key.startswith(tuple(swapped))]
    problems = [
        f"{key}={after.get(key)} would make it another run: it has {key}={before.get(key)}; start a new run for that."
        for key in changed
    ]
    max_epochs = now["trainer"]["max_epochs"]
    if not problems and (num_epochs_done > max_epochs or (num_epochs_done == max_epochs and is_tested)):
        problems.append(
            f"resume={now['resume']}: this run has done its trainer.max_epochs={num_epochs_done}; "
            f"trainer.max_epochs={2 * num_epochs_done} extends it."
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _folder(typed: Mapping[str, str], log_dir: Path) -> Path | None:
    value = str(_value(typed["resume"]))
    if value != "auto":
        folder = Path(value).resolve()
        if not (folder / "provenance.json").is_file():
            raise ConfigError(f"resume={value} is not a run folder (no provenance.json); e.g. resume=logs/latest.")
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


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _is_free(key: str) -> bool:
    if key.startswith("trainer."):
        return key.split(".")[1] in _FREE_IN_TRAINER
    if key.startswith(_BINDING):
        return False
    # `task` repeats the groups that it joins; naming a setting once is enough.
    repeated = key.startswith("task.") and key.split(".")[1] in _JOINED
    return repeated or any(key == free or key.startswith(f"{free}.") for free in (*_FREE, *_MAY_MOVE))
