"""Write and print the results of an evaluation: numbers, tables, figures, and the images of the worst mistakes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imago.files import atomic_write, read_json, report_unwritable, write_csv, write_json
from imago.inference.run_split import image_names, images_in_memory
from imago.paths import checkpoint_file, short_path
from imago.statistics.calibration import TEMPERATURE_KEY
from imago.statistics.conformal import PREDICTION_SETS_KEY, class_cells, describe_sets
from imago.statistics.intervals import far_above_note
from imago.statistics.metrics import LabeledOutputs, most_confused
from imago.statistics.unknown_images import UNKNOWN_IMAGES_KEY, describe_unknown
from imago.text import counted, printable, table_lines

if TYPE_CHECKING:
    from imago.data.dataset import Samples

MAX_NAME_CHARS = 60  # of a name that becomes part of a file name, which may have 255 bytes; our own choice
# Scores with a line of their own; macro precision and recall are in metrics.json only.
_SHOWN_METRICS = ("top5_acc", "macro_precision", "macro_recall", "f1", "ece")
_NUM_SAVED_MISTAKES = 50  # images of mistakes; a page shows the worst 25; our own choice
MAX_CONFUSION_CLASSES = 1_000  # of the matrix as a table and a figure; predictions.csv has the same; our own choice
_MAX_LISTED = 20  # classes that fit on a screen; of more, the weakest are shown


def write_results(
    directory: Path, result: LabeledOutputs, metadata: Mapping[str, Any], samples: "Samples"
) -> list[str]:
    """Write metrics.json (`metadata`), tables and figures; replace older results; return the names of the files.

    `samples` are the images of the split, in the order of `result`.

    Raises:
        DataError: if the files cannot be written.
    """
    tables = _tables(result, image_names(samples))
    with report_unwritable(directory, "; choose another directory with output=DIR"):
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "metrics.json", metadata)
        for name, rows in tables.items():
            write_csv(directory / name, rows)
        mistakes = _write_mistakes(directory / "mistakes.npz", result, samples)
        return ["metrics.json", *tables, *mistakes, *_write_figures(directory, result, metadata["split"])]


def summary_lines(result: LabeledOutputs, metadata: Mapping[str, Any], final_test: str = "") -> list[str]:
    """Format the results for the screen; `metadata` is the content of metrics.json, `final_test` a remark."""
    names = [printable(name) for name in result.class_names]
    confused = most_confused(result.confusion, 4)
    mistakes = [f"{names[true]} as {names[predicted]} {num_images} x" for true, predicted, num_images in confused]
    temperature = metadata.get(TEMPERATURE_KEY)
    fitted = f"temperature {temperature:.3f}, fitted on val" if temperature else "not calibrated"
    intervals = [key.removesuffix("_interval_95") for key in metadata if key.endswith("_interval_95")]
    further = [name for name in intervals if name not in _SHOWN_METRICS]
    views = "" if metadata["tta"] == "none" else f"mean over several views of each image, tta={metadata['tta']}"
    lines = {
        "model": short_path(Path(metadata["model"])),
        "data": f"{metadata['data']} {metadata['split']}, {counted(metadata['num_images'], 'image')}, each seen once",
        "groups": f"{metadata['num_groups']:,}, which the intervals account for" if "num_groups" in metadata else "",
        "accuracy": f"{metadata['acc']:.2%}, {_interval(metadata, 'acc')}{final_test}",
        "views": views,
        "top-5": f"{metadata['top5_acc']:.2%}, {_interval(metadata, 'top5_acc')}" if "top5_acc" in metadata else "",
        "F1": f"{metadata['f1']:.4f}, {_interval(metadata, 'f1')}",
        **{name: f"{metadata[name]:.4f}, {_interval(metadata, name)}" for name in further},
        "ECE": f"{metadata['ece']:.2%}, {_interval(metadata, 'ece')} ({fitted})",
        **describe_sets(metadata.get(PREDICTION_SETS_KEY) or {}),
        **describe_unknown(metadata.get(UNKNOWN_IMAGES_KEY) or {}),
        "confused": ", ".join(mistakes),
    }
    width = max(map(len, lines))
    texts = [f"{name:<{width}}  {value}" for name, value in lines.items() if value]
    return [*texts, "", *_class_table(result, metadata.get(PREDICTION_SETS_KEY) or {})]


def _interval(metadata: Mapping[str, Any], name: str) -> str:
    low, high = metadata["interval_95" if name == "acc" else f"{name}_interval_95"]
    number_format = ".2%" if name in ("acc", "top5_acc", "ece") else ".4f"
    return f"95 % interval {low:{number_format}} to {high:{number_format}}"


def _class_table(result: LabeledOutputs, sets: Mapping[str, Any]) -> list[str]:
    """Format the scores of the classes that have images, with their prediction sets; of many, the weakest."""
    scores = result.per_class
    present = np.flatnonzero(scores.num_images)
    shown = present if len(present) <= _MAX_LISTED else present[np.argsort(scores.f1[present])[:_MAX_LISTED]]
    rows = [["class", "precision", "recall", "F1", "n", *(x for level in sets for x in (f"in {level} %", "set size"))]]
    for index in shown.tolist():
        name = result.class_names[index]
        cells = [f"{scores.precision[index]:.2%}", f"{scores.recall[index]:.2%}", f"{scores.f1[index]:.4f}"]
        rows.append([printable(name), *cells, f"{scores.num_images[index]:,}", *class_cells(sets, name)])
    lines = table_lines(rows, right=range(1, len(rows[0])))
    if len(shown) < len(present):
        lines.append(f"the weakest {len(shown)} of {len(present)} classes; all of them are in per_class.csv")
    return lines


def _write_mistakes(file: Path, result: LabeledOutputs, samples: "Samples") -> list[str]:
    indices = result.worst_mistakes(_NUM_SAVED_MISTAKES).tolist()
    images = images_in_memory(samples, indices)
    if not images:
        file.unlink(missing_ok=True)  # of an older evaluation, with other mistakes
        return []
    with atomic_write(file, "wb") as content:
        np.savez_compressed(content, rows=indices, images=np.stack(list(images.values())))
    return [file.name]


def _write_figures(directory: Path, result: LabeledOutputs, split: str) -> list[str]:
    from imago.analysis.plots import plot_reliability, save_confusion, save_figure
    from imago.statistics.calibration import reliability

    title = f"{split}: {result.is_correct.mean():.2%} of {counted(len(result.labels), 'image')} correct"
    files = ["confusion.png"] if len(result.class_names) <= MAX_CONFUSION_CLASSES else []
    if files:
        save_confusion(result.confusion, result.class_names, title, directory / files[0])
    diagram = reliability(result.probability, result.is_correct)
    save_figure(plot_reliability(diagram, title), directory / "reliability.png")
    return [*files, "reliability.png"]


def _tables(result: LabeledOutputs, images: Sequence[str]) -> dict[str, list[Sequence[Any]]]:
    """Return the rows of each CSV file, with a header."""
    scores, names = result.per_class, result.class_names
    columns = [np.round(values, 6).tolist() for values in (scores.precision, scores.recall, scores.f1)]
    per_class = zip(names, *columns, scores.num_images.tolist(), strict=True)
    confusion: dict[str, list[Sequence[Any]]] = {}
    if len(names) <= MAX_CONFUSION_CLASSES:
        rows = ((name, *counts) for name, counts in zip(names, result.confusion.tolist(), strict=True))
        confusion["confusion.csv"] = [("true class \\ predicted", *names), *rows]
    probabilities = [f"{probability:.6f}" for probability in result.probability]
    labels, predicted = ([names[index] for index in indices] for indices in (result.labels, result.predicted))
    columns_of = {"image": images, "true": labels, "predicted": predicted, "probability": probabilities}
    columns_of |= {} if result.groups is None else {"group": result.groups.tolist()}
    return {
        "per_class.csv": [("class", "precision", "recall", "f1", "n"), *per_class],
        **confusion,
        "predictions.csv": [[*columns_of], *zip(*columns_of.values(), strict=True)],
    }


def compare_with_final_test(run: Path | None, metadata: Mapping[str, Any], is_own_data: bool) -> tuple[str, list[str]]:
    """Compare with the run's final test: return a remark on its accuracy, and notes; empty if it had other images."""
    if run is None or metadata["split"] != "test":
        return "", []
    summary, provenance = read_json(run / "summary.json"), read_json(run / "provenance.json")
    test, val = summary.get("test") or {}, summary.get("val") or {}
    is_readable = (
        isinstance(test, dict) and isinstance(val, dict) and (not test or isinstance(test.get("acc"), float | int))
    )
    if not is_readable:
        return "", [f"{run / 'summary.json'} is damaged: this accuracy is not compared with that of the final test"]
    if provenance.get("test") not in (None, metadata["images_sha256"]):
        return "", ["the test images of the run have changed since its final test"] if is_own_data else []
    this_test = (metadata["data_fingerprint"], metadata["num_images"], metadata["tta"])
    final_test = (provenance.get("data"), test.get("num_images"), test.get("tta", "none"))
    if Path(metadata["model"]) != checkpoint_file(run) or final_test[:2] != this_test[:2]:
        return "", []
    if final_test[2] != this_test[2]:
        return "", [f"the run's final test, {test['acc']:.2%}, had other views of each image: type tta={final_test[2]}"]
    accuracy = "the same" if test["acc"] == metadata["acc"] else format(test["acc"], ".2%")
    note = far_above_note(val, metadata)
    return f" (the run's final test: {accuracy})", [note]
