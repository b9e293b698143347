"""Format runs as a table for the terminal and as CSV: one row for all seeds of the same settings, sorted by a column.

Without pandas, because `report.py` would take twice as long.
"""

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from imago.errors import ConfigError, DataError
from imago.files import write_csv as write_rows
from imago.runs.records import Record, differing
from imago.settings import typed_value
from imago.text import display_width, padded, printable

# The columns of the CSV; between `model` and `seed` are the settings that differ.
_FIRST = ("run", "status", "started", "data", "model")
_LAST = (
    *("seed", "num_seeds", "val_acc", "val_std", "test_acc", "test_std", "test_low", "test_high", "num_test_images"),
    *("best_epoch", "epochs", "seconds", "images_per_s", "data_wait_share", "folder", "reason"),
)
_MEANS = ("val_acc", "test_acc", "seconds", "images_per_s", "data_wait_share")
_BEST_FIRST = ("val_acc", "test_acc", "images_per_s")
_HEADERS = ("run", "status", "data", "model", "seed", "val", "test", "n", "time", "images/s", "settings")
_SETTINGS = len(_HEADERS) - 1
_NUMBERS = frozenset({"val", "test", "n", "time", "images/s"})  # aligned to the right
_DISPENSABLE = ("images/s", "n", "time", "data", "model", "seed")  # in a narrow terminal, left out in this order

Row = dict[str, Any]


@dataclass(frozen=True)
class RunTable:
    """Sorted rows; one row may stand for several seeds.

    Attributes:
        rows: values by the columns of the CSV; any may be missing.
        setting_names: the settings that differ between runs on the same data with the same network; `typed` of a row
            has those that differ within its kind, as they are typed.
        notes: what the rows do not show: unreadable directories, why runs failed, what was left out.
    """

    rows: list[Row]
    setting_names: list[str]
    notes: list[str]


def make_table(records: Sequence[Record], sort: str = "started", fold: bool = True) -> RunTable:
    """Create one row for each run, or for all seeds of the same settings.

    Only finished runs are folded, and of several with the same settings and seed only the newest, because a
    repetition carries no information about the spread.

    Args:
        records: from `read_records`.
        sort: a column of the CSV, also as in TensorBoard (test/acc) or in `summary.json` (test.acc). Accuracies and
            speeds are sorted best first, everything else in ascending order.
        fold: whether to combine seeds.

    Raises:
        ConfigError: if there is no such column.
    """
    names = _setting_names(records)
    groups, left_out = _fold(records, names) if fold else ([[record] for record in records], [])
    rows = [_row(group, names.get(_kind(group[0]), [])) for group in groups]
    all_names = list(dict.fromkeys(chain.from_iterable(names.values())))
    notes = [note for note in map(_note, records) if note]
    if left_out:
        notes.append(f"left out of the means, as a newer run has the same settings and seed: {', '.join(left_out)}")
    return RunTable(_sorted(rows, sort, all_names), all_names, [printable(" ".join(n.splitlines())) for n in notes])


