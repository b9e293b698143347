"""Read the data settings of a run, and tell whether two read the same images."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from imago.errors import DataError
from imago.trust import check_saved_targets


def training_data(run: Path | None) -> dict[str, Any]:
    """Return the data settings of a training; an empty dict if the network was only evaluated in that directory."""
    config = _read_config(run) if run else {}
    return config.get("data") or {} if "task" in config else {}


def read_data_settings(run: Path, trust: Sequence[str]) -> dict[str, Any]:
    """Read the data settings of a run; nothing is built yet.

    `split_file` becomes the run's own copy: the typed file may have been moved.

    Raises:
        DataError: if its config.yaml cannot be read or has no data settings.
        ConfigError: if it names a class that is not trusted.
    """
    settings = _read_config(run).get("data")
    if not isinstance(settings, dict) or "_target_" not in settings:
        raise DataError(f"{run / 'config.yaml'} names no dataset; restore the file, or train again.")
    if settings.get("split_file") and (run / "split.csv").is_file():
        settings |= {"split_file": str(run / "split.csv"), "fold": None, "val_as_test": False}  # it has these splits
    settings["augment"] = {}  # not used in evaluation, and may name code of others
    check_saved_targets(settings, "data", run / "config.yaml", trust)
    return settings


def image_source(settings: Mapping[str, Any]) -> list[str]:
    """Return dataset class and resolved paths: equal for settings that read the same images, however split."""
    paths = [os.path.realpath(str(settings.get(key))) for key in ("_target_", "root", "list_file", "name")]
    return [*paths, json.dumps(_with_real_paths(settings.get("train")), sort_keys=True)]  # of data=dataset


def _with_real_paths(node: Any) -> Any:
    """Return settings of a torch Dataset with resolved paths: a text that names a file or a folder is a path."""
    if isinstance(node, Mapping):
        return {key: _with_real_paths(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_real_paths(value) for value in node]
    return os.path.realpath(node) if isinstance(node, str) and os.path.exists(node) else node


def _read_config(run: Path) -> dict[str, Any]:
    file = run / "config.yaml"
    try:  # it holds no interpolations, and one from elsewhere, such as ${oc.env:NAME}, is not resolved
        config: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:  # PyYAML's and OmegaConf's exceptions have no other common base class
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())}.") from error
    return config if isinstance(config, dict) else {}
