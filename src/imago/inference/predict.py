"""The command `predict.py`: predict the class of images of any size and kind."""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from imago.errors import ConfigError, DataError, IncompleteError
from imago.files import make_writable
from imago.images import MAX_PIXELS, Preprocess, read_image, resize_and_crop
from imago.inference.find_images import find_images, left_out_files
from imago.inference.find_model import check_and_find_model, is_onnx
from imago.inference.load import Predictor, load_predictor
from imago.inference.predictions import Prediction, prediction_lines, write_predictions
from imago.inference.run_split import check_finite
from imago.paths import short_path
from imago.resources import first_cpu_times, is_thread_setting
from imago.settings import typed_value
from imago.statistics.calibration import TEMPERATURE_KEY
from imago.statistics.conformal import missing_sets_note
from imago.statistics.metrics import top_classes
from imago.statistics.unknown_images import missing_detector_note
from imago.text import counted, join_names, printable

if TYPE_CHECKING:
    from imago.inference.explain import Explainer

# Threads: decoding takes longer than most networks and runs in parallel. At most 8: our own choice.
_NUM_READERS = min(8, os.cpu_count() or 1)


def predict(cfg: DictConfig) -> None:
    """Predict as configured: print a table, and write all predictions to a CSV and a JSON file.

    Raises:
        UserError: for what the user can correct; after all others are done, if an image could not be read.
    """
    first_cpu_times()  # `threads=auto` counts the cores that are idle from here on, while torch is imported
    file, run = check_and_find_model(cfg.run, cfg.ckpt, cfg.accelerator, _problems(cfg))
    images = find_images(cfg.input)
    left_out = left_out_files(cfg.input, images)
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f.csv")  # unique, like the name of a run directory
    output = Path(cfg.output) if cfg.output else (run or file.parent) / "predictions" / name
    _check_output(cfg, output, images)
    predictor = load_predictor(file, cfg.accelerator, trust=cfg.trust, threads=cfg.threads)
    make_writable(output.parent, "output=FILE.csv")
    explainer = None
    if cfg.explain:
        from imago.inference.explain import Explainer

        explainer = Explainer(predictor, output.with_name(f"{output.stem}_explained"))
    predictions, bad_images = predict_images(
        predictor, images, cfg.batch_size, cfg.top_k, cfg.threshold, cfg.max_pixels, explainer
    )
    metadata = {"model": str(file.resolve()), TEMPERATURE_KEY: predictor.calibration_temperature}
    metadata["threshold"] = cfg.threshold
    metadata["left_out"] = [{"file": str(file), "reason": reason} for file, reason in left_out]
    write_predictions(output, predictions, bad_images, metadata)
    if predictions:
        print("\n".join(prediction_lines(predictions)), end="\n\n")
    if not predictor.predicts_classes:
        print("note: the task of the run has targets of its own; these are outputs for the images as they are")
    elif note := missing_sets_note(predictor.prediction_sets) or missing_detector_note(predictor.unknown_detector):
        print(f"note: {note}")
    print(f"predictions for {len(predictions):,} of {counted(len(images), 'image')}: {short_path(output)} and .json")
    if left_out:
        reasons = join_names(f"{file} ({reason})" for file, reason in left_out)
        print(f"left out {counted(len(left_out), 'file')}: {reasons}")
    if count := sum(prediction.predicted is None for prediction in predictions):
        print(f"no predicted class for {count:,} of them: the best is less probable than threshold={cfg.threshold}")
    if explainer and predictions:
        print(f"Grad-CAM overlays of layer {explainer.layer}: {short_path(explainer.directory)}")
    if bad_images:
        raise IncompleteError(
            f"{len(bad_images):,} of {counted(len(images), 'image')} could not be read; the others are done"
        )


