"""Runs as a table for the terminal and as CSV: seeds of the same settings folded, sorted by any column."""

import csv
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imago.errors import ConfigError, DataError
from imago.runs.records import Record, differing
from imago.text import display_width, padded

# The columns of the CSV; between `model` and `seed` stand the settings that differ.
_FIRST = ("run", "status", "started", "data", "model")
_LAST = (
    *("seed", "num_seeds", "val_acc", "val_std", "test_acc", "test_std", "test_low", "test_high", "num_test_images"),
    *("best_epoch", "epochs", "seconds", "images_per_s", "data_wait_share", "folder", "reason"),
)
_MEANS = ("val_acc", "test_acc", "seconds", "images_per_s", "data_wait_share")
_BEST_FIRST = ("val_acc", "test_acc", "images_per_s")
_HEADERS = ("run", "status", "data", "model", "seed", "val", "test", "n", "time", "images/s", "settings")
_NUMBERS = frozenset({"val", "test", "n", "time", "images/s"})  # set to the right
_DISPENSABLE = ("images/s", "n", "time", "data", "model", "seed")  # in a narrow terminal, these go first

Row = dict[str, Any]


@dataclass(frozen=True)
class RunTable:
    """Rows ready to be shown; a folded one stands for several seeds.

    Attributes:
        rows: in order; every name of the CSV may be missing.
        setting_names: the settings that differ between runs on the same data with the same network; in a row,
            `typed` holds those that differ among its kind, as they are typed.
        notes: what the rows cannot say: folders that cannot be read, why runs failed, what was left out.
    """

    rows: list[Row]
    setting_names: list[str]
    notes: list[str]


def make_table(records: Sequence[Record], sort: str = "started", fold: bool = True) -> RunTable:
    """Lay out runs, one row each, or one row for all seeds of the same settings.

    Only finished runs are folded, and of several with the same settings and seed only the newest: the same draw twice
    says nothing about the spread.

    Args:
        records: of `read_records`.
        sort: a column of the CSV, also typed as in TensorBoard (test/acc) or in `summary.json` (test.acc). Accuracies
            and speeds are sorted best first, everything else upwards.
        fold: whether to put seeds together.

    Raises:
        ConfigError: if there is no such column.
    """
    names = _setting_names(records)
    groups, left_out = _fold(records, names) if fold else ([[record] for record in records], [])
    rows = [_row(group, names.get(_kind(group[0]), [])) for group in groups]
    all_names = list(dict.fromkeys(name for found in names.values() for name in found))
    notes = [note for note in map(_note, records) if note]
    if left_out:
        notes.append(f"left out of the means, as a newer run has the same settings and seed: {', '.join(left_out)}")
    return RunTable(_sorted(rows, sort, all_names), all_names, [_plain(" ".join(note.splitlines())) for note in notes])


def write_csv(table: RunTable, path: Path) -> None:
    """Write the rows with plain numbers, and every setting that differs as a column of its own.

    Raises:
        DataError: if it cannot be written.
    """
    columns = [*_FIRST, *table.setting_names, *_LAST]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(table.rows)
    except OSError as error:
        raise DataError(f"csv={path} cannot be written: {error.strerror}.") from error


def table_text(table: RunTable, width: int | None) -> str:
    """Lay the rows out in columns.

    Args:
        table: of `make_table`.
        width: of the terminal, in characters. Where it does not suffice, settings stand below their run and some
            columns are left out. None leaves out nothing.
    """
    cells = [_HEADERS, *map(_cells, table.rows)]
    kept = [place for place in range(len(_HEADERS)) if any(line[place] for line in cells[1:])]
    widths = {place: max(display_width(line[place]) for line in cells) for place in kept}
    settings = len(_HEADERS) - 1
    is_too_wide = width is not None and _total(widths) > width
    if width is not None and is_too_wide:
        widths.pop(settings, None)
        for header in _DISPENSABLE:
            if _total(widths) > width:
                widths.pop(_HEADERS.index(header), None)
    lines = [
        "  ".join(padded(line[place], widths[place], _HEADERS[place] in _NUMBERS) for place in widths).rstrip()
        + (f"\n    {line[settings]}" if is_too_wide and number and line[settings] else "")
        for number, line in enumerate(cells)
    ]
    left_out = [_HEADERS[place] for place in kept if place not in (*widths, settings)]
    narrow = [f"(this terminal has no room for {', '.join(left_out)}; csv=FILE gets everything)"] if left_out else []
    return "\n".join([lines[0], "-" * _total(widths), *lines[1:], *narrow])


def _note(record: Record) -> str | None:
    """One line for a run whose row does not tell everything."""
    if record.status == "unreadable":
        return record.reason
    if record.config_fault:
        return f"settings of {record.run} are not known: {record.config_fault}"
    is_told = record.reason and record.status in ("failed", "stopped")
    return f"{record.run} {record.status}: {record.reason}" if is_told else None


