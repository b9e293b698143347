"""`predict.py`: what a trained network sees on images of any size and kind."""

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from imago.errors import ConfigError, DataError
from imago.files import make_writable
from imago.images import Preprocess, read_image, resize_and_crop
from imago.inference.calibration import KEY
from imago.inference.explain import Explainer
from imago.inference.find_images import find_images
from imago.inference.load import Predictor, find_model, is_onnx, load_predictor, run_directory
from imago.inference.predictions import Prediction, UnreadableImage, table, write_predictions
from imago.paths import short_path
from imago.statistics.metrics import top_classes
from imago.text import printable

_NUM_READERS = min(8, os.cpu_count() or 1)  # threads: decoding takes longer than most networks, and runs side by side


def predict(cfg: DictConfig) -> None:
    """Predict as the settings say: a table on the screen, all of it in a CSV and a JSON file.

    Raises:
        UserError: for what the user can mend.
        SystemExit: with 1, after all others are done, if an image could not be read.
    """
    _check_settings(cfg)
    file = find_model(cfg.run, cfg.ckpt, cfg.accelerator)
    samples = find_images(cfg.input)
    output = Path(cfg.output) if cfg.output else _default_output(Path(cfg.run))
    predictor = load_predictor(file, extra_targets=cfg.extra_targets, accelerator=cfg.accelerator)
    make_writable(output.parent, "output=FILE.csv")
    explainer = Explainer(predictor, output.with_name(f"{output.stem}_explained")) if cfg.explain else None
    answers = list(predict_images(predictor, samples, cfg.batch_size, cfg.top_k, cfg.threshold, explainer))
    predictions = [answer for answer in answers if isinstance(answer, Prediction)]
    bad = [answer for answer in answers if isinstance(answer, UnreadableImage)]
    facts = {"model": str(file.resolve()), KEY: predictor.calibration_temperature, "threshold": cfg.threshold}
    write_predictions(output, predictions, bad, facts, min(cfg.top_k, len(predictor.class_names)))
    if predictions:
        print("\n".join(table(predictions)), end="\n\n")
    print(f"predictions for {len(predictions):,} of {len(samples):,} images: {short_path(output)} and .json")
    num_unsure = sum(prediction.answer is None for prediction in predictions)
    if num_unsure:
        print(f"no answer for {num_unsure:,} of them, whose best class is less probable than threshold={cfg.threshold}")
    if explainer and predictions:
        print(f"what speaks for each answer, at layer {explainer.layer}: {short_path(explainer.folder)}")
    if bad:
        _end_with_failures(len(bad), len(samples))


def predict_images(
    predictor: Predictor,
    samples: Sequence[Path],
    batch_size: int,
    top_k: int,
    threshold: float = 0.0,
    explainer: Explainer | None = None,
) -> Iterator[Prediction | UnreadableImage]:
    """Yield what becomes of each image, in order; those that cannot be read are named on stderr, too.

    Args:
        predictor: the network.
        samples: files of any size and mode.
        batch_size: images that go through the network at a time.
        top_k: classes for each image, at most.
        threshold: an image whose best class is less probable gets no answer; in [0, 1].
        explainer: writes an overlay for each image.

    Raises:
        DataError: if the network's numbers are not finite.
    """
    from tqdm import tqdm

    starts = range(0, len(samples), batch_size)
    with (
        ThreadPoolExecutor(_NUM_READERS) as readers,
        tqdm(total=len(samples), unit="image", leave=False, disable=None) as bar,
    ):
        for part in (samples[start : start + batch_size] for start in starts):
            squares = list(readers.map(lambda image: _read(image, predictor.preprocess), part))
            read = [(p, s) for p, s in zip(part, squares, strict=True) if not isinstance(s, DataError)]
            found = iter(_predict_batch(predictor, read, top_k, threshold, explainer))
            for image, square in zip(part, squares, strict=True):
                if isinstance(square, DataError):
                    bar.write(f"error: {printable(str(square))}", file=sys.stderr)
                    yield UnreadableImage(image, str(square))
                else:
                    yield next(found)
            bar.update(len(part))


def _check_settings(cfg: DictConfig) -> None:
    problems = [
        f"{name}={'null' if cfg[name] is None else cfg[name]} must be 1 or more."
        for name in ("top_k", "batch_size")
        if cfg[name] is None or cfg[name] < 1
    ]
    if not 0 <= cfg.threshold <= 1:
        problems.append(f"threshold={cfg.threshold} must lie in 0 .. 1.")
    if not cfg.input:
        problems.append(f"input={cfg.input or ''} names nothing; give an image, a folder, or a pattern in quotes.")
    if cfg.output and Path(cfg.output).is_dir():
        problems.append(f"output={cfg.output} is a folder; give a file, e.g. output={Path(cfg.output) / 'out.csv'}.")
    if cfg.output and Path(cfg.output).suffix.lower() == ".json":
        problems.append(f"output={cfg.output} is the name of the CSV file; the JSON file lands beside it.")
    if cfg.explain and is_onnx(Path(cfg.run)):
        problems.append(f"explain=true needs gradients, which run={cfg.run} has not; give the run or a checkpoint.")
    if cfg.explain and importlib.util.find_spec("captum") is None:
        problems.append("explain=true needs captum and matplotlib; install them: pip install -e '.[analysis]'.")
    if problems:
        raise ConfigError("\n".join(problems))


def _default_output(run: Path) -> Path:
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f.csv")  # like run directories: two never share one
    return (run_directory(run) or run.resolve().parent) / "predictions" / name


def _read(image: Path, preprocess: Preprocess) -> np.ndarray | DataError:
    """An image as the network sees it, uint8 (3, size, size), or what is wrong with it."""
    try:
        return resize_and_crop(read_image(image), preprocess).transpose(2, 0, 1)
    except DataError as error:
        return error


def _predict_batch(
    predictor: Predictor,
    read: Sequence[tuple[Path, np.ndarray]],
    top_k: int,
    threshold: float,
    explainer: Explainer | None,
) -> list[Prediction]:
    if not read:
        return []
    images = np.stack([square for _, square in read])
    logits, probabilities = predictor.predict(images)
    if not np.isfinite(logits).all():
        raise DataError("the network gives numbers that are not finite; its weights are of no use.")
    found = []
    for (image, _), shares, places in zip(read, probabilities, top_classes(logits, top_k), strict=True):
        names = tuple(predictor.class_names[place] for place in places)
        best = tuple(float(shares[place]) for place in places)
        found.append(Prediction(image, names, best, names[0] if best[0] >= threshold else None))
    if explainer:
        explainer.write(images, found)
    return found


def _end_with_failures(num_failed: int, num_images: int) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    message = f"{num_failed:,} of {num_images:,} images could not be read; the others are done"
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # an exit would end the whole sweep
        raise DataError(message)
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)
