"""The command `predict.py`: predict the class of images of any size and kind."""

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from imago.errors import DataError, IncompleteError
from imago.files import make_writable
from imago.images import Preprocess, read_image, resize_and_crop
from imago.inference.calibration import KEY
from imago.inference.find_images import find_images
from imago.inference.load import Predictor, check_settings, find_model, is_onnx, load_predictor, run_directory
from imago.inference.predictions import Prediction, UnreadableImage, table, write_predictions
from imago.paths import short_path
from imago.statistics.metrics import top_classes
from imago.text import printable

if TYPE_CHECKING:
    from imago.inference.explain import Explainer

_NUM_READERS = min(8, os.cpu_count() or 1)  # threads: decoding takes longer than most networks and runs in parallel


def predict(cfg: DictConfig) -> None:
    """Predict as configured: print a table, and write all predictions to a CSV and a JSON file.

    Raises:
        UserError: for what the user can correct; after all others are done, if an image could not be read.
    """
    _check_settings(cfg)
    file = find_model(cfg.run, cfg.ckpt, cfg.accelerator)
    images = find_images(cfg.input)
    output = Path(cfg.output) if cfg.output else _default_output(Path(cfg.run))
    predictor = load_predictor(file, cfg.extra_targets, cfg.accelerator)
    make_writable(output.parent, "output=FILE.csv")
    explainer = None
    if cfg.explain:
        from imago.inference.explain import Explainer

        explainer = Explainer(predictor, output.with_name(f"{output.stem}_explained"))
    results = list(predict_images(predictor, images, cfg.batch_size, cfg.top_k, cfg.threshold, explainer))
    predictions = [result for result in results if isinstance(result, Prediction)]
    bad = [result for result in results if isinstance(result, UnreadableImage)]
    info = {"model": str(file.resolve()), KEY: predictor.calibration_temperature, "threshold": cfg.threshold}
    write_predictions(output, predictions, bad, info, min(cfg.top_k, len(predictor.class_names)))
    if predictions:
        print("\n".join(table(predictions)), end="\n\n")
    print(f"predictions for {len(predictions):,} of {len(images):,} images: {short_path(output)} and .json")
    num_unsure = sum(prediction.answer is None for prediction in predictions)
    if num_unsure:
        print(f"no answer for {num_unsure:,} of them: their best class is less probable than threshold={cfg.threshold}")
    if explainer and predictions:
        print(f"Grad-CAM overlays of layer {explainer.layer}: {short_path(explainer.folder)}")
    if bad:
        raise IncompleteError(f"{len(bad):,} of {len(images):,} images could not be read; the others are done")


def predict_images(
    predictor: Predictor,
    images: Sequence[Path],
    batch_size: int,
    top_k: int,
    threshold: float = 0.0,
    explainer: "Explainer | None" = None,
) -> Iterator[Prediction | UnreadableImage]:
    """Yield a result for each image, in order; print those that cannot be read on stderr, too.

    Args:
        predictor: the network.
        images: files of any size and mode.
        batch_size: images per forward pass.
        top_k: maximum number of classes per image.
        threshold: an image whose best class is less probable gets no answer; in [0, 1].
        explainer: writes an overlay for each image.

    Raises:
        DataError: if the network's outputs are not finite.
    """
    from tqdm import tqdm

    with (
        ThreadPoolExecutor(_NUM_READERS) as readers,
        tqdm(total=len(images), unit="image", leave=False, disable=None) as bar,
    ):
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            results: list[Any] = list(readers.map(lambda image: _read(image, predictor.preprocess), batch))
            for result in results:
                if isinstance(result, UnreadableImage):
                    bar.write(f"error: {printable(result.reason)}", file=sys.stderr)
            rows = [row for row, result in enumerate(results) if isinstance(result, np.ndarray)]
            if rows:
                squares = np.stack([results[row] for row in rows])
                predictions = _predict_batch(predictor, squares, [batch[row] for row in rows], top_k, threshold)
                if explainer:
                    explainer.write(squares, predictions)
                for row, prediction in zip(rows, predictions, strict=True):
                    results[row] = prediction
            yield from results
            bar.update(len(batch))


def _check_settings(cfg: DictConfig) -> None:
    output, explain = Path(cfg.output or "out.csv"), cfg.explain
    lacks_captum, is_exported = importlib.util.find_spec("captum") is None, is_onnx(Path(cfg.run or ""))
    counts = {f"{name}={'null' if cfg[name] is None else cfg[name]}": cfg[name] for name in ("top_k", "batch_size")}
    check_settings(
        {
            **{f"{typed} must be 1 or more.": count is None or count < 1 for typed, count in counts.items()},
            f"threshold={cfg.threshold} must be in 0 .. 1.": not 0 <= cfg.threshold <= 1,
            f"input={cfg.input or ''} is empty; type an image, a folder, or a pattern in quotes.": not cfg.input,
            f"output={output} is a folder; type a file, e.g. output={output / 'out.csv'}.": output.is_dir(),
            f"output={output} is the CSV file; the JSON file gets the same name.": output.suffix.lower() == ".json",
            f"explain=true needs a checkpoint: run={cfg.run} is an ONNX file, without gradients.": explain
            and is_exported,
            "explain=true needs captum; install it: pip install -e '.[analysis]'.": explain and lacks_captum,
        }
    )


def _default_output(run: Path) -> Path:
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f.csv")  # unique, like the name of a run directory
    return (run_directory(run) or run.resolve().parent) / "predictions" / name


def _read(image: Path, preprocess: Preprocess) -> np.ndarray | UnreadableImage:
    """Read an image as the network's input, uint8 (3, size, size)."""
    try:
        return resize_and_crop(read_image(image), preprocess).transpose(2, 0, 1)
    except DataError as error:
        return UnreadableImage(image, str(error))


def _predict_batch(
    predictor: Predictor, squares: np.ndarray, images: Sequence[Path], top_k: int, threshold: float
) -> list[Prediction]:
    logits, probabilities = predictor.predict(squares)
    if not np.isfinite(logits).all():
        raise DataError("the network's outputs contain NaN or infinity; use another checkpoint.")
    predictions = []
    for image, shares, classes in zip(images, probabilities, top_classes(logits, top_k), strict=True):
        names = tuple(predictor.class_names[index] for index in classes)
        answer = names[0] if shares[classes[0]] >= threshold else None
        predictions.append(Prediction(image, names, tuple(shares[classes].tolist()), answer))
    return predictions
