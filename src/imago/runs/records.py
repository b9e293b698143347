"""Read run directories as plain Python objects, without torch or pandas, whose import takes seconds."""

import csv
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml  # type: ignore[import-untyped]

from imago.errors import DataError
from imago.files import RUN_SUBDIRECTORIES, read_json, refuse_links
from imago.settings import flat_settings
from imago.system import try_lock
from imago.text import printable

# The files that mark a run directory; a run that was killed at its start has only the second.
_MARKER_FILES = frozenset({"summary.json", "provenance.json"})

_STATUSES = ("running", "finished", "failed", "stopped", "pruned", "died", "evaluated")  # in summary.json
_ENDED_EARLY = ("stopped", "failed", "pruned", "died")  # statuses
_SUMMARY_COUNTS = ("num_images", "num_left_out", "num_groups")  # numbers beside the metrics of a split

# Settings that do not change a result. The trailing dot matches whole keys only.
_KEYS_WITHOUT_EFFECT = (
    *("paths.", "logger.", "run_name.", "sweep_name.", "resume.", "calibrate.", "threads.", "tags.", "trust.", "test."),
    *("callbacks.progress.", "callbacks.speed.", "callbacks.image_grid.", "callbacks.grad_norm.", "callbacks.memory."),
    *("callbacks.rich_progress_bar.", "callbacks.last_checkpoint.", "trainer.log_every_n_steps.", "trainer.profiler."),
    *("trainer.enable_model_summary.", "trainer.enable_progress_bar.", "data.num_workers.", "data.loader."),
    *("data.cache.", "data.cache_dir."),
)
# PyYAML's parser in C is ten times as fast; some builds do not include it.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class RunRecord:
    """One run, as far as its directory can be read; a missing value is None."""

    run: str  # path relative to the directory that was searched
    run_dir: str  # absolute path of the run directory
    status: str  # running, finished, failed, stopped or pruned as in the summary; "died" if it was killed; "unreadable"
    reason: str | None = None  # why it failed or stopped, or what cannot be read
    config_error: str | None = None  # why `settings` is empty
    started: str | None = None  # in UTC, ISO 8601
    tags: str = ""  # joined with commas
    typed: Mapping[str, str] = field(default_factory=dict)  # the settings that were typed, by their names
    settings: Mapping[str, Any] = field(default_factory=dict)  # flat, named as on the command line
    val_acc: float | None = None  # best validation accuracy in [0, 1], so far if the run is not finished
    test_acc: float | None = None  # of the best checkpoint, in [0, 1]
    test_low: float | None = None  # test_low to test_high: 95 % interval of the test accuracy
    test_high: float | None = None
    test_tta: str | None = None  # with which views it was tested, None for one view
    # The other metrics of validation in the best epoch and of the test, by their logged names, such as `val/f1`.
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_test_images: int | None = None
    data_fingerprint: str | None = None  # of the whole dataset, and of the contents of the tested images
    best_epoch: int | None = None  # epoch of the best checkpoint, counted from 1
    epochs: int | None = None
    seconds: float | None = None  # from the last start to the end
    images_per_s: float | None = None  # in training, over all devices
    data_wait_share: float | None = None  # share of the training time spent waiting for data, in [0, 1]


def read_records(log_dir: Path | str) -> list[RunRecord]:
    """Read every run below a directory, in order of the paths; `logs/latest`, a link, is not counted again.

    A run that ended before it logged or saved anything is left out.

    Raises:
        DataError: if `log_dir` is not a directory.
    """
    log_dir = Path(log_dir)
    if not log_dir.is_dir():
        raise DataError(f"runs={log_dir} is not a directory; type one that contains runs, e.g. runs=logs.")
    run_dirs = []
    for path, subdirectories, files in os.walk(log_dir):
        if not _MARKER_FILES.isdisjoint(files):
            run_dirs.append(Path(path))
            subdirectories[:] = [name for name in subdirectories if name not in RUN_SUBDIRECTORIES]
    records = [read_record(run_dir, log_dir) for run_dir in sorted(run_dirs)]
    return [record for record in records if record.status not in _ENDED_EARLY or _has_trained(record)]


def _has_trained(record: RunRecord) -> bool:
    run_dir = Path(record.run_dir)
    return (run_dir / "metrics.csv").exists() or any(run_dir.glob("checkpoints/*.ckpt"))


def unfinished_note(run_dir: Path) -> str:
    """Return the status and the reason of a run that has not finished; "" for one that has, or that is none."""
    record = read_record(run_dir)
    is_unfinished = record.status in ("running", *_ENDED_EARLY)
    reason = f", {printable(record.reason)}" if record.reason else ""
    return f"the run has not finished: {record.status}{reason}" if is_unfinished else ""


