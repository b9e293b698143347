"""All runs below a folder as tables: one row a run, one row a logged step, one row a setting over its seeds."""

import json
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml  # type: ignore[import-untyped]
from pandas import DataFrame

from imago.errors import DataError

# What a run is (first) and what came out (last); the columns between them are the settings that differ.
_IDENTITY = ("run", "status", "started", "data", "model", "seed")
_RESULTS = (
    *("val_acc", "test_acc", "test_low", "test_high", "num_test_images", "best_epoch", "epochs"),
    *("seconds", "images_per_s", "data_wait_share", "folder"),
)
_COUNTS = ("seed", "num_test_images", "best_epoch", "epochs")

# Settings that change no result: where a run writes, and what it shows while it runs. The dot ends a name.
_WITHOUT_EFFECT = (
    *("paths.", "logger.", "run_name.", "resume."),
    *("callbacks.progress.", "callbacks.speed.", "callbacks.picture_grid."),
)


def load_runs(logs: Path | str) -> DataFrame:
    """Read every run below a folder, in order of their start.

    Args:
        logs: searched recursively for `summary.json`.

    Returns:
        One row a run. `run` is its path below `logs`, `folder` the whole path; accuracies are shares in [0, 1] and
        `test_low`, `test_high` the ends of the 95 % interval. Between `seed` and `val_acc` stand the settings that are
        not the same in all these runs, by the names they are typed. `status` is the run's own word (running, finished,
        failed, stopped), or "died" for one that was killed and could not say so, or "unreadable".

    Raises:
        DataError: if `logs` is no folder.
    """
    logs = Path(logs)
    if not logs.is_dir():
        raise DataError(f"runs={logs} is not a folder; give one that holds runs, e.g. logs.")
    folders = sorted(file.parent for file in logs.rglob("summary.json"))
    rows = []
    for folder in folders:
        try:
            rows.append(_facts(folder))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            warnings.warn(f"{folder / 'summary.json'} cannot be read: {error}", stacklevel=2)
            rows.append({"status": "unreadable"})
    settings = [_settings(folder) for folder in folders]
    names = [name for name in _differing([found for found in settings if found]) if name not in _IDENTITY]
    for row, folder, found in zip(rows, folders, settings, strict=True):
        place = folder.relative_to(logs).as_posix()
        row |= {"run": place if place != "." else folder.resolve().name, "folder": str(folder.resolve())}
        row |= {name: found.get(name) for name in ("data", "model", "seed", *names)}
    return _typed(DataFrame(rows, columns=[*_IDENTITY, *names, *_RESULTS])).sort_values("started", ignore_index=True)


def load_curves(run: Path | str) -> DataFrame:
    """Read everything that a run logged, from its `metrics.csv`.

    Args:
        run: the run's folder.

    Returns:
        One row a logged step, all columns numbers; NaN means "not logged at this step".

    Raises:
        DataError: if the file is missing, empty or damaged.
    """
    file = Path(run) / "metrics.csv"
    try:
        curves = pd.read_csv(file)
    except FileNotFoundError:
        raise DataError(f"{file} is missing: this run logged nothing.") from None
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{file} cannot be read: {error}") from None
    return curves.apply(pd.to_numeric, errors="coerce")


def setting_names(runs: DataFrame) -> list[str]:
    """Name the settings that differ within a table of `load_runs`, or within some of its rows; `seed` is not one."""
    columns = [name for name in runs.columns if name not in (*_IDENTITY, *_RESULTS)]
    return [name for name in ("data", "model", *columns) if runs[name].nunique(dropna=False) > 1]


def mean_over_seeds(runs: DataFrame) -> DataFrame:
    """Put the seeds of equal settings together, the best mean of `val_acc` first.

    Only finished runs count, and of several with the same settings and seed only the newest: the same draw twice says
    nothing about the spread.

    Args:
        runs: a table of `load_runs`, or some of its rows.

    Returns:
        One row for each combination of settings: the settings, `n` (how many seeds), and mean and standard deviation
        of `val_acc` and `test_acc`; a single seed has no deviation.
    """
    names = list(dict.fromkeys(["data", "model", *setting_names(runs)]))
    finished = runs[runs["status"] == "finished"].sort_values("started")
    newest = finished.drop_duplicates([*names, "seed"], keep="last")
    groups = newest.groupby(names, dropna=False, sort=False)
    table = groups.agg(
        n=("seed", "size"),
        val_acc_mean=("val_acc", "mean"),
        val_acc_std=("val_acc", "std"),
        test_acc_mean=("test_acc", "mean"),
        test_acc_std=("test_acc", "std"),
    )
    return table.reset_index().sort_values("val_acc_mean", ascending=False, ignore_index=True)


def _facts(folder: Path) -> dict[str, Any]:
    """Read `summary.json`; raises whatever a damaged one causes."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    test = summary.get("test") or {}
    low, high = test.get("interval_95") or (None, None)
    kept = ("status", "started", "best_epoch", "epochs", "seconds", "images_per_s", "data_wait_share")
    facts = {name: summary.get(name) for name in kept}
    if facts["status"] == "running" and _is_dead(folder, summary.get("pid")):
        facts["status"] = "died"
    facts["val_acc"] = (summary.get("val") or {}).get("acc")
    return facts | {
        "test_acc": test.get("acc"),
        "test_low": low,
        "test_high": high,
        "num_test_images": test.get("num_images"),
    }


def _is_dead(folder: Path, pid: Any) -> bool:
    """Tell whether a run of this very host has lost its process; of other hosts nothing is known."""
    try:
        host = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["host"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if host != platform.node() or not isinstance(pid, int) or os.name == "nt":  # on Windows os.kill(pid, 0) kills
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it lives and belongs to somebody else
    return False


def _settings(folder: Path) -> dict[str, Any]:
    """Flatten `config.yaml` to what is typed on a command line; a class stands under its group by its short name."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(config, dict):
        return {}
    run_dir = str((config.get("paths") or {}).get("run_dir") or folder.resolve())
    flat = {name: value for name, value in _flatten(config).items() if not str(value).startswith(run_dir)}
    flat["model"] = flat.pop("model.name", None) or flat.get("model")  # one class builds resnet18, resnet50, ...
    return {name: value for name, value in flat.items() if not f"{name}.".startswith(_WITHOUT_EFFECT)}


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


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the settings that differ, each once: `task.optimizer.lr` only repeats `optimizer.lr`."""
    names = dict.fromkeys(name for found in settings for name in found)
    differing: dict[str, list[Any]] = {}
    for name in sorted(names, key=lambda name: name.count(".")):
        values = [found.get(name) for found in settings]
        as_typed = name.replace("task.net", "task.model", 1)  # the one group that the task calls otherwise
        is_copy = any(as_typed.endswith(f".{other}") and values == differing[other] for other in differing)
        if len(set(values)) > 1 and not is_copy:
            differing[name] = values
    return list(differing)


def _typed(runs: DataFrame) -> DataFrame:
    """Give each column its type: an empty cell must not turn whole numbers into decimals."""
    numbers = list(dict.fromkeys((*_COUNTS, *_RESULTS[:-1])))  # all but `folder`
    runs[numbers] = runs[numbers].apply(pd.to_numeric, errors="coerce")
    runs["started"] = pd.to_datetime(runs["started"], utc=True, errors="coerce")
    return runs.astype(dict.fromkeys(numbers, "float64") | dict.fromkeys(_COUNTS, "Int64"))
