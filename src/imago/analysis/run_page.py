"""Write one run as a page: its results, curves, evaluation, settings and provenance."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imago.analysis.charts import Chart, Line, curve_groups, line_chart
from imago.analysis.evaluation import Evaluation, eval_command, load_evaluation, load_image, saved_images
from imago.analysis.page import Table, figure_uri, optional, thumbnail_uri, write_page
from imago.analysis.table import count_text, duration_text, percent, range_text
from imago.files import read_json
from imago.runs.records import Record, read_logged, read_record
from imago.statistics.calibration import Reliability, reliability
from imago.statistics.metrics import macro_scores, most_confused

_MAX_MISTAKES = 25
_MAX_CLASSES = 30  # with more, the matrix is left out and only the weakest classes are listed
_MAX_CONFUSED = 20
_MAX_FIGURES = 12
_MAX_DIFF_CHARS = 20_000
_TIMES = {"train": "training", "data_wait": "waiting for data", "val": "validation", "test": "final test"}


def write_run_page(run: Path, split: str, file: Path) -> list[str]:
    """Write the content of a run directory as one HTML file.

    Args:
        run: the run directory.
        split: the evaluation to show, `eval/<split>` of the run.
        file: the page.

    Returns:
        What is missing in the page, and the way to get it.

    Raises:
        DataError: if the page cannot be written.
    """
    missing: list[str] = []
    record = read_record(run)
    provenance, diff = _provenance(run)
    context = {
        "title": f"{run.parent.name}/{run.name}",
        "record": record,
        "headlines": _headlines(record),
        "charts": _charts(optional(missing, read_logged, run) or {}),
        "times": _times(read_json(run / "summary.json"), missing),
        "evaluation": _evaluation(run, split, record, missing),
        "split": split,
        "eval_command": eval_command(run, split),
        "figures": _figures(run / "figures", missing),
        "config": _text(run / "config.yaml", missing),
        "provenance": provenance,
        "diff": diff,
    }
    write_page("run.html.j2", context | {"missing": missing}, file)
    return missing


def _headlines(record: Record) -> list[tuple[str, str, str]]:
    """Return name, value and note of the main results."""
    interval, wait = range_text(record.test_low, record.test_high), record.data_wait_share
    tested = f"95 %: {interval}, n = {count_text(record.num_test_images)}" if interval else ""
    epochs = f"{record.epochs} epoch{'s'[: record.epochs > 1]}" if record.epochs else ""
    waiting = "" if wait is None else f"{100 * wait:.1f} % of the time waiting for data"
    headlines = [
        ("test accuracy", percent(record.test_acc), tested),
        ("best val accuracy", percent(record.val_acc), f"epoch {record.best_epoch}" if record.best_epoch else ""),
        ("time", duration_text(record.seconds), epochs),
        ("images/s", count_text(record.images_per_s), waiting),
    ]
    return [headline for headline in headlines if headline[1]]


def _charts(logged: Mapping[str, tuple[list[float], list[float]]]) -> list[Chart]:
    charts = [
        line_chart(title, [Line(name, *logged[name], _style(name)) for name in names], "step")
        for title, names in curve_groups(logged).items()
    ]
    return [chart for chart in charts if chart]


def _style(name: str) -> int:
    """Return a line style: training blue, validation orange, single steps pale."""
    return 3 if name.endswith("_step") else 2 if name.startswith("val/") else 1


def _times(summary: Mapping[str, Any], missing: list[str]) -> Table | None:
    parts, total_s = summary.get("time_s"), summary.get("seconds")
    if not isinstance(parts, dict) or not isinstance(total_s, int | float) or total_s <= 0:
        missing.append("the run did not record its times (summary.json has no time_s)")
        return None
    times = {_TIMES.get(str(name), str(name)): float(seconds) for name, seconds in parts.items()}
    times["start, saving and the rest"] = max(0.0, total_s - sum(times.values()))
    columns = [("part", ""), ("time", "number"), ("share", "number"), ("of the run", "bar")]
    shares = [(name, seconds, seconds / total_s) for name, seconds in times.items()]
    return Table("Time", columns, [(name, duration_text(s), percent(share), share) for name, s, share in shares])


def _evaluation(run: Path, split: str, record: Record, missing: list[str]) -> dict[str, Any] | None:
    found: Evaluation | None = optional(missing, load_evaluation, run, split)
    if found is None:
        return None
    diagram = reliability(found.probability, found.is_correct)
    # The color of a cell is the square root of its share of the row, so that mistakes are visible.
    depths = np.sqrt(found.confusion / np.maximum(found.confusion.sum(axis=1, keepdims=True), 1))
    return {
        "found": found,
        "acc": percent(found.is_correct.mean()),
        "interval": range_text(*(found.metadata.get("interval_95") or (None, None))),
        "macro_f1": macro_scores(found.per_class)["macro_f1"],
        "notes": _notes(run, split, record, found),
        "classes": _class_table(found),
        "depths": depths.round(3).tolist() if len(depths) <= _MAX_CLASSES else None,
        "confused": _confused_table(found),
        "ece": diagram.ece,
        "reliability": _reliability_chart(diagram),
        "bins": _bin_table(diagram),
        "mistakes": _mistakes(found, missing),
        "num_mistakes": int((~found.is_correct).sum()),
    }


def _notes(run: Path, split: str, record: Record, found: Evaluation) -> list[str]:
    """Return the temperature, and why the evaluation has another accuracy than the final test of the run."""
    temperature = found.metadata.get("calibration_temperature")
    notes = [f"calibrated with temperature {temperature:.3f}, fitted on val"] if temperature is not None else []
    if split != "test" or record.test_acc is None or abs(found.is_correct.mean() - record.test_acc) <= 1e-9:
        return notes
    tta = (read_json(run / "summary.json").get("test") or {}).get("tta", "none")
    reason = f"this evaluation used other images or another checkpoint; to repeat it: {eval_command(run, split)}"
    if tta != found.metadata.get("tta", "none"):
        reason = f"it took the mean over several views of each image (tta={tta}), this evaluation did not"
    return [*notes, f"the run's final test gave {percent(record.test_acc)}: {reason}"]


def _class_table(found: Evaluation) -> Table:
    """List the classes that have images, weakest first."""
    scores = found.per_class
    columns = (scores.f1, scores.recall, scores.precision, scores.count)
    classes = zip(found.class_names, *(column.tolist() for column in columns), strict=True)
    weakest = sorted((row for row in classes if row[-1]), key=lambda row: row[1])[:_MAX_CLASSES]
    rows = [
        (name, f"{f1:.4f}", f1, percent(recall), percent(precision), f"{n:,}")
        for name, f1, recall, precision, n in weakest
    ]
    is_all = len(rows) == len(found.class_names)
    which = "All classes" if is_all else f"The weakest {len(rows)} of {len(found.class_names)} classes"
    numbers = [(name, "number") for name in ("recall", "precision", "images")]
    header = [("class", ""), ("F1", "number"), ("0 to 1", "bar"), *numbers]
    return Table("Scores of the classes", header, rows, f"{which}, lowest F1 first; the bar is F1.")


def _confused_table(found: Evaluation) -> Table:
    names = found.class_names
    confused = most_confused(found.confusion, _MAX_CONFUSED)
    rows = [(names[true], names[predicted], str(count)) for true, predicted, count in confused]
    return Table("Most frequent mistakes", [("true class", ""), ("predicted class", ""), ("images", "number")], rows)


def _reliability_chart(diagram: Reliability) -> Chart | None:
    lines = [
        Line("perfectly calibrated", [0.0, 1.0], [0.0, 1.0], style=4),
        Line("this network", diagram.confidence.tolist(), diagram.accuracy.tolist(), style=1),
    ]
    return line_chart("Accuracy", lines, "probability of the predicted class", (0, 1), (0, 1))


def _bin_table(diagram: Reliability) -> Table:
    bins = zip(diagram.low, diagram.high, diagram.confidence, diagram.accuracy, diagram.count, strict=True)
    rows = [
        (f"{low:.2f} to {high:.2f}", percent(confidence), percent(accuracy), count_text(count))
        for low, high, confidence, accuracy, count in bins
    ]
    columns = [("probability", ""), *((name, "number") for name in ("mean", "accuracy", "images"))]
    caption = "The points of the diagram: images by the probability of their predicted class."
    return Table("Bins of the reliability diagram", columns, rows, caption)


def _mistakes(found: Evaluation, missing: list[str]) -> list[dict[str, Any]]:
    saved, mistakes = optional(missing, saved_images, found) or {}, []
    for row in found.worst_mistakes(_MAX_MISTAKES).tolist():
        image = found.images[row]
        pixels, reason = load_image(found, row, saved)
        mistakes.append(
            {
                "src": None if pixels is None else thumbnail_uri(pixels),
                "reason": reason,
                "label": found.class_names[found.labels[row]],
                "predicted": found.class_names[found.predicted[row]],
                "probability": float(found.probability[row]),
                "image": f"image {image} of the split" if image.isdecimal() else image,
            }
        )
    return mistakes


def _figures(directory: Path, missing: list[str]) -> list[tuple[str, str]]:
    """Return name and data URI of the figures that were drawn in training."""
    files = sorted(directory.glob("*.png"))
    if not files:
        missing.append("the run has no figures/*.png: the images seen in training are in TensorBoard only")
    uris = {file: figure_uri(file) for file in files[:_MAX_FIGURES]}
    missing += [f"{file}: too large for the page, or not PNG" for file, uri in uris.items() if uri is None]
    return [(file.stem.replace("_", " "), uri) for file, uri in uris.items() if uri is not None]


def _text(file: Path, missing: list[str]) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        missing.append(f"{file} cannot be read: {error}")
        return ""


def _provenance(run: Path) -> tuple[Table, str]:
    """Return the provenance as a table, and the uncommitted changes."""
    provenance = read_json(run / "provenance.json")
    git = provenance.pop("git", None) or {}
    diff = str(git.get("diff") or "")
    num_cut = len(diff) - _MAX_DIFF_CHARS
    cut = f"\n... {num_cut:,} more characters in provenance.json" if num_cut > 0 else ""
    rows = [(name, _in_words(value)) for name, value in provenance.items()]
    if git:
        rows.append(("commit", f"{git.get('commit')}" + (" with uncommitted changes" if diff else "")))
        if untracked := len(git.get("untracked") or ()):
            rows.append(("untracked files", str(untracked)))
    return Table("Provenance", [("name", ""), ("value", "")], rows, style="words"), diff[:_MAX_DIFF_CHARS] + cut


def _in_words(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)
