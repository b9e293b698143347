"""Compare two runs: settings that differ, curves, and a paired test on the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from imago.analysis.charts import Chart, Line, curve_groups, line_chart
from imago.analysis.evaluation import Evaluation, load_evaluation
from imago.analysis.page import Table, optional, write_page
from imago.analysis.table import count_text, duration_text, percent, range_text
from imago.errors import DataError
from imago.runs.records import Record, differing, read_logged, read_record
from imago.settings import typed_value
from imago.statistics.paired import Paired, compare_paired
from imago.text import join_names, printable

_MAX_CLASSES = 30
_MAX_NAMES = 3  # images in an error message
_REMEDY = "evaluate both on the same data set: python src/eval.py run=RUN"


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two runs, a and b.

    Attributes:
        names: of the two runs.
        records: what was read from their directories.
        settings: name and the two values of each setting that differs, as they are typed; empty for a missing one.
        evaluations: of the same images; None if one of them is missing.
        paired: the paired test on them; None likewise.
        missing: the reasons why there is none.
    """

    names: tuple[str, str]
    records: tuple[Record, Record]
    settings: Sequence[tuple[str, str, str]]
    evaluations: tuple[Evaluation, Evaluation] | None
    paired: Paired | None
    missing: Sequence[str]

    @property
    def config_faults(self) -> list[str]:
        """Why settings cannot be compared, if the config of a run is missing or damaged."""
        return [record.config_fault for record in self.records if record.config_fault]

    @property
    def compared_images(self) -> str:
        """The number of images, and a note if the final test of a run used several views of each."""
        views = {evaluation.metadata.get("tta", "none") for evaluation in self.evaluations or ()}
        one_view = ", one view of each" if views == {"none"} and any(map(_tta_note, self.records)) else ""
        return f"the same {self.paired.num_images:,} images{one_view}" if self.paired else ""


def compare_runs(a: Path, b: Path, split: str = "test") -> Comparison:
    """Read two runs and test their difference on the images that both were evaluated on.

    Args:
        a: a run directory.
        b: the other one.
        split: the evaluations to compare, `eval/<split>` of both.

    Raises:
        DataError: if they were evaluated on different images, with the names of some.
    """
    records = read_record(a), read_record(b)
    old, new = (record.settings for record in records)
    settings = [(name, _typed(old, name), _typed(new, name)) for name in (differing([old, new]) if old and new else ())]
    missing: list[str] = []
    first, second = (optional(missing, load_evaluation, run, split) for run in (a, b))
    names = f"{a.parent.name}/{a.name}", f"{b.parent.name}/{b.name}"
    if missing:
        return Comparison(names, records, settings, None, None, list(dict.fromkeys(missing)))
    paired = compare_paired(first.is_correct, second.is_correct[_matching_rows(first, second)])
    return Comparison(names, records, settings, (first, second), paired, [])


def comparison_text(found: Comparison) -> str:
    """Format the comparison for the terminal."""
    lines = [f"{label}  {name}" for label, name in zip("ab", found.names, strict=True)]
    changed = [printable(f"   {name}: {old} -> {new}") for name, old, new in found.settings]
    faults = [f"   settings not compared: {printable(fault)}" for fault in found.config_faults]
    lines += changed or faults or ["   no setting differs"]
    if found.paired is None or found.evaluations is None:
        return "\n".join([*lines, *(f"no paired test: {reason}" for reason in found.missing)])
    paired = found.paired
    low, high = paired.interval_95
    accs = [f"{label} {percent(x.is_correct.mean())}" for label, x in zip("ab", found.evaluations, strict=True)]
    return "\n".join(
        [
            *lines,
            f"accuracy on {found.compared_images}: {', '.join(accs)}",
            f"b - a: {100 * paired.difference:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}",
            f"only a right: {paired.only_a:,}, only b right: {paired.only_b:,}; McNemar: {paired.p_text}",
            paired.verdict,
        ]
    )


def write_comparison_page(found: Comparison, file: Path) -> None:
    """Write the comparison as one HTML file.

    Raises:
        DataError: if it cannot be written.
    """
    text_columns = [("a", ""), ("b", "")]
    class_columns = [("class", ""), *((name, "number") for name in ("a", "b", "points"))]
    class_rows = _class_rows(*found.evaluations) if found.evaluations else []
    context = {
        "title": f"{found.names[0]} and {found.names[1]}",
        "found": found,
        "results": Table("Results", [("result", ""), *text_columns], _result_rows(found.records)),
        "accs": [float(x.is_correct.mean()) for x in found.evaluations or ()],
        "settings": Table("Settings that differ", [("setting", ""), *text_columns], found.settings, style="words"),
        "classes": Table("Recall", class_columns, class_rows, "Recall of each class, largest change first."),
        "charts": _charts(found.records),
    }
    write_page("comparison.html.j2", context, file)