def read_record(run_dir: Path, log_dir: Path | None = None) -> RunRecord:
    """Read one run; return a record with the reason if its config or summary is missing or damaged.

    `RunRecord.run` is relative to `log_dir`, by default the parent of the run directory.
    """
    name = run_dir.relative_to(log_dir).as_posix() if log_dir else "."
    name = name if name != "." else run_dir.resolve().name
    settings: dict[str, Any] = {}
    config_error = None
    try:
        refuse_links(run_dir)
    except DataError as error:
        return RunRecord(name, str(run_dir.resolve()), "unreadable", str(error))
    try:
        settings = read_settings(run_dir)
    except DataError as error:
        config_error = str(error)
    prefix = str(settings.get("paths.run_dir") or run_dir.resolve())
    settings = {  # without those that differ between any two runs without an effect
        name: value
        for name, value in settings.items()
        if not str(value).startswith(prefix) and not f"{name}.".startswith(_KEYS_WITHOUT_EFFECT)
    }
    try:
        results = _read_summary(run_dir)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        results = {"status": "unreadable", "reason": _read_error(run_dir / "summary.json", error)}
    provenance = read_json(run_dir / "provenance.json")
    fingerprint = "-".join(str(value)[:16] for key in ("data", "test") if (value := provenance.get(key)))
    results["data_fingerprint"] = fingerprint or None
    typed = (text.lstrip("+").partition("=") for text in _texts(provenance.get("overrides")))
    results["typed"] = {name: value for name, _, value in typed}
    return RunRecord(name, str(run_dir.resolve()), settings=settings, config_error=config_error, **results)


def read_settings(run_dir: Path) -> dict[str, Any]:
    """Read `config.yaml` as a flat dict from names as typed on the command line to values.

    The value of a group is the short name of its class: `optimizer: AdamW`.

    Raises:
        DataError: if it is missing or damaged.
    """
    file = run_dir / "config.yaml"
    try:
        config = yaml.load(file.read_text(encoding="utf-8"), _YAML_LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(_read_error(file, error)) from None
    if not isinstance(config, dict):
        raise DataError(f"{file} is damaged: it holds no settings")
    flat = flat_settings(config)
    for network in ("model", "task.net"):  # the second is a copy, see `differing_settings`
        if name := flat.pop(f"{network}.name", None):
            flat[network] = name  # one class builds resnet18, resnet50, ...
    return flat


def read_logged(run_dir: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Read `metrics.csv`: for each logged name the steps and the values, which may be NaN.

    Raises:
        DataError: if the file is missing or damaged.
    """
    file = run_dir / "metrics.csv"
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
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(_read_error(file, error)) from None
    return logged


def differing_settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the settings that are not equal in all runs, without copies such as `task.optimizer.lr`.

    A run of another task may lack the copy.
    """
    names = {name for run in settings for name in run}
    found: dict[str, list[Any]] = {}
    for name in sorted(names, key=lambda name: (name.count("."), name)):
        values = [run.get(name) for run in settings]
        original = name.replace("task.net", "task.model", 1)  # the one group with another name in the task
        originals = [found[other] for other in found if original.endswith(f".{other}")]
        is_copy = any(all(a in (None, b) for a, b in zip(values, other, strict=True)) for other in originals)
        if len(set(values)) > 1 and not is_copy:
            found[name] = values
    return list(found)


def summary_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite metrics of validation (in the best epoch) and test by their logged names, such as `val/f1`."""
    return {
        f"{split}/{name}": value
        for split in ("val", "test")
        for name, value in (summary.get(split) or {}).items()
        if name not in _SUMMARY_COUNTS and _is_finite(value)
    }


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _read_summary(run_dir: Path) -> dict[str, Any]:
    """Return the fields of a `RunRecord` in `summary.json`; a damaged file raises one of several errors."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    status, reason, started = summary.get("status"), summary.get("reason"), summary.get("started")
    if status not in _STATUSES or not isinstance(started, str | None):
        raise ValueError("it has no known status, or its start is not a string")
    if status == "running" and _has_died(run_dir, summary.get("pid")):
        status, reason = "died", "its process ended without a status: killed, or the machine was shut down"
    test = summary.get("test") or {}
    low, high = test.get("interval_95") or (None, None)
    numbers = {
        **{name: summary.get(name) for name in ("best_epoch", "epochs", "seconds", "images_per_s", "data_wait_share")},
        "val_acc": (summary.get("val") or {}).get("acc"),
        **{"test_acc": test.get("acc"), "test_low": low, "test_high": high},
        "num_test_images": test.get("num_images"),
    }
    if summary.get("val") is None:  # written at the end of training; until then the best epoch is in the log
        with suppress(DataError):
            values = read_logged(run_dir).get("val/acc", ([], []))[1]
            numbers["val_acc"] = max(filter(math.isfinite, values), default=None)
    finite = {name: value if _is_finite(value) else None for name, value in numbers.items()}
    metrics = {name: value for name, value in summary_metrics(summary).items() if name not in ("val/acc", "test/acc")}
    tags = ", ".join(_texts(summary.get("tags")))
    texts = {"status": status, "reason": reason, "started": started, "tags": tags, "test_tta": test.get("tta")}
    return texts | {"metrics": metrics} | finite


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


def _read_error(file: Path, error: Exception) -> str:
    return f"{file} " + ("is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}")


def _has_died(run_dir: Path, pid: Any) -> bool:
    """Return whether the process of a run on this machine has ended; for other machines return False.

    It has if nobody holds the lock of the directory: another process may have its number by now.
    """
    is_here = read_json(run_dir / "provenance.json").get("host", platform.node()) == platform.node()
    if not is_here or not isinstance(pid, int) or pid == os.getpid():  # closing the file would release our own lock
        return False
    try:
        with (run_dir / ".lock").open("rb") as file:
            return try_lock(file, is_inherited=False)
    except OSError:  # a copy of the directory, or a file system without locks
        return not psutil.pid_exists(pid)