def _setting_names(records: Sequence[Record]) -> dict[Hashable, list[str]]:
    """Name what differs between runs on the same data with the same network, for each such kind.

    Runs of different kinds differ in too much to tell, and in what is only a consequence.
    """
    kinds: dict[Hashable, list[Record]] = {}
    for record in records:
        if record.settings:
            kinds.setdefault(_kind(record), []).append(record)
    return {
        kind: [name for name in differing([record.settings for record in group]) if name != "seed"]
        for kind, group in kinds.items()
    }


def _kind(record: Record) -> Hashable:
    return record.settings.get("data"), record.settings.get("model")


def _fold(records: Sequence[Record], names: Mapping[Hashable, Sequence[str]]) -> tuple[list[list[Record]], list[str]]:
    """Group the seeds of equal settings; gives the groups, and the runs that a newer one stands for."""
    groups: dict[Hashable, dict[Any, Record]] = {}
    alone, left_out = [], []
    for record in sorted(records, key=lambda record: record.started or ""):
        if record.status != "finished" or not record.settings:
            alone.append([record])
            continue
        kind = _kind(record)
        key = (kind, *(record.settings.get(name) for name in names[kind]))
        seeds = groups.setdefault(key, {})
        seed = record.settings.get("seed")
        if seed in seeds:
            left_out.append(seeds[seed].run)
        seeds[seed] = record
    return [*(list(seeds.values()) for seeds in groups.values()), *alone], left_out


def _row(group: Sequence[Record], names: Sequence[str]) -> Row:
    last = max(group, key=lambda record: record.started or "")
    row: Row = {name: value for name, value in vars(last).items() if name != "settings"}
    row |= {name: last.settings[name] for name in ("data", "model", "seed", *names) if name in last.settings}
    row |= {"num_seeds": len(group), "typed": " ".join(f"{n}={typed_value(row[n])}" for n in names if n in row)}
    if len(group) == 1:
        return row
    for name in _MEANS:
        values = [value for record in group if (value := getattr(record, name)) is not None]
        row[name] = statistics.fmean(values) if values else None
        if name.endswith("_acc") and len(values) > 1:
            row[name.removesuffix("acc") + "std"] = statistics.stdev(values)
    first, *others = sorted(record.run for record in group)
    tests = [record.test_acc for record in group if record.test_acc is not None]
    row |= {"run": f"{first} +{len(others)}", "seed": f"{len(group)} seeds", "best_epoch": None, "folder": None}
    return row | {"test_low": None, "test_high": None, "test_range": (min(tests), max(tests)) if tests else None}


def _sorted(rows: list[Row], sort: str, names: Sequence[str]) -> list[Row]:
    known = [*_FIRST, *names, *_LAST]
    column = sort if sort in known else sort.replace("/", "_").replace(".", "_")
    if column not in known:
        raise ConfigError(f"sort={sort} is no column; sort by one of {', '.join(known)}.")
    have = [row for row in rows if row.get(column) is not None]
    numbers = all(isinstance(row[column], int | float) for row in have)

    def key(row: Row) -> Any:
        return row[column] if numbers else str(row[column])

    return sorted(have, key=key, reverse=column in _BEST_FIRST) + [row for row in rows if row.get(column) is None]


def _cells(row: Row) -> tuple[str, ...]:
    test = _share(row.get("test_acc"), row.get("test_std"))
    if row.get("test_low") is not None and row.get("test_high") is not None:
        test += f" ({100 * row['test_low']:.2f}..{100 * row['test_high']:.2f})"
    elif row.get("test_range"):
        test += f" [{100 * row['test_range'][0]:.2f}..{100 * row['test_range'][1]:.2f}]"
    seed = "" if row.get("seed") is None else str(row["seed"])
    val = _share(row.get("val_acc"), row.get("val_std"))
    count = f"{row['num_test_images']:,}" if row.get("num_test_images") is not None else ""
    speed = f"{row['images_per_s']:,.0f}" if row.get("images_per_s") is not None else ""
    facts = (row["run"], row["status"], row.get("data") or "", row.get("model") or "", seed)
    return tuple(map(_plain, (*facts, val, test, count, duration_text(row.get("seconds")), speed, row["typed"])))


def duration_text(seconds: float | None) -> str:
    """Put a time in words, e.g. 26 s, 12 min 5 s or 3 h 20 min; empty if it is not known."""
    if seconds is None:
        return ""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _share(acc: float | None, std: float | None) -> str:
    if acc is None:
        return ""
    return f"{100 * acc:.2f} %" if std is None else f"{100 * acc:.2f} ± {100 * std:.2f} %"


def typed_value(value: Any) -> str:
    """Give the value of a setting as it is typed: null, true, 0.1."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _plain(text: Any) -> str:
    """A name from a disk must not move the cursor or color the terminal, and stays on its line."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(text))


def _total(widths: Mapping[int, int]) -> int:
    return sum(widths.values()) + 2 * (len(widths) - 1)
