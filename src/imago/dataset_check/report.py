"""Format the results of a check: the printed tables, check.json and the CSV files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imago.dataset_check.checked_set import CheckedSet
from imago.dataset_check.findings import Finding
from imago.files import write_csv
from imago.text import display_width, padded, printable

_MAX_CLASSES = 20  # rows that fit on a screen; of more, the largest and the smallest are shown
_MAX_NAME_WIDTH = 40
_BAR_WIDTH = 20


def class_table(checked: CheckedSet) -> list[str]:
    """Return the lines of a table: number of images of each class in each split, with a bar for the total."""
    counts = np.column_stack([checked.counts, checked.counts.sum(axis=1)])
    rows = list(range(len(counts)))
    if len(counts) > _MAX_CLASSES:
        order = np.argsort(-counts[:, -1], kind="stable").tolist()
        rows = [*order[: _MAX_CLASSES // 2], *order[-_MAX_CLASSES // 2 :]]
    names = [_shorten(printable(checked.class_names[row])) for row in rows]
    width = max(len("class"), *map(display_width, names))
    lines = [padded("class", width) + "".join(f"{name:>10}" for name in (*checked.split_names, "all"))]
    for name, row in zip(names, rows, strict=True):
        bar = "#" * round(_BAR_WIDTH * counts[row, -1] / max(1, counts[:, -1].max()))
        lines.append(f"{padded(name, width)}{_cells(counts[row])}  {bar}".rstrip())
    if len(counts) > len(rows):
        omitted = f"... {len(counts) - len(rows):,} classes between these; check.json has them all"
        lines.insert(1 + _MAX_CLASSES // 2, omitted)
    return [*lines, padded("all", width) + _cells(counts.sum(axis=0))]


def summary_lines(checked: CheckedSet, ignored: Sequence[tuple[str, str]], preprocess: str) -> list[str]:
    """Return the lines below the table.

    Args:
        checked: the data set, with at least one good image.
        ignored: name and reason of the entries that are no images.
        preprocess: description of how a run would prepare these images.
    """
    sizes = ", ".join(f"{name} {width}x{height}" for name, (width, height) in checked.sizes().items())
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in checked.channel_statistics("train"))
    first = f", e.g. {printable(ignored[0][0])} ({printable(ignored[0][1])})" if ignored else ""
    num_same = int(checked.pairs.is_same.sum())
    rare = {name: f" (e.g. {printable(path)})" for name, path in checked.rare_formats().items()}
    rows = {
        "sizes": f"{sizes} (width x height, px)",
        "formats": ", ".join(f"{n:,} {name}{rare.get(name, '')}" for name, n in checked.formats().items()),
        "kinds": ", ".join(f"{count:,} {name}" for name, count in checked.kinds().items()),
        "bad": f"{len(checked.bad):,} images",
        "ignored": f"{len(ignored):,} files or folders{first}",
        "duplicates": f"{num_same:,} pairs with the same bytes, {len(checked.pairs) - num_same:,} nearly the same "
        f"(thumbnails correlate by {checked.pairs.min_correlation:.3f} or more)",
        "statistics": f"mean {mean}, std {std}, of all training images, whole, each with equal weight",
        "a run uses": f"{preprocess}; pretrained weights and preprocess.* may change it",
    }
    return [f"{name:<10}  {value}" for name, value in rows.items() if value]


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """Return the findings as a numbered list; serious ones are marked."""
    lines = []
    for number, finding in enumerate(findings, 1):
        mark = "!" if finding.is_serious else " "
        lines += [f"{mark} {number}. {finding.text}", f"     {finding.remedy}"]
    return lines or ["no problems found"]


def as_json(checked: CheckedSet, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return all numbers as plain data."""
    mean, std = checked.channel_statistics("train")
    return {
        "num_images": len(checked),
        "num_bad": len(checked.bad),
        "classes": {
            name: dict(zip(checked.split_names, row, strict=True))
            for name, row in zip(checked.class_names, checked.counts.tolist(), strict=True)
        },
        "sizes": {name: list(size) for name, size in checked.sizes().items()},
        "formats": checked.formats(),
        "kinds": checked.kinds(),
        "duplicates": {
            "num_pairs_same_bytes": int(checked.pairs.is_same.sum()),
            "num_pairs_near": int((~checked.pairs.is_same).sum()),
            "min_correlation": round(checked.pairs.min_correlation, 4),
            "num_label_conflicts": len(checked.conflicts),
        },
        "channel_statistics": {
            "of": "whole training images, each with equal weight",
            "mean": mean.tolist(),
            "std": std.tolist(),
        },
        "findings": [vars(finding) for finding in findings],
    }


def write_bad_images(path: Path, checked: CheckedSet, left_out: Sequence[tuple[str, str]]) -> None:
    """Write path, split, class and reason of the images that cannot be read.

    Args:
        path: of the CSV.
        checked: the data set.
        left_out: path and reason of those that the data set itself has left out already.
    """
    rows = [(*_describe(checked, index), checked.examined.errors[index]) for index in checked.bad]
    rows += [(name, "", "", reason) for name, reason in left_out]
    write_csv(path, [("path", "split", "class", "reason"), *rows])


def write_duplicates(path: Path, checked: CheckedSet) -> None:
    """Write a row for each pair; images that are connected by pairs have one group number."""
    pairs = checked.pairs
    numbers = np.unique(checked.groups[pairs.first], return_inverse=True)[1] + 1
    columns = (numbers, pairs.is_same, pairs.similarity, pairs.first, pairs.second)
    rows = [
        (
            number,
            "same bytes" if is_same else "near",
            f"{similarity:.3f}",
            *_describe(checked, a),
            *_describe(checked, b),
        )
        for number, is_same, similarity, a, b in zip(*columns, strict=True)
    ]
    header = (f"{column}_{end}" for end in "ab" for column in ("path", "split", "class"))
    write_csv(path, [("group", "kind", "correlation", *header), *sorted(rows)])


def _describe(checked: CheckedSet, index: int) -> tuple[str, str, str]:
    split, label = checked.splits[index], checked.labels[index]
    return checked.names[index], checked.split_names[split], checked.class_names[label]


def _cells(counts: np.ndarray) -> str:
    return "".join(f"{count:>10,}" for count in counts)


def _shorten(text: str) -> str:
    """Replace the middle of a text by an ellipsis until it fits."""
    while display_width(text) > _MAX_NAME_WIDTH:
        text = text[: len(text) // 2 - 2] + "…" + text[len(text) // 2 + 2 :]
    return text
