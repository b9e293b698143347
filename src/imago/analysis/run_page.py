"""One run as one page: how it went, what it gets wrong, and where it comes from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imago.analysis.charts import Chart, Line, line_chart
from imago.analysis.evaluation import Evaluation, eval_command, load_evaluation, load_image, saved_images
from imago.analysis.page import figure_uri, thumbnail_uri, write_page
from imago.analysis.table import duration_text
from imago.errors import DataError
from imago.files import read_json
from imago.runs.records import Record, read_logged, read_record
from imago.statistics.calibration import Reliability, reliability
from imago.statistics.metrics import macro_f1, most_confused

_MOST_MISTAKES = 25
_MOST_CLASSES = 30  # of more, the matrix would be unreadable and the bars endless: the weakest are shown
_MOST_CONFUSED = 20
_MOST_FIGURES = 12
_MOST_DIFF_CHARS = 20_000
_NOT_CURVES = ("epoch", "test/")  # test values are single numbers
_TIMES = {
    "train": "training",
    "data_wait": "waiting for data",
    "val": "validation",
    "test": "final test",
}


def write_run_page(run: Path, split: str, file: Path) -> list[str]:
    """Write everything a run's folder tells as one HTML file.

    Args:
        run: the run's folder.
        split: the evaluation that is shown, `eval/<split>` of the run.
        file: the page.

    Returns:
        What is missing in the page, and how to get it.

    Raises:
        DataError: if the page cannot be written.
    """
    missing: list[str] = []
    record = read_record(run)
    facts = {
        "title": f"{run.parent.name}/{run.name}",
        "record": record,
        "headlines": _headlines(record),
        "charts": _charts(run, missing),
        "times": _times(read_json(run / "summary.json"), missing),
        "evaluation": _evaluation(run, split, record, missing),
        "split": split,
        "eval_command": eval_command(run, split),
        "figures": _figures(run / "figures", missing),
        "config": _text(run / "config.yaml", missing),
        "provenance": _provenance(run),
    }
    write_page("run.html.j2", facts | {"missing": missing}, file)
    return missing


def curve_groups(names: Mapping[str, Any]) -> dict[str, list[str]]:
    """Put what belongs into one chart together: train/loss, train/loss_step and val/loss are all `loss`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if not name.startswith(_NOT_CURVES):
            groups.setdefault(name.rpartition("/")[2].removesuffix("_step"), []).append(name)
    return {title: sorted(group) for title, group in groups.items()}


def _headlines(record: Record) -> list[tuple[str, str, str]]:
    """Name, value and small print of the numbers that stand on top."""
    test_note = ""
    if record.test_low is not None and record.test_high is not None:
        test_note = f"95 %: {100 * record.test_low:.2f} to {100 * record.test_high:.2f}, n = {record.num_test_images:,}"
    wait = record.data_wait_share
    rows = [
        ("test accuracy", record.test_acc, test_note),
        ("best val accuracy", record.val_acc, f"epoch {record.best_epoch}" if record.best_epoch else ""),
    ]
    found = [(name, f"{100 * value:.2f} %", note) for name, value, note in rows if value is not None]
    if record.seconds is not None:
        epochs = "" if not record.epochs else "1 epoch" if record.epochs == 1 else f"{record.epochs} epochs"
        found.append(("time", duration_text(record.seconds), epochs))
    if record.images_per_s is not None:
        note = f"{100 * wait:.1f} % of the time waiting for data" if wait is not None else ""
        found.append(("images/s", f"{record.images_per_s:,.0f}", note))
    return found


def _charts(run: Path, missing: list[str]) -> list[Chart]:
    try:
        logged = read_logged(run)
    except DataError as error:
        missing.append(str(error))
        return []
    charts = []
    for title, names in curve_groups(logged).items():
        lines = [Line(name, *logged[name], style=_style(name)) for name in names]
        charts.append(line_chart(title, lines, "step"))
    return [chart for chart in charts if chart is not None]


def _style(name: str) -> int:
    """Training is blue, validation orange, single steps pale, whatever else is logged."""
    return 3 if name.endswith("_step") else 2 if name.startswith("val/") else 1


def _times(summary: Mapping[str, Any], missing: list[str]) -> list[tuple[str, str, float]]:
    """What the time went to: name, time in words and share of the whole."""
    parts, whole = summary.get("time_s"), summary.get("seconds")
    if not isinstance(parts, dict) or not isinstance(whole, int | float) or whole <= 0:
        missing.append("the run did not write down what its time went to (summary.json has no time_s)")
        return []
    known: dict[str, float] = {_TIMES.get(str(name), str(name)): float(seconds) for name, seconds in parts.items()}
    known["start, saving and the rest"] = max(0.0, whole - sum(known.values()))
    return [(name, duration_text(seconds), seconds / whole) for name, seconds in known.items()]


