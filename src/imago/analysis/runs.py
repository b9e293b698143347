"""Load run directories as pandas tables: one row for each run, or for each setting with the mean over its seeds."""

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from pandas import DataFrame

from imago.runs.records import differing, read_records
from imago.statistics.intervals import mean_interval

# The first and the last columns; the settings that differ are between them.
_IDENTITY = ("run", "status", "started", "data", "model", "seed")
_RESULTS = (
    *("val_acc", "test_acc", "test_low", "test_high", "num_test_images", "best_epoch", "epochs"),
    *("seconds", "images_per_s", "data_wait_share", "folder"),
)
_COUNTS = ["seed", "num_test_images", "best_epoch", "epochs"]


def load_runs(logs: Path | str) -> DataFrame:
    """Read every run below a directory, in order of their start.

    Args:
        logs: searched recursively for `summary.json`.

    Returns:
        One row for each run. `run` is its path below `logs`, `folder` the full path; accuracies are in [0, 1], and
        `test_low`, `test_high` are the ends of the 95 % interval. Between `seed` and `val_acc` are the settings that
        differ between these runs, named as on the command line. `status` is running, finished, failed or stopped as
        in the summary, "died" for a run that was killed, or "unreadable".

    Raises:
        DataError: if `logs` is not a directory.
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


def setting_names(runs: DataFrame) -> list[str]:
    """Return the settings that differ within a table of `load_runs` or some of its rows, without `seed`."""
    columns = [name for name in runs.columns if name not in (*_IDENTITY, *_RESULTS)]
    return [name for name in ("data", "model", *columns) if runs[name].nunique(dropna=False) > 1]


def mean_over_seeds(runs: DataFrame) -> DataFrame:
    """Compute the mean over the seeds of equal settings, the best mean of `val_acc` first.

    Only finished runs count, and of several with the same settings and seed only the newest, because a repetition
    carries no information about the spread.

    Args:
        runs: a table of `load_runs`, or some of its rows.

    Returns:
        One row for each combination of settings: the settings, `n` (number of seeds), mean and standard deviation of
        `val_acc` and `test_acc`, and in `test_acc_low`, `test_acc_high` the 95 % interval of the mean over further
        seeds; NaN for a single seed.
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
    intervals = [mean_interval(accs.dropna().tolist()) or (math.nan, math.nan) for _, accs in groups["test_acc"]]
    table[["test_acc_low", "test_acc_high"]] = np.reshape(intervals, (-1, 2))
    return table.reset_index().sort_values("val_acc_mean", ascending=False, ignore_index=True)


def _typed(runs: DataFrame) -> DataFrame:
    """Convert each column to its type; counts stay integers where a cell is empty."""
    numbers = [*dict.fromkeys((*_COUNTS, *_RESULTS[:-1]))]  # without `folder`
    runs[numbers] = runs[numbers].apply(pd.to_numeric, errors="coerce").astype("float64")
    runs[_COUNTS] = runs[_COUNTS].where(runs[_COUNTS] % 1 == 0).astype("Int64")  # a damaged summary may have 10.5
    runs["started"] = pd.to_datetime(runs["started"], utc=True, errors="coerce")
    return runs
