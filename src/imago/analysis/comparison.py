"""Two runs against each other: what was set otherwise, how they grew, and whether the difference is more than luck."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from imago.analysis.charts import Chart, Line, line_chart
from imago.analysis.evaluation import Evaluation, load_evaluation
from imago.analysis.page import write_page
from imago.analysis.run_page import curve_groups
from imago.analysis.table import duration_text, typed_value
from imago.errors import DataError
from imago.runs.records import Record, differing, read_logged, read_record
from imago.statistics.paired import Paired, compare_paired, p_text, verdict
from imago.text import printable

_MOST_NAMED = 3  # images in an error message
_MOST_CLASSES = 30


@dataclass(frozen=True)
class Comparison:
    """What two runs have to say to each other.

    Attributes:
        names: of the two, as they are told apart in the page.
        records: what their folders tell.
        settings: name and the two values of each setting that differs, as they are typed; empty for one that is not
            there.
        evaluations: of the same images in the same order; None where one of them is missing.
        paired: the test on them, likewise.
        missing: why there is none.
    """

    names: tuple[str, str]
    records: tuple[Record, Record]
    settings: Sequence[tuple[str, str, str]]
    evaluations: tuple[Evaluation, Evaluation] | None
    paired: Paired | None
    missing: Sequence[str]

    @property
    def config_faults(self) -> list[str]:
        """Why settings cannot be compared, where the config of a run is missing or damaged."""
        return [record.config_fault for record in self.records if record.config_fault]


def compare_runs(a: Path, b: Path, split: str = "test") -> Comparison:
    """Read two runs and test their difference on the images that both were evaluated on.

    Args:
        a: a run's folder.
        b: the other one.
        split: the evaluations that are compared, `eval/<split>` of both.

    Raises:
        DataError: if they were evaluated on different images, naming some.
    """
    records = read_record(a), read_record(b)
    old, new = (record.settings for record in records)
    changed = [(name, _told(old, name), _told(new, name)) for name in (differing([old, new]) if old and new else ())]
    found, missing = [], []
    for run in (a, b):
        try:
            found.append(load_evaluation(run, split))
        except DataError as error:
            missing.append(str(error))
    names = f"{a.parent.name}/{a.name}", f"{b.parent.name}/{b.name}"
    if missing:
        return Comparison(names, records, changed, None, None, list(dict.fromkeys(missing)))
    order = same_images(found[0], found[1])
    paired = compare_paired(found[0].is_right, found[1].is_right[order])
    return Comparison(names, records, changed, (found[0], found[1]), paired, [])


def same_images(a: Evaluation, b: Evaluation) -> np.ndarray:
    """Give the row in `b` of each image of `a`, int64 (N,).

    Raises:
        DataError: if the two do not hold the same images with the same classes.
    """
    names_a, names_b = a.names(), b.names()
    places = {name: row for row, name in enumerate(names_b)}
    only_a, only_b = [n for n in names_a if n not in places], sorted(set(names_b) - set(names_a))
    if only_a or only_b:
        told = [f"only {x.folder} has {_listed(only)}" for x, only in ((a, only_a), (b, only_b)) if only]
        raise DataError(f"the two runs were evaluated on different images: {'; '.join(told)}; {_REDO}")
    order = np.array([places[name] for name in names_a], np.int64)
    truth_a = np.array(a.class_names, dtype=object)[a.labels]
    truth_b = np.array(b.class_names, dtype=object)[b.labels[order]]
    if (truth_a != truth_b).any():
        row = int(np.flatnonzero(truth_a != truth_b)[0])
        raise DataError(
            f"the two runs were evaluated on different images: {printable(names_a[row])} is "
            f"{printable(truth_a[row])} in {a.folder}, {printable(truth_b[row])} in {b.folder}; {_REDO}"
        )
    _refuse_other_files(a, b)
    return order


_REDO = "evaluate both on the same data set: python src/eval.py run=RUN"


def _refuse_other_files(a: Evaluation, b: Evaluation) -> None:
    """Numbers and names may agree by chance; where images have no names, the data set itself must be the same."""
    prints = [x.facts.get("data_fingerprint") for x in (a, b)]
    if all(name.isdecimal() for name in a.images) and prints[0] != prints[1]:
        raise DataError(
            f"the two runs were evaluated on different images: the data of {a.folder} has the fingerprint "
            f"{prints[0]}, that of {b.folder} {prints[1]}; {_REDO}"
        )


def comparison_text(found: Comparison) -> str:
    """Say on the screen what came out."""
    lines = [f"{label}  {name}" for label, name in zip("ab", found.names, strict=True)]
    changed = [printable(f"   {name}: {old} -> {new}") for name, old, new in found.settings]
    faults = [f"   settings not compared: {printable(fault)}" for fault in found.config_faults]
    lines += changed or faults or ["   no setting differs"]
    if found.paired is None or found.evaluations is None:
        return "\n".join([*lines, *(f"no paired test: {reason}" for reason in found.missing)])
    paired = found.paired
    low, high = paired.interval_95
    accs = [f"{label} {100 * x.is_right.mean():.2f} %" for label, x in zip("ab", found.evaluations, strict=True)]
    return "\n".join(
        [
            *lines,
            f"accuracy on {_compared_images(found)}: {', '.join(accs)}",
            f"b - a: {100 * paired.difference:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}",
            f"only a right: {paired.only_a:,}, only b right: {paired.only_b:,}; McNemar: {p_text(paired)}",
            verdict(paired),
        ]
    )


def write_comparison_page(found: Comparison, file: Path) -> None:
    """Write the comparison as one HTML file.

    Raises:
        DataError: if it cannot be written.
    """
    facts = {
        "title": f"{found.names[0]} and {found.names[1]}",
        "found": found,
        "facts": _fact_rows(found.records),
        "images": _compared_images(found),
        "accs": [float(x.is_right.mean()) for x in found.evaluations or ()],
        "p_text": p_text(found.paired) if found.paired else "",
        "verdict": verdict(found.paired) if found.paired else "",
        "classes": _class_rows(found),
        "charts": _charts(found),
    }
    write_page("comparison.html.j2", facts, file)


def _fact_rows(records: tuple[Record, Record]) -> list[tuple[str, str, str]]:
    """What both tell about themselves, side by side."""
    tests = [
        "" if r.test_low is None or r.test_high is None else f" ({100 * r.test_low:.2f} to {100 * r.test_high:.2f})"
        for r in records
    ]
    columns = [
        {
            "status": record.status,
            "val accuracy": _percent(record.val_acc),
            "test accuracy": _percent(record.test_acc) + test + _views(record),
            "time": duration_text(record.seconds),
            "images/s": "" if record.images_per_s is None else f"{record.images_per_s:,.0f}",
            "waiting for data": _percent(record.data_wait_share),
        }
        for record, test in zip(records, tests, strict=True)
    ]
    return [(name, columns[0][name], columns[1][name]) for name in columns[0] if columns[0][name] or columns[1][name]]


def _told(settings: Mapping[str, Any], name: str) -> str:
    return typed_value(settings[name]) if name in settings else ""


def _views(record: Record) -> str:
    """The final test may have taken the mean over several views of each image; the evaluations here did not."""
    tta = record.settings.get("tta") or "none"
    return f", with tta={tta}" if tta != "none" and record.test_acc is not None else ""


def _compared_images(found: Comparison) -> str:
    """What both were asked; where the accuracy of a final test stands beside it, why it may be another one."""
    views = {x.facts.get("tta", "none") for x in found.evaluations or ()}
    one_view = ", one view of each" if views == {"none"} and any(map(_views, found.records)) else ""
    return f"the same {found.paired.num_images:,} images{one_view}" if found.paired else ""


def _class_rows(found: Comparison) -> list[tuple[str, float, float, float]]:
    """Name, recall of both and the difference, for the classes that changed most."""
    if found.evaluations is None:
        return []
    a, b = found.evaluations
    places = {name: place for place, name in enumerate(b.class_names)}
    rows = []
    for place in np.flatnonzero(a.per_class.count).tolist():
        name = a.class_names[place]
        old, new = float(a.per_class.recall[place]), float(b.per_class.recall[places[name]])
        rows.append((name, old, new, new - old))
    return sorted(rows, key=lambda row: -abs(row[3]))[:_MOST_CLASSES]


def _charts(found: Comparison) -> list[Chart]:
    logged = [_logged(record) for record in found.records]
    charts = []
    for name in chain.from_iterable(curve_groups({**logged[0], **logged[1]}).values()):
        if not name.endswith("_step"):
            points = [one.get(name, ([], [])) for one in logged]
            lines = [Line(label, *points[place], place + 1) for place, label in enumerate("ab")]
            charts.append(line_chart(name, lines, "step"))
    return [chart for chart in charts if chart is not None]


def _logged(record: Record) -> Mapping[str, tuple[list[float], list[float]]]:
    try:
        return read_logged(Path(record.folder))
    except DataError:
        return {}


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(printable, names[:_MOST_NAMED])) + more