def write_csv(table: RunTable, path: Path) -> None:
    """Write the rows with plain numbers, and each setting that differs as a column.

    Raises:
        DataError: if it cannot be written.
    """
    columns = [*_FIRST, *table.setting_names, *_LAST]
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise DataError(f"csv={path} cannot be written: it is not a regular file; name a file, e.g. csv=runs.csv.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_rows(target, [columns, *([row.get(column) for column in columns] for row in table.rows)])
    except OSError as error:
        raise DataError(f"csv={path} cannot be written: {error.strerror}.") from error


def table_text(table: RunTable, width: int | None) -> str:
    """Format the rows in columns.

    Args:
        table: from `make_table`.
        width: of the terminal, in characters. If the table is wider, settings are printed below their run and some
            columns are left out. None leaves out nothing.
    """
    cells = [_HEADERS, *map(_cells, table.rows)]
    filled = [index for index in range(len(_HEADERS)) if any(line[index] for line in cells[1:])]
    widths = {index: max(display_width(line[index]) for line in cells) for index in filled}
    is_too_wide = width is not None and _total(widths) > width
    if width is not None and is_too_wide:
        widths.pop(_SETTINGS, None)
        for header in _DISPENSABLE:
            if _total(widths) > width:
                widths.pop(_HEADERS.index(header), None)
    lines = [
        "  ".join(padded(line[index], widths[index], _HEADERS[index] in _NUMBERS) for index in widths).rstrip()
        + (f"\n    {line[_SETTINGS]}" if is_too_wide and number and line[_SETTINGS] else "")
        for number, line in enumerate(cells)
    ]
    left_out = [_HEADERS[index] for index in filled if index not in (*widths, _SETTINGS)]
    note = [f"(this terminal is too narrow for {', '.join(left_out)}; csv=FILE has all columns)"] if left_out else []
    return "\n".join([lines[0], "-" * _total(widths), *lines[1:], *note])


def duration_text(seconds: float | None) -> str:
    """Format a duration, e.g. 26 s, 12 min 5 s or 3 h 20 min; empty if it is None."""
    if seconds is None:
        return ""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def percent(share: float | None) -> str:
    """Format a share in [0, 1] as percent; empty if it is None."""
    return "" if share is None else f"{100 * share:.2f} %"


def range_text(low: float | None, high: float | None, separator: str = " to ") -> str:
    """Format two shares in percent, without the sign; empty if one of them is None."""
    return "" if low is None or high is None else f"{100 * low:.2f}{separator}{100 * high:.2f}"


def count_text(count: float | None) -> str:
    """Format a count or speed with thousands separators; empty if it is None."""
    return "" if count is None else f"{count:,.0f}"


def _note(record: Record) -> str | None:
    """Return a line for a run whose row does not show everything."""
    if record.status == "unreadable":
        return record.reason
    if record.config_fault:
        return f"settings of {record.run} are not known: {record.config_fault}"
    has_ended_early = record.reason and record.status in ("failed", "stopped")
    return f"{record.run} {record.status}: {record.reason}" if has_ended_early else None


def _setting_names(records: Sequence[Record]) -> dict[Hashable, list[str]]:
    """Return the settings that differ, separately for each kind, because runs of different kinds differ in too many."""
    kinds: dict[Hashable, list[Mapping[str, Any]]] = {}
    for record in records:
        if record.settings:
            kinds.setdefault(_kind(record), []).append(record.settings)
    return {kind: [name for name in differing(group) if name != "seed"] for kind, group in kinds.items()}


def _kind(record: Record) -> Hashable:
    return record.settings.get("data"), record.settings.get("model")


def _fold(records: Sequence[Record], names: Mapping[Hashable, Sequence[str]]) -> tuple[list[list[Record]], list[str]]:
    """Group the seeds of equal settings; return the groups, and the runs that were left out for a newer one."""
    groups: dict[Hashable, dict[Any, Record]] = {}
    single, left_out = [], []
    for record in sorted(records, key=lambda record: record.started or ""):
        if record.status != "finished" or not record.settings:
            single.append([record])
            continue
        kind, seed = _kind(record), record.settings.get("seed")
        seeds = groups.setdefault((kind, *(record.settings.get(name) for name in names[kind])), {})
        if seed in seeds:
            left_out.append(seeds[seed].run)
        seeds[seed] = record
    return [*(list(seeds.values()) for seeds in groups.values()), *single], left_out


def _row(group: Sequence[Record], names: Sequence[str]) -> Row:
    newest = max(group, key=lambda record: record.started or "")
    row: Row = {name: value for name, value in vars(newest).items() if name != "settings"}
    row |= {name: newest.settings[name] for name in ("data", "model", "seed", *names) if name in newest.settings}
    row |= {"num_seeds": len(group), "typed": " ".join(f"{n}={typed_value(row[n])}" for n in names if n in row)}
    if len(group) == 1:
        return row
    for name in _MEANS:
        values = [value for record in group if (value := getattr(record, name)) is not None]
        row[name] = statistics.fmean(values) if values else None
        if name.endswith("_acc") and len(values) > 1:
            row[name.removesuffix("acc") + "std"] = statistics.stdev(values)
    first, *others = sorted(record.run for record in group)
    row |= {"run": f"{first} +{len(others)}", "seed": f"{len(group)} seeds", "best_epoch": None, "folder": None}
    tests = [record.test_acc for record in group if record.test_acc is not None]
    row |= {"test_lowest": min(tests, default=None), "test_highest": max(tests, default=None)}
    return row | {"test_low": None, "test_high": None}


def _sorted(rows: list[Row], sort: str, names: Sequence[str]) -> list[Row]:
    columns = [*_FIRST, *names, *_LAST]
    column = sort if sort in columns else sort.replace("/", "_").replace(".", "_")
    if column not in columns:
        raise ConfigError(f"sort={sort} is not a column; sort by one of {', '.join(columns)}.")
    filled = [row for row in rows if row.get(column) is not None]
    is_numeric = all(isinstance(row[column], int | float) for row in filled)
    filled.sort(key=lambda row: row[column] if is_numeric else str(row[column]), reverse=column in _BEST_FIRST)
    return filled + [row for row in rows if row.get(column) is None]


def _cells(row: Row) -> tuple[str, ...]:
    interval = range_text(row.get("test_low"), row.get("test_high"), "..")
    seeds = range_text(row.get("test_lowest"), row.get("test_highest"), "..")
    test = _accuracy(row, "test") + (f" ({interval})" if interval else f" [{seeds}]" if seeds else "")
    names = ["" if (value := row.get(name)) is None else value for name in ("run", "status", "data", "model", "seed")]
    numbers = (
        count_text(row.get("num_test_images")),
        duration_text(row.get("seconds")),
        count_text(row.get("images_per_s")),
    )
    return tuple(printable(str(cell)) for cell in (*names, _accuracy(row, "val"), test, *numbers, row["typed"]))


def _accuracy(row: Row, split: str) -> str:
    acc, std = row.get(f"{split}_acc"), row.get(f"{split}_std")
    return percent(acc) if acc is None or std is None else f"{100 * acc:.2f} ± {percent(std)}"


def _total(widths: Mapping[int, int]) -> int:
    return sum(widths.values()) + 2 * (len(widths) - 1)
