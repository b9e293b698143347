"""What run directories tell, as plain Python: neither pandas nor torch, so a table of runs is there at once."""

import csv
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from imago.errors import DataError
from imago.files import read_json

_SIGNS = frozenset({"summary.json", "provenance.json"})  # a run that was killed at its very start has only the second
_PARTS = frozenset({"checkpoints", "tensorboard", "eval", "export", "predictions", "figures"})

# Settings that change no result: where a run writes, and what it shows while it runs. The dot ends a name.
_WITHOUT_EFFECT = (
    *("paths.", "logger.", "run_name.", "resume."),
    *("callbacks.progress.", "callbacks.speed.", "callbacks.image_grid."),
)
# PyYAML's parser in C is ten times as fast; it is left out of some builds.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Record:
    """One run, as far as its folder can be read; what it does not tell is None.

    Attributes:
        run: path below the folder that was searched.
        folder: the whole path.
        status: the run's own word (running, finished, failed, stopped), "died" for one that was killed and could not
            say so, or "unreadable".
        reason: why it failed or stopped, or what cannot be read.
        config_fault: why `settings` is empty, where its file is missing or damaged.
        started: in UTC, ISO 8601.
        settings: what was set, flat, named as on the command line.
        val_acc: best validation accuracy, so far if the run is not finished, in [0, 1].
        test_acc: of the best checkpoint, in [0, 1].
        test_low: lower end of its 95 % interval.
        test_high: upper end.
        num_test_images: images tested.
        best_epoch: counted from 1.
        epochs: done.
        seconds: from start to end, all included.
        images_per_s: in training.
        data_wait_share: of the training time, in [0, 1].
    """

    run: str
    folder: str
    status: str
    reason: str | None = None
    config_fault: str | None = None
    started: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    val_acc: float | None = None
    test_acc: float | None = None
    test_low: float | None = None
    test_high: float | None = None
    num_test_images: int | None = None
    best_epoch: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    images_per_s: float | None = None
    data_wait_share: float | None = None


def read_records(logs: Path | str) -> list[Record]:
    """Read every run below a folder, in order of their path.

    Args:
        logs: searched recursively; links are not followed, so `logs/latest` is not counted twice.

    Raises:
        DataError: if `logs` is no folder.
    """
    logs = Path(logs)
    if not logs.is_dir():
        raise DataError(f"runs={logs} is not a folder; give one that holds runs, e.g. logs.")
    folders = []
    for place, below, files in os.walk(logs):
        if not _SIGNS.isdisjoint(files):
            folders.append(Path(place))
            below[:] = [name for name in below if name not in _PARTS]
    return [read_record(folder, logs) for folder in sorted(folders)]


def read_record(folder: Path, logs: Path | None = None) -> Record:
    """Read one run; a damaged one is a record too, with the reason.

    Args:
        folder: of the run.
        logs: what `run` is relative to; the parent of the folder if left out.
    """
    place = folder.relative_to(logs).as_posix() if logs else "."
    place = place if place != "." else folder.resolve().name
    settings: dict[str, Any] = {}
    config_fault = None
    try:
        settings = _without_own_paths(read_settings(folder), folder)
    except DataError as error:
        config_fault = str(error)
    try:
        facts = _facts(folder)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        facts = {"status": "unreadable", "reason": _fault(folder / "summary.json", error)}
    return Record(place, str(folder.resolve()), settings=settings, config_fault=config_fault, **facts)


