"""What TensorBoard gets beside the curves: figures, and the settings of the run with what came out."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from PIL import Image

_GROUPS = ("data", "augment", "model", "optimizer", "schedule", "loss")
_OF_THE_TRAINER = ("max_epochs", "precision", "accumulate_grad_batches", "gradient_clip_val")


def add_image(name: str, file: Path, step: int, loggers: Iterable[Logger]) -> None:
    """Show a PNG file under `name`.

    Args:
        name: as in val/confusion.
        file: the image.
        step: optimizer steps.
        loggers: of the run; only those for TensorBoard show images.
    """
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    for board in _boards(loggers):
        board.experiment.add_image(name, pixels, step, dataformats="HWC")
        board.experiment.flush()  # the Trainer, which would, has ended


def add_hparams(cfg: DictConfig, summary: Mapping[str, Any], loggers: Iterable[Logger]) -> None:
    """Fill the tab HPARAMS: the settings that decide a result, with `best/val_acc` and `test/acc`.

    Args:
        cfg: of the run.
        summary: of the run, after the test.
        loggers: of the run.
    """
    found = {"best/val_acc": summary.get("val", {}).get("acc"), "test/acc": summary.get("test", {}).get("acc")}
    metrics = {name: value for name, value in found.items() if value is not None}
    settings = decisive_settings(cfg)
    for board in _boards(loggers):
        board.log_hyperparams(settings, metrics, step=summary.get("steps", 0))
        board.experiment.flush()


def decisive_settings(cfg: DictConfig) -> dict[str, Any]:
    """Give what decides a result by the keys as they are typed: numbers and texts; a `_target_` as its class's name."""
    tree: Any = OmegaConf.to_container(cfg, resolve=True)
    found = {"seed": tree["seed"]}
    found |= {f"trainer.{name}": _plain(tree["trainer"][name]) for name in _OF_THE_TRAINER}
    for group in _GROUPS:  # where one repeats another, as data.augment does, that one tells it
        found |= dict(_flat(group, {key: value for key, value in tree[group].items() if key not in tree}))
    return found


def _flat(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield path, _plain(node)
        return
    for key, value in node.items():
        if key == "_target_":
            yield path, str(value).rpartition(".")[2]
        elif not key.startswith("_"):
            yield from _flat(f"{path}.{key}", value)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else "null" if value is None else str(value)


def _boards(loggers: Iterable[Logger]) -> Iterator[TensorBoardLogger]:
    return (logger for logger in loggers if isinstance(logger, TensorBoardLogger))
