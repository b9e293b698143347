"""Add figures, and the settings of a run with its result, to TensorBoard."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image

from imago.runs.records import summary_metrics
from imago.settings import flat_settings

_GROUPS = ("data", "augment", "model", "optimizer", "schedule", "loss")
_TRAINER_SETTINGS = ("max_epochs", "precision", "accumulate_grad_batches", "gradient_clip_val")


def add_image(name: str, file: Path, step: int, loggers: Iterable[Logger]) -> None:
    """Add a PNG file, of any color mode, to TensorBoard at a global step; other loggers are ignored."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    for board in _tensorboards(loggers):
        board.experiment.add_image(name, pixels, step, dataformats="HWC")
        board.experiment.flush()  # the Trainer has ended and does not flush it


def add_hparams(settings: Mapping[str, Any], summary: Mapping[str, Any], loggers: Iterable[Logger]) -> None:
    """Fill the tab HPARAMS: the settings that affect the result, with all metrics: `best/val_acc`, `test/acc`, ...

    `settings` are plain nested dicts, `summary` is that after the test; loggers of other types are ignored.
    """
    # val/acc is the curve over the epochs.
    metrics = {name.replace("val/", "best/val_", 1): value for name, value in summary_metrics(summary).items()}
    for board in _tensorboards(loggers):
        board.log_hyperparams(result_settings(settings), metrics, step=summary.get("steps", 0))
        board.experiment.flush()


def keep_file_order(board: TensorBoardLogger) -> None:
    """Rename the files of a resumed run that sort after its new one, as after the clock was set back.

    TensorBoard reads the files in the order of their names, which begin with the time in seconds.
    """
    newest = Path(board.experiment._get_file_writer().event_writer._file_name)
    kind, time_s, _ = re.split(r"(\d{10})", newest.name, maxsplit=1)
    later = sorted(file for file in newest.parent.glob(f"{kind}*") if file.name > newest.name)
    for number, file in enumerate(reversed(later), start=1):
        file.rename(file.with_name(re.sub(r"\d{10}", f"{int(time_s) - number:010d}", file.name, count=1)))


def result_settings(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return the settings that affect the result, by their names as typed; the value of a group is its class name."""
    by_group: dict[str, Any] = {"seed": settings["seed"]}
    by_group["trainer"] = {name: settings["trainer"][name] for name in _TRAINER_SETTINGS}
    for group in _GROUPS:  # without copies of another group, such as data.augment
        by_group[group] = {key: value for key, value in settings[group].items() if key not in settings}
    flat = flat_settings(by_group)
    return {key: "null" if value is None else value for key, value in flat.items()}


def _tensorboards(loggers: Iterable[Logger]) -> Iterator[TensorBoardLogger]:
    return (logger for logger in loggers if isinstance(logger, TensorBoardLogger))
