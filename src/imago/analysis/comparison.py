"""Compare two runs: settings that differ, curves, and a paired test on the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from imago.analysis.charts import Chart, Line, curve_groups, line_charts
from imago.analysis.evaluation import Evaluation, eval_command, load_evaluation
from imago.analysis.page import main_results, read_or_none, write_page
from imago.errors import DataError
from imago.runs.records import RunRecord, differing_settings, read_logged, read_record
from imago.settings import typed_value
from imago.statistics.paired import PairedComparison, compare_paired, num_images_needed
from imago.text import counted, join_names, percent_text, printable

_MAX_CLASSES = 30  # maximum number of classes on the page, as on the page of a single run
_MAX_NAMES = 3  # maximum number of image names in an error message; our own choice
_REMEDY = "train both on the same split, e.g. with data.split_file=RUN/split.csv of one of them"


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two runs, a and b."""

    names: tuple[str, str]  # the last two parts of the paths of the run directories, e.g. "train/first"
    records: tuple[RunRecord, RunRecord]  # status, results and settings of both
    settings: Sequence[tuple[str, str, str]]  # name and both values of each that differs, as typed; "" if it is missing
    evaluations: Sequence[Evaluation]  # those of both runs, on the same images; empty if one cannot be read
    paired: PairedComparison | None  # the paired test on the two evaluations; None without them
    notes: Sequence[str]  # reasons why there is no paired test, or what limits the one that there is

    @property
    def scores(self) -> list[tuple[str, str, str]]:
        """The name, value and note of each score of the paired test; empty without one."""
        if self.paired is None:
            return []
        acc_a, acc_b = (percent_text(evaluation.is_correct.mean()) for evaluation in self.evaluations)
        split = self.evaluations[0].directory.name
        images = f"on the same {counted(self.paired.num_images, 'image')} of {split}"
        low, high = (f"{100 * end:+.2f}" for end in self.paired.interval_95)
        counts = f"only a correct: {self.paired.num_only_a:,}, only b correct: {self.paired.num_only_b:,}"
        rows = [
            ("accuracy of a", acc_a, images),
            ("accuracy of b", acc_b, images),
            ("b - a, in percentage points", f"{100 * self.paired.difference:+.2f}", f"95 % interval {low} to {high}"),
            (self.paired.test, self.paired.p_text, counts),
        ]
        if self.paired.num_groups:  # the number below is one of independent images
            return rows
        needed = num_images_needed(self.paired.num_only_a, self.paired.num_only_b, self.paired.num_images)
        power = f"of {split}, to find a difference of this size in 80 % of cases (McNemar's test at 5 %)"
        return [*rows, ("images needed", f"about {float(f'{needed:.2g}'):,.0f}" if needed else "no number", power)]


def compare_runs(a: Path, b: Path, split: str = "test") -> Comparison:
    """Read two run directories and compare their `eval/<split>` with a paired test, if that is on the same images.

    Raises:
        DataError: if settings cannot be read.
    """
    records = read_record(a), read_record(b)
    for record in records:
        if record.config_error:
            raise DataError(f"{' '.join(record.config_error.split())}; without its settings a run cannot be compared")
    both = [record.settings for record in records]
    settings = [(name, _setting_text(both[0], name), _setting_text(both[1], name)) for name in differing_settings(both)]
    names = f"{a.parent.name}/{a.name}", f"{b.parent.name}/{b.name}"
    notes: list[str] = []
    first, second = (read_or_none(notes, load_evaluation, run, split) for run in (a, b))
    indices = None if notes else read_or_none(notes, _matching_indices, first, second)
    if notes:
        return Comparison(names, records, settings, (), None, list(dict.fromkeys(notes)))
    groups = first.groups if second.groups is None else second.groups[indices]
    paired = compare_paired(first.is_correct, second.is_correct[indices], groups)
    return Comparison(names, records, settings, (first, second), paired, [*first.data_notes, *second.data_notes])


