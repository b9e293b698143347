"""Format the results of a check: the printed tables, check.json and the CSV files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imago.dataset_check.checked_dataset import CheckedDataset
from imago.dataset_check.findings import Finding
from imago.files import write_csv
from imago.images import SPLITS
from imago.text import counted, printable, shortened, table_lines

_STATISTICS_OF = "whole training images, each with equal weight"
_MAX_CLASSES = 20  # rows that fit on a screen; of more, the largest and the smallest are shown
_MAX_NAME_WIDTH = 40  # of a class in the table; our own choice
_BAR_WIDTH_CHARS = 20  # a line with names of usual length then has less than 80; our own choice


def class_table(checked: CheckedDataset) -> list[str]:
    """Return the lines of a table: number of images of each class in each split, with a bar for the total."""
    counts = np.column_stack([checked.counts, checked.counts.sum(axis=1)])
    labels = list(range(len(counts)))
    if len(labels) > _MAX_CLASSES:
        order = np.argsort(-counts[:, -1], kind="stable").tolist()
        labels = [*order[: _MAX_CLASSES // 2], *order[-_MAX_CLASSES // 2 :]]
    names = [shortened(printable(checked.class_names[label]), _MAX_NAME_WIDTH) for label in labels]
    rows: list[tuple[str, ...]] = [("class", *SPLITS, "all", "")]
    for name, label in zip(names, labels, strict=True):
        bar = "#" * round(_BAR_WIDTH_CHARS * counts[label, -1] / counts[:, -1].max())
        rows.append((name, *(f"{count:,}" for count in counts[label]), bar))
    rows.append(("all", *(f"{count:,}" for count in counts.sum(axis=0)), ""))
    lines = table_lines(rows, right=range(1, 5))
    if omitted := len(counts) - len(labels):
        classes = counted(omitted, "class", "classes")
        lines.insert(2 + _MAX_CLASSES // 2, f"... {classes} between these; check.json has them all")
    return lines


def summary_lines(checked: CheckedDataset, preprocess: str) -> list[str]:
    """Return the lines below the table; `preprocess` describes how a run would prepare these images."""
    sizes = ", ".join(f"{name} {width}x{height}" for name, (width, height) in checked.sizes().items())
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in checked.train_statistics)
    num_same = int(checked.pairs.is_same.sum())
    lines = {
        "sizes": f"{sizes} (width x height, px)",
        "formats": ", ".join(f"{count:,} {name}" for name, count in checked.formats().items()),
        "kinds": ", ".join(f"{count:,} {name}" for name, count in checked.kinds().items()),
        "duplicates": f"{counted(num_same, 'pair')} with the same bytes, {len(checked.pairs) - num_same:,} nearly the "
        f"same (thumbnails correlate by {checked.pairs.min_correlation:.3f} or more)",
        "groups": "" if checked.named_groups is None else _groups_text(checked.named_groups, checked.grouping),
        "statistics": f"mean {mean}, std {std}, over all training images, uncropped, each with equal weight",
        "a run uses": f"{preprocess}; pretrained weights and preprocess.* may change it",
    }
    return [f"{name:<10}  {value}" for name, value in lines.items() if value]


def _groups_text(groups: np.ndarray, grouping: str) -> str:
    sizes = np.unique(groups, return_counts=True)[1]
    return f"{len(sizes):,} of {grouping}, with {sizes.min():,} to {sizes.max():,} images"


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """Return the findings as a numbered list; serious ones are marked."""
    lines = []
    for number, finding in enumerate(findings, 1):
        mark = "!" if finding.is_serious else " "
        lines += [f"{mark} {number}. {finding.text}", f"     {finding.remedy}"]
    return lines or ["no problems found"]


def as_json(checked: CheckedDataset, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return counts, sizes, duplicates, channel statistics and findings as plain data, for `check.json`."""
    mean, std = checked.train_statistics
    num_same = int(checked.pairs.is_same.sum())
    counts = [dict(zip(SPLITS, row, strict=True)) for row in checked.counts.tolist()]
    return {
        "num_images": len(checked),
        "num_bad": len(checked.bad_indices),
        "classes": dict(zip(checked.class_names, counts, strict=True)),
        "sizes": checked.sizes(),
        "formats": checked.formats(),
        "kinds": checked.kinds(),
        "duplicates": {
            "num_pairs_same_bytes": num_same,
            "num_pairs_near": len(checked.pairs) - num_same,
            "min_correlation": round(checked.pairs.min_correlation, 4),
            "num_label_conflicts": len(checked.conflicts),
        },
        "channel_statistics": {"of": _STATISTICS_OF, "mean": mean.tolist(), "std": std.tolist()},
        "findings": [vars(finding) for finding in findings],
    }


def write_bad_images(file: Path, checked: CheckedDataset, left_out: Sequence[tuple[str, str]]) -> None:
    """Write path, split, class and reason of the images that cannot be read; `left_out` are not in the dataset."""
    rows = [(*checked.origin(index), checked.examined.errors[index]) for index in checked.bad_indices]
    rows += [(name, "", "", reason) for name, reason in left_out]
    write_csv(file, [("path", "split", "class", "reason"), *rows])


def write_duplicates(file: Path, checked: CheckedDataset) -> None:
    """Write a row for each pair; images that are connected by pairs have one group number."""
    pairs = checked.pairs
    numbers = np.unique(checked.groups[pairs.first], return_inverse=True)[1] + 1
    columns = (numbers, pairs.is_same, pairs.similarity, pairs.first, pairs.second)
    rows = []
    for number, is_same, similarity, first, second in zip(*columns, strict=True):
        kind = "same bytes" if is_same else "near"
        rows.append((number, kind, f"{similarity:.3f}", *checked.origin(first), *checked.origin(second)))
    header = (f"{column}_{end}" for end in "ab" for column in ("path", "split", "class"))
    write_csv(file, [("group", "kind", "correlation", *header), *sorted(rows)])
