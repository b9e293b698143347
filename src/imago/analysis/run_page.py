"""Write one run as a page: its results, curves, evaluation, settings and provenance."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imago.analysis.charts import Chart, Line, curve_groups, line_charts
from imago.analysis.evaluation import Evaluation, eval_command, load_evaluation, load_image, saved_images
from imago.analysis.page import data_uri, final_test_tta, main_results, read_or_none, thumbnail_uri, write_page
from imago.files import read_json
from imago.runs.records import RunRecord, read_logged, read_record
from imago.statistics.calibration import Reliability, reliability
from imago.statistics.conformal import PREDICTION_SETS_KEY, class_cells, describe_sets
from imago.statistics.metrics import macro_scores, most_confused
from imago.statistics.unknown_images import UNKNOWN_IMAGES_KEY, describe_unknown
from imago.text import count_text, duration_text, metric_text, percent_text, range_text

_MAX_MISTAKES = 25  # images, about 200 kB; our own choice
_MAX_CLASSES = 30  # with more, the matrix is wider than a screen and only the classes with the lowest F1 are listed
_MAX_CONFUSED = 20  # rows, about a screen; our own choice
_MAX_FIGURES, _MAX_FIGURE_BYTES = 12, 1_500_000  # 24 MB in all as base64; our own choice
_MAX_DIFF_CHARS = 20_000  # about ten screens; our own choice
_PHASE_TITLES = {"train": "training", "data_wait": "waiting for data", "val": "validation", "test": "final test"}


def write_run_page(run: Path, split: str, file: Path) -> list[str]:
    """Write the content of a run directory, with its evaluation `eval/<split>`, as one HTML file.

    Return one line for each part that is missing in it, with the reason; raise a DataError if it cannot be written.
    """
    record = read_record(run)
    notes = [record.config_error] if record.config_error else []
    evaluation: Evaluation | None = read_or_none(notes, load_evaluation, run, split)
    context = {
        "title": f"{run.parent.name}/{run.name}",
        "record": record,
        "results": main_results(record, evaluation),
        "charts": _charts(read_or_none(notes, read_logged, run) or {}),
        "times": _time_rows(read_json(run / "summary.json"), notes),
        "split": split,
        "eval_command": eval_command(run, split),
        "evaluation": evaluation,
        "figures": _figure_uris(run / "figures", notes),
        "config": "" if record.config_error else (run / "config.yaml").read_text(encoding="utf-8"),
        **_provenance_context(run),
    }
    if evaluation:
        context |= _evaluation_context(evaluation, notes)
        context["notes_on_accuracy"] = _accuracy_notes(run, split, record, evaluation)
    write_page("run.html.j2", context | {"notes": notes}, file)
    return notes


def _charts(logged: Mapping[str, tuple[list[float], list[float]]]) -> list[Chart]:
    """Draw the curves: training in blue, validation in orange, values of single steps in a light color."""
    styles = {name: 3 if name.endswith("_step") else 1 + name.startswith("val/") for name in logged}
    groups = curve_groups(logged).items()
    lines = {title: [Line(name, *logged[name], styles[name]) for name in names] for title, names in groups}
    return line_charts(lines, "step")


def _time_rows(summary: Mapping[str, Any], notes: list[str]) -> list[tuple[str, str, str, float]]:
    """Return name, duration and share of each part of the run."""
    recorded, total_s = summary.get("time_s"), summary.get("seconds")
    if not isinstance(recorded, dict) or not isinstance(total_s, int | float) or total_s <= 0:
        notes.append("the run did not record its times (summary.json has no time_s)")
        return []
    numbers = {name: seconds for name, seconds in recorded.items() if isinstance(seconds, int | float)}
    times = {str(_PHASE_TITLES.get(name, name)): float(seconds) for name, seconds in numbers.items()}
    times["start, checkpoints and other"] = max(0.0, total_s - sum(times.values()))
    shares = {name: seconds / total_s for name, seconds in times.items()}
    return [(name, duration_text(times[name]), percent_text(share), share) for name, share in shares.items()]


def _evaluation_context(evaluation: Evaluation, notes: list[str]) -> dict[str, Any]:
    """Return the tables, the diagram and the images of an evaluation."""
    names, confusion = evaluation.class_names, evaluation.confusion
    figure, digest = evaluation.directory / "robustness.png", evaluation.metadata.get("model_sha256")
    is_new = figure.is_file() and read_json(figure.with_suffix(".json")).get("model_sha256") == digest
    diagram = reliability(evaluation.probability, evaluation.is_correct)
    calibrated = Line("perfectly calibrated", [0.0, 1.0], [0.0, 1.0], style=4)
    measured = Line("this network", diagram.probability.tolist(), diagram.accuracy.tolist(), style=1)
    label = "probability of the predicted class"
    confused = most_confused(confusion, _MAX_CONFUSED)
    # The color of a cell is the square root of its share of the row, so that mistakes are visible.
    is_shown = len(names) <= _MAX_CLASSES
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1) if is_shown else np.empty(0)
    return {
        "interval": range_text(*(evaluation.metadata.get("interval_95") or (None, None))),
        "metrics": [(name, metric_text(value), interval) for name, value, interval in evaluation.metrics],
        "macro_f1": macro_scores(evaluation.per_class)["f1"],
        "classes": _class_rows(evaluation),
        "sets": evaluation.metadata.get(PREDICTION_SETS_KEY) or {},
        "cell_shades": np.sqrt(shares).round(3).tolist(),
        "confused": [
            (f"{names[true]} as {names[predicted]}", count_text(count)) for true, predicted, count in confused
        ],
        "ece": diagram.ece,
        "reliability": line_charts({"Accuracy": [calibrated, measured]}, label, (0, 1)),
        "bins": _bin_rows(diagram),
        "mistakes": _mistake_images(evaluation, notes),
        "robustness": data_uri("image/png", figure.read_bytes()) if is_new else "",
        "unknown": _unknown_images(evaluation.directory, digest, notes),
        "num_mistakes": int((~evaluation.is_correct).sum()),
    }


def _unknown_images(directory: Path, digest: str | None, notes: list[str]) -> list[tuple[Any, str]]:
    """Return the lines and the figure of each evaluation of the same checkpoint and split with unknown images."""
    parts = []
    for figure in sorted(directory.parent.glob(f"{directory.name}-*/unknown_images.png")):
        values = read_json(figure.with_name("metrics.json"))
        try:
            lines = [*describe_unknown(values.get(UNKNOWN_IMAGES_KEY) or {}).items()]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            notes.append(f"{figure.parent} is damaged: {error!r}; delete it and evaluate again")
            continue
        parts += [(lines, data_uri("image/png", figure.read_bytes()))] if values.get("model_sha256") == digest else []
    return parts


def _accuracy_notes(run: Path, split: str, record: RunRecord, evaluation: Evaluation) -> list[str]:
    """Return temperature, prediction sets, and why the accuracy differs from that of the final test, if it does."""
    metadata = evaluation.metadata
    temperature = metadata.get("calibration_temperature")
    is_calibrated = isinstance(temperature, int | float)
    notes = [f"calibrated with temperature {temperature:.3f}, fitted on val"] if is_calibrated else []
    notes += [f"{name}: {text}" for name, text in describe_sets(metadata.get(PREDICTION_SETS_KEY) or {}).items()]
    if num_groups := metadata.get("num_groups"):
        notes.append(f"intervals account for {num_groups} groups, whose images are not independent")
    if split == "test" and record.test_acc is not None and abs(evaluation.is_correct.mean() - record.test_acc) > 1e-9:
        views = f"with tta={final_test_tta(record)}, and this evaluation had tta={metadata.get('tta', 'none')}"
        reason = f"with equal tta, images or checkpoint differ, and {eval_command(run, split)} repeats the test"
        notes.append(f"the run's final test gave {percent_text(record.test_acc)} {views}; {reason}")
    return notes + evaluation.data_notes


def _class_rows(evaluation: Evaluation) -> list[tuple[str | float, ...]]:
    """Return the scores and prediction sets of the classes that have images, weakest first."""
    sets = evaluation.metadata.get(PREDICTION_SETS_KEY) or {}
    scores = evaluation.per_class
    classes = zip(evaluation.class_names, scores.f1, scores.recall, scores.precision, scores.num_images, strict=True)
    weakest = sorted((row for row in classes if row[-1]), key=lambda row: row[1])[:_MAX_CLASSES]
    return [
        (name, f"{f1:.4f}", f1, *map(percent_text, (recall, precision)), count_text(count), *class_cells(sets, name))
        for name, f1, recall, precision, count in weakest
    ]


def _bin_rows(diagram: Reliability) -> list[tuple[str, str, str, str]]:
    bins = zip(diagram.low, diagram.high, diagram.probability, diagram.accuracy, diagram.num_images, strict=True)
    return [
        (f"{low:.2f} to {high:.2f}", percent_text(probability), percent_text(accuracy), count_text(count))
        for low, high, probability, accuracy, count in bins
    ]


def _mistake_images(evaluation: Evaluation, notes: list[str]) -> list[tuple[int, str, str]]:
    """Return the index of each of the worst mistakes, with its image as data URI or the reason why there is none."""
    saved = read_or_none(notes, saved_images, evaluation) or {}
    mistakes = []
    for index in evaluation.worst_mistakes(_MAX_MISTAKES).tolist():
        pixels, reason = load_image(evaluation, index, saved)
        mistakes.append((index, "" if pixels is None else thumbnail_uri(pixels), reason))
    return mistakes


def _figure_uris(directory: Path, notes: list[str]) -> list[tuple[str, str]]:
    """Return name and data URI of the figures that were drawn in training."""
    files = sorted(file for file in directory.glob("*.png") if file.is_file())
    if not files:
        notes.append("the run has no figures/*.png: the images seen in training are in TensorBoard only")
    small = [file for file in files if file.stat().st_size <= _MAX_FIGURE_BYTES]
    shown = [file for file in small if file.read_bytes().startswith(b"\x89PNG")][:_MAX_FIGURES]
    fault = "is not in the page: it is not a PNG, or the page would be too large"
    notes += [f"{file} {fault}" for file in files if file not in shown]
    return [(file.stem.replace("_", " "), data_uri("image/png", file.read_bytes())) for file in shown]


def _provenance_context(run: Path) -> dict[str, Any]:
    """Return name and value of each entry of provenance.json, and the git diff, cut to `_MAX_DIFF_CHARS`."""
    provenance = read_json(run / "provenance.json")
    git = found if isinstance(found := provenance.pop("git", None), dict) else {}
    diff = str(git.get("diff") or "")
    rows = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in provenance.items()]
    if git:
        rows.append(("commit", f"{git.get('commit')}" + (" with uncommitted changes" if diff else "")))
        rows.append(("untracked files", count_text(len(git.get("untracked") or ()))))
    rest = f"\n... {len(diff) - _MAX_DIFF_CHARS:,} more characters in provenance.json"
    return {"provenance": rows, "diff": diff[:_MAX_DIFF_CHARS] + (rest if len(diff) > _MAX_DIFF_CHARS else "")}