def comparison_text(comparison: Comparison) -> str:
    """Format the comparison for the terminal."""
    settings = [f"   {name}: {value_a} -> {value_b}" for name, value_a, value_b in comparison.settings]
    lines = [f"{label}  {name}" for label, name in zip("ab", comparison.names, strict=True)]
    lines += settings or ["   no setting differs"]
    if comparison.paired is None:
        lines += [f"no paired test: {reason}" for reason in comparison.notes]
        return "\n".join(map(printable, lines))
    lines += [f"{name}: {value} ({note})" for name, value, note in comparison.scores]
    lines += [comparison.paired.verdict, *(f"note: {note}" for note in comparison.notes)]
    return "\n".join(map(printable, lines))


def write_comparison_page(comparison: Comparison, file: Path) -> None:
    """Write the comparison as one HTML file; raise a DataError if that fails."""
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
        DataError: if the two do not have the same images, by name and content, with the same classes.
    """
    names_a, names_b = a.relative_names(), b.relative_names()
    for directory, names in ((a.directory, {*names_a} - {*names_b}), (b.directory, {*names_b} - {*names_a})):
        if names:
            raise _different_images(f"only {directory} has {join_names(sorted(names), _MAX_NAMES)}")
    index_of = {name: index for index, name in enumerate(names_b)}
    indices = np.array([index_of[name] for name in names_a], np.int64)
    classes_a, classes_b = np.array(a.class_names)[a.labels], np.array(b.class_names)[b.labels[indices]]
    for index in np.flatnonzero(classes_a != classes_b):
        raise _different_images(
            f"{printable(names_a[index])} is {printable(classes_a[index])} in {a.directory}, "
            f"{printable(classes_b[index])} in {b.directory}"
        )
    keys = ("images_sha256", "data_fingerprint")  # evaluations before the first was written have only the second
    digest_a, digest_b = (next((str(e.metadata[key]) for key in keys if key in e.metadata), "?")[:16] for e in (a, b))
    if digest_a != digest_b:
        raise _different_images(
            f"names and classes are equal, but the contents have the hash {digest_a} in {a.directory}, {digest_b} in "
            f"{b.directory}",
            "if the images were replaced in between, evaluate both again: "
            + ", ".join(eval_command(e.directory.parents[1], e.directory.name) for e in (a, b)),
        )
    return indices


def _different_images(reason: str, remedy: str = _REMEDY) -> DataError:
    return DataError(f"the two runs were evaluated on different images: {reason}; {remedy}")


def _result_rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    records, evaluations = comparison.records, comparison.evaluations or (None, None)
    a, b = (
        {name: f"{value} ({note})" if note else value for name, value, note in main_results(record, evaluation)}
        for record, evaluation in zip(records, evaluations, strict=True)
    )
    rows = [(name, a.get(name, ""), b.get(name, "")) for name in a | b]
    return [("status", records[0].status, records[1].status), *rows]


def _setting_text(settings: Mapping[str, Any], name: str) -> str:
    return typed_value(settings[name]) if name in settings else ""


def _class_rows(a: Evaluation, b: Evaluation) -> list[tuple[str, str, str, str]]:
    """Return name, both recalls and their difference, for the classes whose recall differs most."""
    recalls_b = dict(zip(b.class_names, b.per_class.recall.tolist(), strict=True))
    recalls_a = zip(a.class_names, a.per_class.num_images, a.per_class.recall.tolist(), strict=True)
    rows = [(name, recall, recalls_b[name]) for name, num_images, recall in recalls_a if num_images]
    rows = sorted(rows, key=lambda row: -abs(row[2] - row[1]))[:_MAX_CLASSES]
    return [
        (name, percent_text(recall_a), percent_text(recall_b), f"{100 * (recall_b - recall_a):+.2f}")
        for name, recall_a, recall_b in rows
    ]


def _charts(records: tuple[RunRecord, RunRecord]) -> list[Chart]:
    """Return one chart for each metric, except those whose names end in `_step`."""
    logged = [read_or_none([], read_logged, Path(record.run_dir)) or {} for record in records]
    groups = {}
    for name in chain.from_iterable(curve_groups(logged[0] | logged[1]).values()):
        if not name.endswith("_step"):
            (x_a, y_a), (x_b, y_b) = (curves.get(name, ([], [])) for curves in logged)
            groups[name] = [Line("a", x_a, y_a, style=1), Line("b", x_b, y_b, style=2)]
    return line_charts(groups, "step")
