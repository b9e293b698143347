"""All runs below a folder as tables: one row a run, one row a logged step, one row a setting over its seeds."""

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from pandas import DataFrame

from imago.errors import DataError
from imago.runs.records import differing, read_records
from imago.statistics.interval import mean_interval

# What a run is (first) and what came out (last); the columns between them are the settings that differ.
_IDENTITY = ("run", "status", "started", "data", "model", "seed")
_RESULTS = (
    *("val_acc", "test_acc", "test_low", "test_high", "num_test_images", "best_epoch", "epochs"),
    *("seconds", "images_per_s", "data_wait_share", "folder"),
)
_COUNTS = ("seed", "num_test_images", "best_epoch", "epochs")


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
    records = read_records(logs)
    for record in records:
        fault = record.reason if record.status == "unreadable" else record.config_fault
        if fault:
            warnings.warn(fault, stacklevel=2)
    names = [name for name in differing([r.settings for r in records if r.settings]) if name not in _IDENTITY]
    rows = [
        {name: record.settings.get(name) for name in ("data", "model", "seed", *names)}
        | {name: value for name, value in vars(record).items() if name != "settings"}
        for record in records
    ]
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
        One row for each combination of settings: the settings, `n` (how many seeds), mean and standard deviation of
        `val_acc` and `test_acc`, and in `test_acc_low`, `test_acc_high` the 95 % interval of the mean over other
        seeds; a single seed has neither deviation nor interval.
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
    spans = [mean_interval(found.dropna().tolist()) or (math.nan, math.nan) for _, found in groups["test_acc"]]
    table[["test_acc_low", "test_acc_high"]] = np.reshape(spans, (-1, 2))
    return table.reset_index().sort_values("val_acc_mean", ascending=False, ignore_index=True)


def _typed(runs: DataFrame) -> DataFrame:
    """Give each column its type: an empty cell must not turn whole numbers into decimals."""
    numbers = list(dict.fromkeys((*_COUNTS, *_RESULTS[:-1])))  # all but `folder`
    runs[numbers] = runs[numbers].apply(pd.to_numeric, errors="coerce")
    counts = list(_COUNTS)
    runs[counts] = runs[counts].where(runs[counts] % 1 == 0)  # half an image in a damaged summary is none
    runs["started"] = pd.to_datetime(runs["started"], utc=True, errors="coerce")
    return runs.astype(dict.fromkeys(numbers, "float64") | dict.fromkeys(_COUNTS, "Int64"))
