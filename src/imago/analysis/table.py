"""Sort tables of runs, and format them for the terminal and as CSV."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pandas import DataFrame

from imago.analysis.runs import metric_names, setting_names
from imago.errors import ConfigError, DataError
from imago.files import report_unwritable, write_csv
from imago.settings import typed_value
from imago.text import (
    count_text,
    duration_text,
    join_names,
    metric_text,
    percent_text,
    printable,
    range_text,
    shortened,
    table_lines,
)

# Config groups whose typed option is shown instead of the settings that it changes.
_CHOICES = ("experiment", "debug", "augment", "task", "optimizer", "schedule", "loss", "callbacks", "trainer")
_BEST_FIRST = ("val_acc", "test_acc", "images_per_s")
_LOWER_IS_BETTER = ("loss", "error", "distance", "/ece", "/nll")  # parts of the names of metrics; our own choice
_MAX_METRICS = 2  # columns, so that a row fits on a screen; our own choice
_RIGHT_ALIGNED = ("val", "test", "n", "time", "images/s")  # columns of numbers
# In a narrow terminal columns are left out in this order: the first ones, further metrics, the last ones.
_LEFT_OUT_FIRST, _LEFT_OUT_LAST = ("images/s", "n", "time"), ("tags", "data", "model", "seed")


def sort_runs(runs: DataFrame, column: str) -> DataFrame:
    """Sort accuracies, speeds and further metrics best first, losses, errors and everything else in ascending order.

    Args:
        runs: a table of `imago.analysis.runs`.
        column: its name, also as in TensorBoard (test/acc) or in `summary.json` (test.acc, test.f1).

    Raises:
        ConfigError: if there is no such column.
    """
    names = [column, column.replace(".", "/", 1), column.replace("/", "_").replace(".", "_")]
    names += [f"test/{column}", f"val/{column}"]  # of a further metric
    name = next((name for name in names if name in runs), None)
    if name is None:
        nearest = get_close_matches(column, list(map(str, runs.columns)), n=len(runs.columns), cutoff=0.0)
        raise ConfigError(f"sort={column} is not a column; sort by one of {join_names(nearest)}.")
    is_text = runs[name].dtype == object
    key = (lambda values: values.map(str, na_action="ignore")) if is_text else None
    has_best_first = name in (*_BEST_FIRST, *metric_names(runs))
    is_ascending = not has_best_first or any(word in name for word in _LOWER_IS_BETTER)
    return runs.sort_values(name, ascending=is_ascending, key=key, kind="stable", ignore_index=True)


def write_runs_csv(runs: DataFrame, path: Path) -> None:
    """Write all columns to a CSV file, numbers unformatted; raise a DataError if it cannot be written."""
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise DataError(f"csv={path} cannot be written: it is not a regular file; name a file, e.g. csv=runs.csv.")
    with report_unwritable(path, "; choose another file with csv=FILE.csv"):
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = _row_dicts(runs.drop(columns="typed", errors="ignore"))
        write_csv(target, [list(rows[0]), *(list(row.values()) for row in rows)])


def table_text(runs: DataFrame, width: int | None) -> str:
    """Format the rows in columns.

    Args:
        runs: a table of `imago.analysis.runs`, with at least one row.
        width: the width of the terminal, in characters. If the table is wider, settings are printed below their run
            and some columns are left out. None leaves out nothing.
    """
    metrics = _shown_metrics(runs)
    headers = [printable(name) for name in metrics]
    table = DataFrame([_row_cells(row, metrics) for row in _row_dicts(runs)])
    table["settings"] = _settings_texts(runs)
    table = table.loc[:, (table != "").any()]
    setting_lines, left_out = [""] * len(table), []
    if width is not None and len(_lines(table, headers)[1]) > width:
        if "settings" in table:
            setting_lines = [f"\n    {shortened(text, width - 4)}" if text else "" for text in table.pop("settings")]
        for header in (*_LEFT_OUT_FIRST, *reversed(headers), *_LEFT_OUT_LAST):
            if header in table and len(_lines(table, headers)[1]) > width:
                table.pop(header)
                left_out.append(header)
    first, rule, *lines = _lines(table, headers)
    lines = [line + text for line, text in zip(lines, setting_lines, strict=True)]
    note = [f"(this terminal is too narrow for {', '.join(left_out)}; csv=FILE has all columns)"] if left_out else []
    return "\n".join([first, rule, *lines, *note])


def run_notes(runs: DataFrame) -> list[str]:
    """Return a line for each run that failed, was stopped, or whose status or settings cannot be read."""
    lines = []
    for row in _row_dicts(runs):
        if row["status"] == "unreadable":
            lines.append(row["reason"])
        elif row["config_error"]:
            lines.append(f"settings of {row['run']} are not known: {row['config_error']}")
        elif row["reason"] and row["status"] in ("failed", "stopped"):
            lines.append(f"{row['run']} {row['status']}: {row['reason']}")
    return [printable(" ".join(line.splitlines())) for line in lines]


def _row_dicts(runs: DataFrame) -> list[dict[str, Any]]:
    """Return each row by the names of the columns, with None in empty cells."""
    return runs.astype(object).where(runs.notna(), None).to_dict("records")


def _shown_metrics(runs: DataFrame) -> list[str]:
    """Return the further metrics in which the rows differ: of the test before those of validation, losses last."""
    names = [name for name in metric_names(runs) if len(runs) == 1 or runs[name].nunique(dropna=False) > 1]
    return sorted(names, key=lambda name: (name.endswith("/loss"), name.startswith("val/")))[:_MAX_METRICS]


def _row_cells(row: dict[str, Any], metrics: list[str]) -> dict[str, str]:
    """Return the texts of a row by their headers; `metrics` are the further ones that are shown."""
    if row.get("num_seeds", 1) > 1:
        row["seed"] = f"{row['num_seeds']} seeds"
        spread = f" [{range_text(row['test_lowest'], row['test_highest'], '..')}]"
    else:
        spread = f" ({range_text(row['test_low'], row['test_high'], '..')})"
    test = _mean_text(percent_text, row["test_acc"], row.get("test_std"))
    names = {name: row.get(name) for name in ("run", "status", "tags", "data", "model", "seed")}
    return {
        **{name: "" if value is None else printable(str(value)) for name, value in names.items()},
        "val": _mean_text(percent_text, row["val_acc"], row.get("val_std")),
        "test": test + spread if ".." in spread else test,
        **{printable(name): _mean_text(metric_text, row[name], row.get(f"std/{name}")) for name in metrics},
        "n": count_text(row["num_test_images"]),
        "time": duration_text(row["seconds"]),
        "images/s": count_text(row["images_per_s"]),
    }


def _mean_text(text: Callable[[float | None], str], mean: float | None, std: float | None) -> str:
    return text(mean) if std is None else f"{text(mean).removesuffix(' %')} ± {text(round(std, 4))}"


def _settings_texts(runs: DataFrame) -> list[str]:
    """Return the typed settings in which each run differs from the others on the same data with the same network.

    Runs that differ in settings that none of them typed, as after a change of a YAML, show these.
    """
    texts = dict.fromkeys(runs.index, "")
    for _, similar in runs.groupby(["data", "model"], dropna=False):
        rows, differing = _row_dicts(similar), setting_names(similar)
        typed: list[dict[str, str]] = [row.get("typed") or {} for row in rows]
        groups = [name for name in _CHOICES if len({values.get(name) for values in typed}) > 1]
        names = [name for name in differing if name not in groups and any(name in values for values in typed)]
        names = names if names or groups else differing
        for index, row, values in zip(similar.index, rows, typed, strict=True):
            words = [f"{name}={values[name]}" for name in groups if name in values]
            shown = {name: typed_value(row[name]) for name in names if row[name] is not None} | values
            words += [f"{name}={shown[name]}" for name in names if name in shown]
            texts[index] = printable(" ".join(words)).replace('"', "")  # of Hydra, around paths
    return list(texts.values())


def _lines(table: DataFrame, metrics: Sequence[str]) -> list[str]:
    """Return header, rule and rows; the rule is as wide as the table."""
    numbers = [index for index, header in enumerate(table) if header in (*_RIGHT_ALIGNED, *metrics)]
    return table_lines([list(table), *table.values.tolist()], numbers)
