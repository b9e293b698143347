"""Compare two runs: settings that differ, curves, and a paired test on the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from imago.analysis.charts import Chart, Line, curve_groups, line_charts
from imago.analysis.evaluation import Evaluation, load_evaluation
from imago.analysis.page import final_test_tta, main_results, read_or_note, write_page
from imago.errors import DataError
from imago.runs.records import RunRecord, differing, read_logged, read_record
from imago.settings import typed_value
from imago.statistics.paired import PairedComparison, compare_paired
from imago.text import join_names, percent_text, printable

_MAX_CLASSES = 30  # rows of the page, as for a single run
_MAX_NAMES = 3  # images in an error message, so that it stays one line; our own choice
_REMEDY = "evaluate both on the same dataset: python src/eval.py run=RUN"


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two runs, a and b.

    Attributes:
        names: the last two parts of the paths of the run directories, e.g. "train/first".
        records: status, results and settings of both.
        settings: name and the two values of each setting that differs, as they are typed; empty for a missing one.
        faults: why settings cannot be compared: the config of a run is missing or damaged.
        evaluations: both evaluations of the same images, or nothing.
        paired: the paired test on them, or None.
        notes: why there is no paired test.
    """

    names: tuple[str, str]
    records: tuple[RunRecord, RunRecord]
    settings: Sequence[tuple[str, str, str]]
    faults: Sequence[str]
    evaluations: Sequence[Evaluation]
    paired: PairedComparison | None
    notes: Sequence[str]

    @property
    def scores(self) -> list[tuple[str, str, str]]:
        """Name, value and note of each score of the paired test; empty without one."""
        if self.paired is None:
            return []
        acc_a, acc_b = (percent_text(evaluation.is_correct.mean()) for evaluation in self.evaluations)
        is_one_view = all(evaluation.metadata.get("tta", "none") == "none" for evaluation in self.evaluations)
        had_views = any(final_test_tta(record) != "none" for record in self.records)
        one_view = ", one view of each" if is_one_view and had_views else ""
        images = f"on the same {self.paired.num_images:,} images{one_view}"
        low, high = (f"{100 * end:+.2f}" for end in self.paired.interval_95)
        counts = f"only a right: {self.paired.num_only_a:,}, only b right: {self.paired.num_only_b:,}"
        return [
            ("accuracy of a", acc_a, images),
            ("accuracy of b", acc_b, images),
            ("b - a, in points", f"{100 * self.paired.difference:+.2f}", f"95 % interval {low} to {high}"),
            ("McNemar's exact test", self.paired.p_text, counts),
        ]


def compare_runs(a: Path, b: Path, split: str = "test") -> Comparison:
    """Read two runs and test their difference on the images that both were evaluated on.

    Args:
        a: the first run directory; differences are b minus a.
        b: the second run directory.
        split: the evaluations to compare, `eval/<split>` of both.

    Raises:
        DataError: if they were evaluated on different images, with the names of some.
    """
    records = read_record(a), read_record(b)
    of_a, of_b = (record.settings for record in records)
    different = differing([of_a, of_b]) if of_a and of_b else ()
    settings = [(name, _typed_or_empty(of_a, name), _typed_or_empty(of_b, name)) for name in different]
    faults = [record.config_fault for record in records if record.config_fault]
    names = f"{a.parent.name}/{a.name}", f"{b.parent.name}/{b.name}"
    notes: list[str] = []
    first, second = (read_or_note(notes, load_evaluation, run, split) for run in (a, b))
    if notes:
        return Comparison(names, records, settings, faults, (), None, list(dict.fromkeys(notes)))
    paired = compare_paired(first.is_correct, second.is_correct[_matching_indices(first, second)])
    return Comparison(names, records, settings, faults, (first, second), paired, [])


def comparison_text(comparison: Comparison) -> str:
    """Format the comparison for the terminal."""
    settings = [printable(f"   {name}: {of_a} -> {of_b}") for name, of_a, of_b in comparison.settings]
    faults = [f"   settings not compared: {printable(fault)}" for fault in comparison.faults]
    lines = [f"{label}  {name}" for label, name in zip("ab", comparison.names, strict=True)]
    lines += settings or faults or ["   no setting differs"]
    if comparison.paired is None:
        return "\n".join([*lines, *(f"no paired test: {reason}" for reason in comparison.notes)])
    lines += [f"{name}: {value} ({note})" for name, value, note in comparison.scores]
    lines.append(comparison.paired.verdict)
    return "\n".join(lines)


