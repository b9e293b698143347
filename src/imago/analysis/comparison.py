"""Compare two runs: settings that differ, curves, and a paired test on the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from imago.analysis.charts import Chart, Line, curve_groups, line_charts
from imago.analysis.evaluation import Evaluation, load_evaluation
from imago.analysis.page import optional, write_page
from imago.analysis.table import typed_value
from imago.errors import DataError
from imago.runs.records import Record, differing, read_logged, read_record
from imago.statistics.paired import Paired, compare_paired
from imago.text import count_text, duration_text, join_names, percent, printable, range_text

_MAX_CLASSES = 30  # rows of the page, as for a single run
_MAX_NAMES = 3  # images in an error message, which stays one line
_REMEDY = "evaluate both on the same data set: python src/eval.py run=RUN"


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two runs, a and b.

    Attributes:
        names: the names of the two runs.
        records: what was read from their directories.
        settings: name and the two values of each setting that differs, as they are typed; empty for a missing one.
        faults: why settings cannot be compared: the config of a run is missing or damaged.
        evaluations: both evaluations of the same images, or nothing.
        paired: the paired test on them, or None.
        missing: the reasons why there is no paired test.
    """

    names: tuple[str, str]
    records: tuple[Record, Record]
    settings: Sequence[tuple[str, str, str]]
    faults: Sequence[str]
    evaluations: Sequence[Evaluation]
    paired: Paired | None
    missing: Sequence[str]

    @property
    def accs(self) -> list[float]:
        """The accuracies of both on the same images, in [0, 1]."""
        return [float(evaluation.is_correct.mean()) for evaluation in self.evaluations]

    @property
    def compared_images(self) -> str:
        """The number of images, and a note if the final test of a run used several views of each."""
        is_one_view = all(evaluation.metadata.get("tta", "none") == "none" for evaluation in self.evaluations)
        one_view = ", one view of each" if is_one_view and any(map(_tta_note, self.records)) else ""
        return f"the same {self.paired.num_images:,} images{one_view}" if self.paired else ""


def compare_runs(a: Path, b: Path, split: str = "test") -> Comparison:
    """Read two runs and test their difference on the images that both were evaluated on.

    Args:
        a: a run directory.
        b: another run directory.
        split: the evaluations to compare, `eval/<split>` of both.

    Raises:
        DataError: if they were evaluated on different images, with the names of some.
    """
    records = read_record(a), read_record(b)
    old, new = (record.settings for record in records)
    settings = [(name, _typed(old, name), _typed(new, name)) for name in (differing([old, new]) if old and new else ())]
    faults = [record.config_fault for record in records if record.config_fault]
    names = f"{a.parent.name}/{a.name}", f"{b.parent.name}/{b.name}"
    missing: list[str] = []
    first, second = (optional(missing, load_evaluation, run, split) for run in (a, b))
    if missing:
        return Comparison(names, records, settings, faults, (), None, list(dict.fromkeys(missing)))
    paired = compare_paired(first.is_correct, second.is_correct[_matching_indices(first, second)])
    return Comparison(names, records, settings, faults, (first, second), paired, [])


def comparison_text(comparison: Comparison) -> str:
    """Format the comparison for the terminal."""
    settings = [printable(f"   {name}: {old} -> {new}") for name, old, new in comparison.settings]
    faults = [f"   settings not compared: {printable(fault)}" for fault in comparison.faults]
    lines = [f"{label}  {name}" for label, name in zip("ab", comparison.names, strict=True)]
    lines += settings or faults or ["   no setting differs"]
    if comparison.paired is None:
        return "\n".join([*lines, *(f"no paired test: {reason}" for reason in comparison.missing)])
    paired = comparison.paired
    low, high = paired.interval_95
    acc_a, acc_b = map(percent, comparison.accs)
    lines += [
        f"accuracy on {comparison.compared_images}: a {acc_a}, b {acc_b}",
        f"b - a: {100 * paired.difference:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}",
        f"only a right: {paired.only_a:,}, only b right: {paired.only_b:,}; McNemar: {paired.p_text}",
        paired.verdict,
    ]
    return "\n".join(lines)


def write_comparison_page(comparison: Comparison, file: Path) -> None:
    """Write the comparison as one HTML file.

    Raises:
        DataError: if it cannot be written.
    """
    context = {
        "title": f"{comparison.names[0]} and {comparison.names[1]}",
        "comparison": comparison,
        "results": _result_rows(comparison.records),
        "classes": _class_rows(*comparison.evaluations) if comparison.evaluations else [],
        "charts": _charts(comparison.records),
    }
    write_page("comparison.html.j2", context, file)


def _matching_indices(a: Evaluation, b: Evaluation) -> np.ndarray:
    """Return the index in `b` of each image of `a`, int64 (N,).

    Raises:
        DataError: if the two do not have the same images with the same classes.
    """
    names_a, names_b = a.names(), b.names()
    only = {a.directory: set(names_a) - set(names_b), b.directory: set(names_b) - set(names_a)}
    if any(only.values()):
        extra = [f"only {directory} has {join_names(sorted(names), _MAX_NAMES)}" for directory, names in only.items()]
        raise _different_images("; ".join(text for text, names in zip(extra, only.values(), strict=True) if names))
    index_of = {name: index for index, name in enumerate(names_b)}
    indices = np.array([index_of[name] for name in names_a], np.int64)
    classes_a, classes_b = np.array(a.class_names)[a.labels], np.array(b.class_names)[b.labels[indices]]
    for index in np.flatnonzero(classes_a != classes_b):
        raise _different_images(
            f"{printable(names_a[index])} is {printable(classes_a[index])} in {a.directory}, "
            f"{printable(classes_b[index])} in {b.directory}"
        )
    fingerprint_a, fingerprint_b = (evaluation.metadata.get("data_fingerprint") for evaluation in (a, b))
    # Indices and classes can be equal by chance, so images without names need the same data set.
    if all(name.isdecimal() for name in a.images) and fingerprint_a != fingerprint_b:
        raise _different_images(
            f"the data of {a.directory} has the fingerprint {fingerprint_a}, that of {b.directory} {fingerprint_b}"
        )
    return indices


def _different_images(reason: str) -> DataError:
    return DataError(f"the two runs were evaluated on different images: {reason}; {_REMEDY}")


def _result_rows(records: tuple[Record, Record]) -> list[tuple[str, str, str]]:
    a, b = map(_results, records)
    return [(name, a[name], b[name]) for name in a if a[name] or b[name]]


def _results(record: Record) -> dict[str, str]:
    interval = range_text(record.test_low, record.test_high)
    return {
        "status": record.status,
        "val accuracy": percent(record.val_acc),
        "test accuracy": percent(record.test_acc) + (f" ({interval})" if interval else "") + _tta_note(record),
        "time": duration_text(record.seconds),
        "images/s": count_text(record.images_per_s),
        "waiting for data": percent(record.data_wait_share),
    }


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
    groups = {}
    for name in chain.from_iterable(curve_groups(logged[0] | logged[1]).values()):
        if not name.endswith("_step"):
            (x_a, y_a), (x_b, y_b) = (curves.get(name, ([], [])) for curves in logged)
            groups[name] = [Line("a", x_a, y_a, style=1), Line("b", x_b, y_b, style=2)]
    return line_charts(groups, "step")
