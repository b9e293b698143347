"""`predict.py`: what a trained network sees on pictures of any size and kind."""

import csv
import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from imago.analysis.metrics import top_classes
from imago.errors import ConfigError, DataError
from imago.images import SUFFIXES, Preprocess, read_image, resize_and_crop
from imago.run.load import Predictor, find_model, load_predictor, run_folder

_MAX_LISTED = 20  # pictures that fit on a screen; the CSV file has them all
_MAX_NAME_CHARS = 60  # of a picture on the screen
_NUM_READERS = min(8, os.cpu_count() or 1)  # threads: decoding takes longer than most networks, and runs side by side


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one picture, best first, with probabilities in [0, 1]."""

    picture: Path
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(cfg: DictConfig) -> None:
    """Predict as the settings say: a table on the screen, all of it in a CSV file.

    Raises:
        UserError: for what the user can mend.
        SystemExit: with 1, after all others are done, if a picture could not be read.
    """
    _check_settings(cfg)
    file = find_model(cfg.run, cfg.ckpt, cfg.accelerator)
    pictures = find_pictures(cfg.input)
    predictor = load_predictor(file, extra_targets=cfg.extra_targets, accelerator=cfg.accelerator)
    predictions = list(predict_pictures(predictor, pictures, cfg.batch_size, cfg.top_k))
    output = Path(cfg.output) if cfg.output else _default_output(Path(cfg.run))
    write_predictions(output, predictions, min(cfg.top_k, len(predictor.class_names)))
    if predictions:
        print("\n".join(_table(predictions)), end="\n\n")
    place = min(str(output), os.path.relpath(output), key=len)
    print(f"predictions for {len(predictions):,} of {len(pictures):,} pictures: {place}")
    if len(predictions) < len(pictures):
        _end_with_failures(len(pictures) - len(predictions), len(pictures))


def find_pictures(text: str) -> list[Path]:
    """Give the pictures that the setting `input` means, in the order of their names.

    An existing file is that file, whatever its name looks like, and whatever its suffix. A folder is searched with all
    below it, hidden ones left out. Anything else is a pattern, with `**` for folders of any depth.

    Raises:
        ConfigError: if there are none.
    """
    if os.path.isfile(text):
        return [Path(text)]
    is_folder = os.path.isdir(text)
    places = [text] if is_folder else sorted(glob.glob(text, recursive=True)) if text else []
    found = sorted({Path(picture) for place in places for picture in _pictures_in(place)})
    if not found:
        kinds = " ".join(sorted(SUFFIXES))
        fault = f"holds no picture ({kinds})" if places else "matches nothing"
        way_out = "give a picture, a folder, or a pattern in quotes such as 'photos/*.jpg'"
        raise ConfigError(f"input={_printable(text)} {fault}; {way_out}.")
    return found


def predict_pictures(
    predictor: Predictor, pictures: Sequence[Path], batch_size: int, top_k: int
) -> Iterator[Prediction]:
    """Yield the predictions of all pictures that can be read; the others are named on stderr.

    Args:
        predictor: the network.
        pictures: files of any size and mode.
        batch_size: pictures that go through the network at a time.
        top_k: classes for each picture, at most.

    Raises:
        DataError: if the network's numbers are not finite.
    """
    from tqdm import tqdm

    starts = range(0, len(pictures), batch_size)
    with (
        ThreadPoolExecutor(_NUM_READERS) as readers,
        tqdm(total=len(pictures), unit="picture", leave=False, disable=None) as bar,
    ):
        for part in (pictures[start : start + batch_size] for start in starts):
            squares = list(readers.map(lambda picture: _read(picture, predictor.preprocess), part))
            for square in squares:
                if isinstance(square, DataError):
                    bar.write(f"error: {_printable(str(square))}", file=sys.stderr)
            read = [(p, s) for p, s in zip(part, squares, strict=True) if not isinstance(s, DataError)]
            if read:
                yield from _predict_batch(predictor, read, top_k)
            bar.update(len(part))


def write_predictions(path: Path, predictions: Iterable[Prediction], num_columns: int) -> None:
    """Write one line a picture: `file, class_1, probability_1, class_2, ...`, best first.

    Raises:
        DataError: if it cannot be written.
    """
    header = ["file", *(f"{name}_{place}" for place in range(1, num_columns + 1) for name in ("class", "probability"))]
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # a reader never sees half a file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # `surrogateescape` gives a file name that is no UTF-8 back as it is on the disk.
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            for prediction in predictions:
                pairs = zip(prediction.class_names, prediction.probabilities, strict=True)
                writer.writerow([prediction.picture, *(cell for name, p in pairs for cell in (name, f"{p:.6f}"))])
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; name another file, output=FILE.csv.") from error


def _check_settings(cfg: DictConfig) -> None:
    problems = [
        f"{name}={'null' if cfg[name] is None else cfg[name]} must be 1 or more."
        for name in ("top_k", "batch_size")
        if cfg[name] is None or cfg[name] < 1
    ]
    if not cfg.input:
        problems.append(f"input={cfg.input or ''} names nothing; give a picture, a folder, or a pattern in quotes.")
    if cfg.output and Path(cfg.output).is_dir():
        problems.append(f"output={cfg.output} is a folder; give a file, e.g. output={Path(cfg.output) / 'out.csv'}.")
    if problems:
        raise ConfigError("\n".join(problems))


def _default_output(run: Path) -> Path:
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f.csv")  # like run folders: two never share one
    return (run_folder(run) or run.resolve().parent) / "predictions" / name


def _pictures_in(place: str) -> Iterator[str]:
    """The place itself if it is a picture, or all pictures below it if it is a folder."""
    if not os.path.isdir(place):
        if _is_picture(place):
            yield place
        return
    for folder, below, names in os.walk(place, onerror=_refuse_folder):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in names if not name.startswith(".") and _is_picture(name))


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{_printable(str(error.filename))} cannot be read: {error.strerror}.") from error


def _read(picture: Path, preprocess: Preprocess) -> np.ndarray | DataError:
    """A picture as the network sees it, uint8 (3, size, size), or what is wrong with it."""
    try:
        return resize_and_crop(read_image(picture), preprocess).transpose(2, 0, 1)
    except DataError as error:
        return error


def _predict_batch(predictor: Predictor, read: Sequence[tuple[Path, np.ndarray]], top_k: int) -> Iterator[Prediction]:
    logits, probabilities = predictor.predict(np.stack([square for _, square in read]))
    if not np.isfinite(logits).all():
        raise DataError("the network gives numbers that are not finite; its weights are of no use.")
    for (picture, _), shares, places in zip(read, probabilities, top_classes(logits, top_k), strict=True):
        names = tuple(predictor.class_names[place] for place in places)
        yield Prediction(picture, names, tuple(float(shares[place]) for place in places))


def _table(predictions: Sequence[Prediction]) -> Iterator[str]:
    """One line a picture: its name, the best class, and the next ones behind it."""
    shown = predictions[:_MAX_LISTED]
    pictures = [_shortened(_printable(str(prediction.picture))) for prediction in shown]
    width = max(len("picture"), *map(len, pictures))
    class_width = max(len("class"), *(len(prediction.class_names[0]) for prediction in shown))
    has_more = len(shown[0].class_names) > 1
    yield f"{'picture':<{width}}  {'class':<{class_width}}  probability" + ("   then" if has_more else "")
    for picture, prediction in zip(pictures, shown, strict=True):
        pairs = list(zip(prediction.class_names, prediction.probabilities, strict=True))
        then = ", ".join(f"{name} {share:.1%}" for name, share in pairs[1:])
        yield f"{picture:<{width}}  {pairs[0][0]:<{class_width}}  {pairs[0][1]:>11.2%}   {then}".rstrip()
    if len(predictions) > len(shown):
        yield f"... and {len(predictions) - len(shown):,} more"


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_NAME_CHARS else f"...{name[3 - _MAX_NAME_CHARS :]}"


def _printable(text: str) -> str:
    """The text on one line of any screen: a file name may hold line breaks, colours and bytes that are no letters."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _end_with_failures(num_failed: int, num_pictures: int) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    message = f"{num_failed:,} of {num_pictures:,} pictures could not be read; the others are done"
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # an exit would end the whole sweep
        raise DataError(message)
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)