def write_comparison_page(comparison: Comparison, file: Path) -> None:
    """Write the comparison as one HTML file.

    Raises:
        DataError: if it cannot be written.
    """
    context = {
        "title": f"{comparison.names[0]} and {comparison.names[1]}",
        "comparison": comparison,
        "results": _result_rows(comparison),
        "classes": _class_rows(*comparison.evaluations) if comparison.evaluations else [],
        "charts": _charts(comparison.records),
    }
    write_page("comparison.html.j2", context, file)


def _matching_indices(a: Evaluation, b: Evaluation) -> np.ndarray:
    """Return the index in `b` of each image of `a`, int64 (N,).

    Raises:
        DataError: if the two do not have the same images with the same classes.
    """
    names_a, names_b = a.relative_names(), b.relative_names()
    names_only_in = {a.directory: set(names_a) - set(names_b), b.directory: set(names_b) - set(names_a)}
    if any(names_only_in.values()):
        found = [(directory, sorted(names)) for directory, names in names_only_in.items() if names]
        texts = (f"only {directory} has {join_names(names, _MAX_NAMES)}" for directory, names in found)
        raise _different_images("; ".join(texts))
    index_of = {name: index for index, name in enumerate(names_b)}
    indices = np.array([index_of[name] for name in names_a], np.int64)
    classes_a, classes_b = np.array(a.class_names)[a.labels], np.array(b.class_names)[b.labels[indices]]
    for index in np.flatnonzero(classes_a != classes_b):
        raise _different_images(
            f"{printable(names_a[index])} is {printable(classes_a[index])} in {a.directory}, "
            f"{printable(classes_b[index])} in {b.directory}"
        )
    fingerprint_a, fingerprint_b = (evaluation.metadata.get("data_fingerprint") for evaluation in (a, b))
    # Indices and classes can be equal by chance, so images without names need the same dataset.
    if all(name.isdecimal() for name in a.image_names) and fingerprint_a != fingerprint_b:
        raise _different_images(
            f"the data of {a.directory} has the fingerprint {fingerprint_a}, that of {b.directory} {fingerprint_b}"
        )
    return indices


def _different_images(reason: str) -> DataError:
    return DataError(f"the two runs were evaluated on different images: {reason}; {_REMEDY}")


def _result_rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    records, evaluations = comparison.records, comparison.evaluations or (None, None)
    a, b = (
        {name: f"{value} ({note})" if note else value for name, value, note in main_results(record, evaluation)}
        for record, evaluation in zip(records, evaluations, strict=True)
    )
    rows = [(name, a.get(name, ""), b.get(name, "")) for name in a | b]
    return [("status", records[0].status, records[1].status), *rows]


def _typed_or_empty(settings: Mapping[str, Any], name: str) -> str:
    return typed_value(settings[name]) if name in settings else ""


def _class_rows(a: Evaluation, b: Evaluation) -> list[tuple[str, str, str, str]]:
    """Return name, recall of both and the difference, for the classes that changed most."""
    recall_b = dict(zip(b.class_names, b.per_class.recall.tolist(), strict=True))
    scores = zip(a.class_names, a.per_class.num_images, a.per_class.recall.tolist(), strict=True)
    rows = [(name, of_a, recall_b[name], recall_b[name] - of_a) for name, num_images, of_a in scores if num_images]
    rows = sorted(rows, key=lambda row: -abs(row[3]))[:_MAX_CLASSES]
    return [(name, percent_text(of_a), percent_text(of_b), f"{100 * change:+.2f}") for name, of_a, of_b, change in rows]


def _charts(records: tuple[RunRecord, RunRecord]) -> list[Chart]:
    """Draw one chart for each metric, without those of single steps."""
    logged = [read_or_note([], read_logged, Path(record.folder)) or {} for record in records]
    groups = {}
    for name in chain.from_iterable(curve_groups(logged[0] | logged[1]).values()):
        if not name.endswith("_step"):
            (x_a, y_a), (x_b, y_b) = (curves.get(name, ([], [])) for curves in logged)
            groups[name] = [Line("a", x_a, y_a, style=1), Line("b", x_b, y_b, style=2)]
    return line_charts(groups, "step")