def read_settings(folder: Path) -> dict[str, Any]:
    """Flatten `config.yaml` to what is typed on a command line.

    A class stands under its group by its short name: `optimizer: AdamW`.

    Raises:
        DataError: if it is missing or damaged.
    """
    file = folder / "config.yaml"
    try:
        config = yaml.load(file.read_text(encoding="utf-8"), _YAML_LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(_fault(file, error)) from None
    if not isinstance(config, dict):
        raise DataError(f"{file} is damaged: it holds no settings")
    flat = _flatten(config)
    for network in ("model", "task.net"):  # its copy, see `differing`
        if name := flat.pop(f"{network}.name", None):
            flat[network] = name  # one class builds resnet18, resnet50, ...
    return flat


def read_logged(folder: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Read a run's `metrics.csv`: for each number that was logged, the steps and the values, which may be NaN.

    Raises:
        DataError: if the file is missing or damaged.
    """
    file = folder / "metrics.csv"
    logged: dict[str, tuple[list[float], list[float]]] = {}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                step = float(row.pop("step"))
                for name, value in row.items():
                    if value:
                        steps, values = logged.setdefault(name, ([], []))
                        steps.append(step)
                        values.append(float(value))
    except FileNotFoundError:
        raise DataError(f"{file} is missing: this run logged nothing.") from None
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    return logged


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the settings that are not the same in all of these, each once.

    `task.optimizer.lr` only repeats `optimizer.lr` and is left out.
    """
    names = dict.fromkeys(name for found in settings for name in found)
    found_values: dict[str, list[Any]] = {}
    for name in sorted(names, key=lambda name: name.count(".")):
        values = [found.get(name) for found in settings]
        short_path = name.replace("task.net", "task.model", 1)  # the one group that the task calls otherwise
        is_copy = any(short_path.endswith(f".{other}") and values == found_values[other] for other in found_values)
        if len(set(values)) > 1 and not is_copy:
            found_values[name] = values
    return list(found_values)


def _facts(folder: Path) -> dict[str, Any]:
    """Read `summary.json`; raises whatever a damaged one causes."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    test = summary.get("test") or {}
    low, high = test.get("interval_95") or (None, None)
    status, reason = summary.get("status"), summary.get("reason")
    if not isinstance(status, str):
        raise ValueError("it has no status")
    started = summary.get("started")
    if started is not None and not isinstance(started, str):
        raise ValueError("its start is no time")
    if status == "running" and _is_dead(folder, summary.get("pid")):
        status, reason = "died", "it was killed, or its machine stopped"
    numbers = {
        **{name: summary.get(name) for name in ("best_epoch", "epochs", "seconds", "images_per_s", "data_wait_share")},
        "val_acc": (summary.get("val") or {}).get("acc"),
        **{"test_acc": test.get("acc"), "test_low": low, "test_high": high},
        "num_test_images": test.get("num_images"),
    }
    if numbers["val_acc"] is None:  # written when training ends; until then the log tells
        numbers["val_acc"] = _best_so_far(folder)
    facts = {"status": status, "reason": reason, "started": started}
    return facts | {name: value if _is_number(value) else None for name, value in numbers.items()}


def _best_so_far(folder: Path) -> float | None:
    """Give the best `val/acc` that was logged, of a run that still goes on or did not come to its end."""
    try:
        return max(filter(math.isfinite, read_logged(folder).get("val/acc", ((), ()))[1]), default=None)
    except DataError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fault(file: Path, error: Exception) -> str:
    return f"{file} " + ("is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}")


def _is_dead(folder: Path, pid: Any) -> bool:
    """Tell whether a run of this very host has lost its process; of other hosts nothing is known."""
    host = read_json(folder / "provenance.json").get("host")
    if host != platform.node() or not isinstance(pid, int) or os.name == "nt":  # on Windows os.kill(pid, 0) kills
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it lives and belongs to somebody else
    return False


def _without_own_paths(flat: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Leave out what differs between any two runs and changes nothing: paths inside the run, where it writes."""
    run_dir = str(flat.get("paths.run_dir") or folder.resolve())
    return {
        name: value
        for name, value in flat.items()
        if not str(value).startswith(run_dir) and not f"{name}.".startswith(_WITHOUT_EFFECT)
    }


def _flatten(node: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{above}.{key}" if above else str(key)
        if key == "_target_":
            flat[above] = str(value).rsplit(".", 1)[-1].removesuffix("DataModule")
        elif isinstance(value, Mapping):
            flat |= _flatten(value, name)
        elif not str(key).startswith("_"):  # Hydra's own keys
            flat[name] = str(value) if isinstance(value, list) else value
    return flat
