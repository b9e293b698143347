"""Load run directories as pandas tables: one row for each run, or one for all seeds of the same settings."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame

from imago.runs.records import differing_settings, read_records
from imago.statistics.intervals import mean_interval

# The first and the last columns; the settings that differ are between them.
_IDENTITY_COLUMNS = ("run", "status", "tags", "started", "data", "model", "seed")
_ACCURACY_COLUMNS = ("val_acc", "test_acc", "test_low", "test_high", "num_test_images")  # further metrics follow
_SPEED_COLUMNS = ("best_epoch", "epochs", "seconds", "images_per_s", "data_wait_share")
_OTHER_COLUMNS = (*_SPEED_COLUMNS, "data_fingerprint", "typed", "run_dir", "reason", "config_error")
_SEED_COLUMNS = ("num_seeds", "val_std", "test_std", "test_lowest", "test_highest")  # only of `mean_over_seeds`
_NO_SETTINGS = frozenset({*_IDENTITY_COLUMNS, *_ACCURACY_COLUMNS, *_OTHER_COLUMNS, *_SEED_COLUMNS})
_METRIC_PREFIXES = ("val/", "test/", "std/")  # no setting has such a name
_MAX_EXACT = 2**53  # larger integers are not exact in float64
_COUNT_COLUMNS = ["seed", "num_test_images", "best_epoch", "epochs"]
_MEAN_COLUMNS = ["val_acc", "test_acc", "seconds", "images_per_s", "data_wait_share"]


def load_runs(log_dir: Path | str, tags: Collection[str] = ()) -> DataFrame:
    """Read every run below a directory, in order of their start.

    Args:
        log_dir: searched recursively for `summary.json`.
        tags: only runs that have all of them.

    Returns:
        One row for each run. `run` is its path below `log_dir`, `run_dir` the full path; accuracies are in [0, 1], and
        `test_low`, `test_high` are the ends of the 95 % interval. Between `seed` and `val_acc` are the settings that
        differ between these runs, named as on the command line; a metric that only some runs compute is none of them.
        Further metrics are named as they are logged: `val/f1`. For the other columns see `RunRecord`.

    Raises:
        DataError: if `log_dir` is not a directory.
    """
    records = [record for record in read_records(log_dir) if {*tags} <= {*record.tags.split(", ")}]
    settings = [record.settings for record in records if record.settings]
    differing = [name for name in differing_settings(settings) if name not in _NO_SETTINGS]
    names = [name for name in differing if not _is_added_metric(name, settings)]
    metrics = list(dict.fromkeys(name for record in records for name in record.metrics))
    shown = ("data", "model", "seed", *names)
    chosen = ({name: record.settings.get(name) for name in shown} for record in records)
    rows = [{**vars(record), **record.metrics, **values} for record, values in zip(records, chosen, strict=True)]
    columns = [*_IDENTITY_COLUMNS, *names, *_ACCURACY_COLUMNS, *metrics, *_OTHER_COLUMNS]
    return _create_table(rows, columns).sort_values("started", ignore_index=True)


def setting_names(runs: DataFrame) -> list[str]:
    """Return the settings that differ within a table of `load_runs` or some of its rows, without `seed`."""
    columns = [name for name in runs.columns if name not in _NO_SETTINGS and not name.startswith(_METRIC_PREFIXES)]
    return [name for name in ("data", "model", *columns) if runs[name].nunique(dropna=False) > 1]


def metric_names(runs: DataFrame) -> list[str]:
    """Return the columns of metrics besides the accuracy, such as `val/f1`."""
    return [name for name in runs.columns if name.startswith(_METRIC_PREFIXES[:2])]


def mean_over_seeds(runs: DataFrame) -> DataFrame:
    """Average the results of runs on the same data that differ only in the seed.

    Only finished runs are combined; of several with the same settings and seed only the newest counts, because a
    repetition carries no information about the spread.

    Args:
        runs: a table of `load_runs`, or some of its rows.

    Returns:
        The same columns, and `num_seeds`. In a row for several seeds, metrics and speeds are means and the rest is of
        the newest run; `val_std`, `test_std` and `std/NAME` of a further metric NAME are standard deviations,
        `test_lowest`, `test_highest` the extremes, and `test_low`, `test_high` the ends of the 95 % confidence interval
        of the mean.
    """
    complete = _complete_runs(runs).drop(older_repetitions(runs).index)
    groups = complete.groupby(_group_names(runs), dropna=False, sort=False)
    others = runs.drop(_complete_runs(runs).index)
    rows = [_mean_of(seeds) for _, seeds in groups] + [_mean_of(others.loc[[index]]) for index in others.index]
    return _create_table(rows, [*runs.columns, *_SEED_COLUMNS, *(f"std/{name}" for name in metric_names(runs))])


def older_repetitions(runs: DataFrame) -> DataFrame:
    """Return the finished runs for which there is a newer one with the same settings and seed."""
    complete = _complete_runs(runs)
    return complete[complete.duplicated([*_group_names(runs), "seed"], keep="last")]


def runs_on_other_data(runs: DataFrame) -> DataFrame:
    """Return the finished runs with the settings of another one, but for the seed, whose data has changed."""
    complete = _complete_runs(runs)
    *same_settings, fingerprint = _group_names(runs)
    digests = complete[fingerprint].astype("string").str.extract("([^-]+)(?:-(.+))?")  # of the data, the tested images
    groups = digests.groupby([complete[name] for name in same_settings], dropna=False)
    return complete[(groups.transform("nunique") > 1).any(axis=1)]  # without a test there is no second digest


def _complete_runs(runs: DataFrame) -> DataFrame:
    """Return the finished runs whose settings are known, in order of their start."""
    return runs[(runs["status"] == "finished") & runs["config_error"].isna()].sort_values("started")


def _group_names(runs: DataFrame) -> list[str]:
    return list(dict.fromkeys(["data", "model", *setting_names(runs), "data_fingerprint"]))


def _is_added_metric(name: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a setting is of a metric that is defined alike wherever it is computed."""
    return name.startswith("metrics.") and len({run.get(name) for run in settings} - {None}) == 1