def predict_images(
    predictor: Predictor,
    images: Sequence[Path],
    batch_size: int,
    top_k: int,
    threshold: float = 0.0,
    max_pixels: int = MAX_PIXELS,
    explainer: "Explainer | None" = None,
) -> tuple[list[Prediction], list[tuple[Path, str]]]:
    """Predict images of any size and mode; print those that cannot be read on stderr.

    Each image gets its `top_k` best classes; if the best is less probable than `threshold`, it has no predicted class.

    Returns:
        The predictions, and the images that cannot be read with the reason, both in the order of `images`.

    Raises:
        DataError: if the network's outputs are not finite.
    """
    from tqdm import tqdm

    predictions: list[Prediction] = []
    bad_images: list[tuple[Path, str]] = []
    read = partial(_read_input, preprocess=predictor.preprocess, max_pixels=max_pixels)
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        for start in tqdm(range(0, len(images), batch_size), unit="batch", leave=False, disable=None):
            batch = images[start : start + batch_size]
            squares = []
            for image, result in zip(batch, readers.map(read, batch), strict=True):
                if isinstance(result, DataError):
                    tqdm.write(f"error: {printable(str(result))}", file=sys.stderr)
                    bad_images.append((image, str(result)))
                else:
                    squares.append((image, result))
            if squares:
                predictions += _predict_batch(predictor, squares, top_k, threshold, explainer)
    return predictions, bad_images


def _problems(cfg: DictConfig) -> Iterator[str]:
    """Yield one line for each setting that cannot work."""
    if not is_thread_setting(cfg.threads):
        yield f"threads={typed_value(cfg.threads)} must be 1 or more, or auto."
    output = Path(cfg.output or "out.csv")
    for name in ("top_k", "batch_size", "max_pixels"):
        if not cfg[name] or cfg[name] < 1:
            yield f"{name}={typed_value(cfg[name])} must be 1 or more."
    if not 0 <= cfg.threshold <= 1:
        yield f"threshold={cfg.threshold} must be in 0 .. 1."
    if not cfg.input:
        yield f"input={cfg.input or ''} is empty; type an image, a folder, or a pattern in quotes."
    if output.is_dir():
        yield f"output={output} is a directory; type a file, e.g. output={output / 'out.csv'}."
    if output.suffix.lower() == ".json":
        yield f"output={output} is the CSV file; the JSON file gets the same name."
    if cfg.explain and is_onnx(Path(cfg.run or "")):
        yield f"explain=true needs a checkpoint: run={cfg.run} is an ONNX file, without gradients."


def _check_output(cfg: DictConfig, output: Path, images: Sequence[Path]) -> None:
    """Raise a `ConfigError` if a file, or a directory of overlays, that is written is an input or has one."""
    sources = [*images, *([Path(cfg.input)] if os.path.isfile(cfg.input) else [])]
    explained = [output.with_name(f"{output.stem}_explained")] if cfg.explain else []
    for written in filter(os.path.exists, [output, output.with_suffix(".json"), *explained]):
        found = (path for source in sources for path in (source, source.parent) if os.path.exists(path))
        if any(os.path.samefile(path, written) for path in found):
            raise ConfigError(f"output={cfg.output} would replace an input in {written}; type another file.")


def _read_input(image: Path, preprocess: Preprocess, max_pixels: int) -> np.ndarray | DataError:
    """Read an image as the network's input, uint8 (3, size, size), or return why it cannot be read."""
    try:
        return resize_and_crop(read_image(image, max_pixels), preprocess).transpose(2, 0, 1)
    except DataError as error:
        return error


def _predict_batch(
    predictor: Predictor,
    squares: Sequence[tuple[Path, np.ndarray]],
    top_k: int,
    threshold: float,
    explainer: "Explainer | None",
) -> list[Prediction]:
    """Predict images uint8 (3, size, size) that have been read, in one forward pass, and explain them if asked to."""
    images = np.stack([square for _, square in squares])
    logits, probabilities = predictor.predict(images)
    check_finite(logits)
    predictions = []
    names, order = predictor.class_names, top_classes(logits, top_k)
    sets = predictor.prediction_sets.names(logits, names) if predictor.prediction_sets else [{}] * len(squares)
    detector = predictor.unknown_detector
    scores: list[Any] = detector.scores(logits).tolist() if detector else [None] * len(squares)
    for row, (file, _) in enumerate(squares):
        best = [(names[index], float(probabilities[row, index])) for index in order[row]]
        predicted = best[0][0] if best[0][1] >= threshold else None
        predictions.append(Prediction(file, best, predicted, sets[row], scores[row]))
    if explainer:
        explainer.write(images, predictions)
    return predictions
