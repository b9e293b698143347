"""What a check says: the table on the screen, check.json, and the lists as CSV files."""

import csv
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imago.dataset_check.checked_set import CheckedSet
from imago.dataset_check.findings import Finding
from imago.text import printable

_MAX_CLASSES = 20  # rows that fit on a screen; of more, the largest and the smallest are shown
_MAX_NAME_WIDTH = 40
_BAR_WIDTH = 20


def class_table(checked: CheckedSet) -> list[str]:
    """Give the lines of a table: images of each class in each split, with a bar for the total."""
    counts = np.column_stack([checked.counts, checked.counts.sum(axis=1)])
    rows = _chosen_rows(counts[:, -1])
    names = {row: _fit(printable(checked.class_names[row])) for row in rows}
    width = max(5, *map(_width, names.values()))
    header = "".join(f"{name:>10}" for name in (*checked.split_names, "all"))
    lines = [f"{'class':<{width}}{header}"]
    longest = max(1, counts[:, -1].max())
    for place, row in enumerate(rows):
        if place and row != rows[place - 1] + 1 and len(rows) < len(counts) and place == len(rows) // 2:
            lines.append(f"... {len(counts) - len(rows):,} classes between these; check.json has them all")
        bar = "#" * round(_BAR_WIDTH * counts[row, -1] / longest)
        cells = "".join(f"{count:>10,}" for count in counts[row])
        lines.append(f"{names[row]}{' ' * (width - _width(names[row]))}{cells}  {bar}".rstrip())
    total = "".join(f"{count:>10,}" for count in counts.sum(axis=0))
    return [*lines, f"{'all':<{width}}{total}"]


def fact_lines(checked: CheckedSet, ignored: Sequence[tuple[str, str]], record: str) -> list[str]:
    """Give the lines below the table.

    Args:
        checked: the data set, with at least one good image.
        ignored: path and reason of what was not taken.
        record: how a run would prepare these images, in words.
    """
    sizes = ", ".join(f"{name} {width}x{height}" for name, (width, height) in checked.sizes().items())
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in checked.channel_statistics("train"))
    kinds = ", ".join(f"{count:,} {name}" for name, count in checked.kinds().items())
    first = f", e.g. {printable(ignored[0][0])} ({printable(ignored[0][1])})" if ignored else ""
    same = int(checked.pairs.is_same.sum())
    odd = {name: f" (e.g. {printable(path)})" for name, path in checked.odd_ones().items()}
    rows = {
        "sizes": f"{sizes} (width x height, px)",
        "formats": ", ".join(f"{n:,} {name}{odd.get(name, '')}" for name, n in checked.formats().items()),
        **({"kinds": kinds} if kinds else {}),
        "bad": f"{len(checked.bad):,} images",
        "ignored": f"{len(ignored):,} files or folders{first}",
        "twins": f"{same:,} pairs with the same bytes, {len(checked.pairs) - same:,} nearly the same "
        f"(thumbnails correlate by {checked.pairs.min_correlation:.3f} or more)",
        "statistics": f"mean {mean}, std {std}, of all training images, whole, each counting the same",
        "a run uses": f"{record}; pretrained weights and preprocess.* may ask otherwise",
    }
    return [f"{name:<10}  {value}" for name, value in rows.items()]


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """Give the findings as a numbered list; what a person must decide is marked."""
    if not findings:
        return ["nothing found that should be mended"]
    lines = []
    for number, finding in enumerate(findings, 1):
        mark = "!" if finding.is_serious else " "
        lines += [f"{mark} {number}. {finding.text}", f"     {finding.way_out}"]
    return lines


def as_json(checked: CheckedSet, findings: Sequence[Finding]) -> dict[str, Any]:
    """Give all numbers as plain data."""
    mean, std = checked.channel_statistics("train")
    per_class = {
        name: dict(zip(checked.split_names, map(int, row), strict=True))
        for name, row in zip(checked.class_names, checked.counts, strict=True)
    }
    return {
        "num_images": len(checked),
        "num_bad": len(checked.bad),
        "classes": per_class,
        "sizes": {name: list(size) for name, size in checked.sizes().items()},
        "formats": checked.formats(),
        "kinds": checked.kinds(),
        "duplicates": {
            "num_pairs_same_bytes": int(checked.pairs.is_same.sum()),
            "num_pairs_near": int((~checked.pairs.is_same).sum()),
            "min_correlation": round(checked.pairs.min_correlation, 4),
            "num_label_conflicts": len(checked.conflicts),
        },
        "channel_statistics": {"of": "whole training images, each counting the same", "mean": mean.tolist(),
                               "std": std.tolist()},
        "findings": [vars(finding) for finding in findings],
    }  # fmt: skip


def write_bad_files(path: Path, checked: CheckedSet, left_out: Sequence[tuple[str, str]]) -> None:
    """Write path, class, split and reason of the images that cannot be read.

    Args:
        path: of the CSV.
        checked: the data set.
        left_out: path and reason of those that the data set itself has left out already.
    """
    rows = [(*_place(checked, place), checked.examined.errors[place]) for place in checked.bad]
    rows += [(name, "", "", reason) for name, reason in left_out]
    write_csv(path, [("path", "split", "class", "reason"), *rows])


def write_duplicates(path: Path, checked: CheckedSet) -> None:
    """Write a line for each pair; images that hang together have one group number."""
    pairs = checked.pairs
    numbers = np.unique(checked.groups[pairs.first], return_inverse=True)[1] + 1
    rows = [
        (number, "same bytes" if is_same else "near", f"{similarity:.3f}",
         *_place(checked, first), *_place(checked, second))
        for number, first, second, is_same, similarity in zip(
            numbers, pairs.first, pairs.second, pairs.is_same, pairs.similarity, strict=True
        )
    ]  # fmt: skip
    places = (f"{column}_{end}" for end in "ab" for column in ("path", "split", "class"))
    write_csv(path, [("group", "kind", "correlation", *places), *sorted(rows)])


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows; names of files that are no UTF-8 are written as they are on the disk."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _place(checked: CheckedSet, place: int) -> tuple[str, str, str]:
    split, label = checked.splits[place], checked.labels[place]
    return checked.names[place], checked.split_names[split], checked.class_names[label]


def _chosen_rows(totals: np.ndarray) -> list[int]:
    """Give the classes to show: all in their order, or of many the largest and then the smallest."""
    if len(totals) <= _MAX_CLASSES:
        return list(range(len(totals)))
    order = np.argsort(-totals, kind="stable")
    half = _MAX_CLASSES // 2
    return [*order[:half].tolist(), *order[-half:].tolist()]


def _width(text: str) -> int:
    """Count columns of a terminal: signs of East Asia take two, accents that are put on others none."""
    return sum(
        0 if unicodedata.combining(sign) else 1 + (unicodedata.east_asian_width(sign) in ("W", "F")) for sign in text
    )


def _fit(text: str) -> str:
    while _width(text) > _MAX_NAME_WIDTH:
        text = text[: len(text) // 2 - 2] + "…" + text[len(text) // 2 + 2 :]
    return text