def _mean_of(seeds: DataFrame) -> dict[str, Any]:
    """Return the row for runs that differ only in the seed; the last one is the newest."""
    row = seeds.iloc[-1].to_dict() | {"num_seeds": len(seeds)}
    if len(seeds) == 1:
        return row
    tests = seeds["test_acc"].dropna()
    low, high = mean_interval(tests.tolist()) or (None, None)
    spread = {"val_std": seeds["val_acc"].std(), "test_std": tests.std(), "test_low": low, "test_high": high}
    spread |= {f"std/{name}": seeds[name].std() for name in metric_names(seeds)}
    cleared = dict.fromkeys(("seed", "best_epoch", "run_dir"))
    extremes = {"test_lowest": tests.min(), "test_highest": tests.max()}
    name = f"{seeds['run'].min()} +{len(seeds) - 1}"
    means = seeds[[*_MEAN_COLUMNS, *metric_names(seeds)]].mean().to_dict()
    return row | means | spread | extremes | cleared | {"run": name}


def _create_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> DataFrame:
    """Create a table whose columns of numbers have a numeric type, also where cells or all rows are empty."""
    table = DataFrame(rows, columns=list(columns), dtype=object)
    for name, column in table.items():
        types = {type(value) for value in column.dropna()}
        if types == {int} and column.dropna().abs().max() < _MAX_EXACT:  # Int64 can have empty cells
            table[name] = column.astype("Int64")
        elif types and types <= {int, float}:
            table[name] = column.astype("float64")
    numbers = [*_COUNT_COLUMNS, *_MEAN_COLUMNS, "test_low", "test_high", *metric_names(table)]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce").astype("float64")
    counts = table[_COUNT_COLUMNS].round()
    table[_COUNT_COLUMNS] = counts.where(counts.abs() < _MAX_EXACT).astype("Int64")
    return table