def _evaluation(run: Path, split: str, record: Record, missing: list[str]) -> dict[str, Any] | None:
    try:
        found = load_evaluation(run, split)
    except DataError as error:
        missing.append(str(error))
        return None
    acc = float(found.is_right.mean())
    temperature = found.facts.get("calibration_temperature")
    notes = [f"calibrated with temperature {temperature:.3f}, fitted on val"] if temperature is not None else []
    if split == "test" and record.test_acc is not None and abs(acc - record.test_acc) > 1e-9:
        notes.append(f"the run's final test gave {100 * record.test_acc:.2f} %: {_why_other(run, found, split)}")
    diagram = reliability(found.probability, found.is_right)
    return {
        "acc": acc,
        "interval": found.facts.get("interval_95"),
        "macro_f1": macro_f1(found.per_class),
        "num_images": len(found.images),
        "notes": notes,
        "classes": _class_rows(found),
        "num_classes": len(found.class_names),
        "confusion": _confusion_rows(found) if len(found.class_names) <= _MOST_CLASSES else None,
        "confused": _confused_rows(found),
        "class_names": found.class_names,
        "ece": diagram.ece,
        "reliability": _reliability_chart(diagram),
        "bins": list(zip(diagram.low, diagram.high, diagram.confidence, diagram.accuracy, diagram.count, strict=True)),
        "mistakes": _mistakes(found, missing),
        "num_mistakes": int((~found.is_right).sum()),
    }


def _why_other(run: Path, found: Evaluation, split: str) -> str:
    """What tells an evaluation from the run's final test, which gave another number."""
    then = (read_json(run / "summary.json").get("test") or {}).get("tta", "none")
    if then != found.facts.get("tta", "none"):
        return f"it took the mean over several views of each image (tta={then}), this evaluation did not"
    return f"this evaluation saw other images or another checkpoint; the same as then: {eval_command(run, split)}"


def _class_rows(found: Evaluation) -> list[tuple[str, int, float, float, float]]:
    """Name, images, precision, recall and F1 of the classes that have images, weakest first."""
    scores = found.per_class
    present = np.flatnonzero(scores.count)
    order = present[np.argsort(scores.f1[present], kind="stable")][:_MOST_CLASSES]
    columns = (scores.precision, scores.recall, scores.f1)
    return [
        (found.class_names[place], int(scores.count[place]), *(float(column[place]) for column in columns))
        for place in order
    ]


def _confusion_rows(found: Evaluation) -> list[tuple[str, list[tuple[int, float]]]]:
    """For each true class the counts, with the depth of their color: the root of their share, so mistakes show."""
    totals = np.maximum(found.confusion.sum(axis=1, keepdims=True), 1)
    depths = np.sqrt(found.confusion / totals)
    return [
        (name, [(int(count), round(float(depth), 3)) for count, depth in zip(counts, row, strict=True)])
        for name, counts, row in zip(found.class_names, found.confusion, depths, strict=True)
    ]


def _confused_rows(found: Evaluation) -> list[tuple[str, str, int]]:
    names = found.class_names
    return [(names[true], names[taken], count) for true, taken, count in most_confused(found.confusion, _MOST_CONFUSED)]


def _reliability_chart(diagram: Reliability) -> Chart | None:
    lines = [
        Line("as sure as right", [0.0, 1.0], [0.0, 1.0], style=4),
        Line("this network", diagram.confidence.tolist(), diagram.accuracy.tolist(), style=1),
    ]
    return line_chart("Share that is right", lines, "probability of the predicted class", (0, 1), (0, 1))


def _mistakes(found: Evaluation, missing: list[str]) -> list[dict[str, Any]]:
    saved, mistakes = {}, []
    try:
        saved = saved_images(found)
    except DataError as error:
        missing.append(str(error))
    for row in found.worst_mistakes(_MOST_MISTAKES).tolist():
        image = found.images[row]
        pixels, why = load_image(found, row, saved)
        mistakes.append(
            {
                "src": None if pixels is None else thumbnail_uri(pixels),
                "why": why,
                "label": found.class_names[found.labels[row]],
                "predicted": found.class_names[found.predicted[row]],
                "probability": float(found.probability[row]),
                "image": f"image {image} of the split" if image.isdecimal() else image,
            }
        )
    return mistakes


def _figures(folder: Path, missing: list[str]) -> list[tuple[str, str]]:
    """Name and `src` of what the run drew while it trained."""
    files = sorted(folder.glob("*.png"))
    if not files:
        missing.append("no figures/*.png in the run: what the network saw in training is in TensorBoard only")
    figures = []
    for file in files[:_MOST_FIGURES]:
        src = figure_uri(file)
        if src is None:
            missing.append(f"{file}: too large for the page, or no PNG")
        else:
            figures.append((file.stem.replace("_", " "), src))
    return figures


def _text(file: Path, missing: list[str]) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        missing.append(f"{file} cannot be read: {error}")
        return ""


def _provenance(run: Path) -> dict[str, Any]:
    """Facts as rows, and the uncommitted changes for themselves."""
    found = read_json(run / "provenance.json")
    git = found.pop("git", None) or {}
    diff = str(git.get("diff") or "")
    num_cut = len(diff) - _MOST_DIFF_CHARS
    cut = f"\n... {num_cut:,} more characters in provenance.json" if num_cut > 0 else ""
    rows = {name: _in_words(value) for name, value in found.items()}
    if git:
        untracked = len(git.get("untracked") or ())
        rows["commit"] = f"{git.get('commit')}" + (" with uncommitted changes" if diff else "")
        rows |= {"untracked files": str(untracked)} if untracked else {}
    return {"rows": rows, "diff": diff[:_MOST_DIFF_CHARS] + cut}


def _in_words(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)