def _matching_rows(a: Evaluation, b: Evaluation) -> np.ndarray:
    """Return the row in `b` of each image of `a`, int64 (N,).

    Raises:
        DataError: if the two do not have the same images with the same classes.
    """
    names_a, names_b = a.names(), b.names()
    row_of = {name: row for row, name in enumerate(names_b)}
    only_a, only_b = [n for n in names_a if n not in row_of], sorted(set(names_b) - set(names_a))
    if only_a or only_b:
        extra = [
            f"only {x.directory} has {join_names(only, _MAX_NAMES)}" for x, only in ((a, only_a), (b, only_b)) if only
        ]
        raise _different_images("; ".join(extra))
    rows = np.array([row_of[name] for name in names_a], np.int64)
    for name, label_a, label_b in zip(names_a, a.labels, b.labels[rows], strict=True):
        class_a, class_b = a.class_names[label_a], b.class_names[label_b]
        if class_a != class_b:
            raise _different_images(
                f"{printable(name)} is {printable(class_a)} in {a.directory}, {printable(class_b)} in {b.directory}"
            )
    fingerprints = [x.metadata.get("data_fingerprint") for x in (a, b)]
    # Indices and classes can be equal by chance, so images without names need the same data set.
    if all(name.isdecimal() for name in a.images) and fingerprints[0] != fingerprints[1]:
        raise _different_images(
            f"the data of {a.directory} has the fingerprint {fingerprints[0]}, that of {b.directory} {fingerprints[1]}"
        )
    return rows


def _different_images(reason: str) -> DataError:
    return DataError(f"the two runs were evaluated on different images: {reason}; {_REMEDY}")


def _result_rows(records: tuple[Record, Record]) -> list[tuple[str, str, str]]:
    columns = [
        {
            "status": record.status,
            "val accuracy": percent(record.val_acc),
            "test accuracy": percent(record.test_acc) + _interval(record) + _tta_note(record),
            "time": duration_text(record.seconds),
            "images/s": count_text(record.images_per_s),
            "waiting for data": percent(record.data_wait_share),
        }
        for record in records
    ]
    a, b = columns
    return [(name, a[name], b[name]) for name in a if a[name] or b[name]]


def _interval(record: Record) -> str:
    interval = range_text(record.test_low, record.test_high)
    return f" ({interval})" if interval else ""


def _tta_note(record: Record) -> str:
    """Return a note if the final test used several views of each image; the evaluation may have used one."""
    tta = record.settings.get("tta") or "none"
    return f", with tta={tta}" if tta != "none" and record.test_acc is not None else ""


def _typed(settings: Mapping[str, Any], name: str) -> str:
    return typed_value(settings[name]) if name in settings else ""


def _class_rows(a: Evaluation, b: Evaluation) -> list[tuple[str, str, str, str]]:
    """Return name, recall of both and the difference, for the classes that changed most."""
    recall_b = dict(zip(b.class_names, b.per_class.recall.tolist(), strict=True))
    scores = zip(a.class_names, a.per_class.count, a.per_class.recall.tolist(), strict=True)
    rows = [(name, old, recall_b[name], recall_b[name] - old) for name, count, old in scores if count]
    rows = sorted(rows, key=lambda row: -abs(row[3]))[:_MAX_CLASSES]
    return [(name, percent(old), percent(new), f"{100 * change:+.2f}") for name, old, new, change in rows]


def _charts(records: tuple[Record, Record]) -> list[Chart]:
    """Draw one chart for each metric, without those of single steps."""
    logged = [optional([], read_logged, Path(record.folder)) or {} for record in records]
    charts = []
    for name in chain.from_iterable(curve_groups({**logged[0], **logged[1]}).values()):
        if not name.endswith("_step"):
            (x_a, y_a), (x_b, y_b) = (found.get(name, ([], [])) for found in logged)
            charts.append(line_chart(name, [Line("a", x_a, y_a, 1), Line("b", x_b, y_b, 2)], "step"))
    return [chart for chart in charts if chart]
