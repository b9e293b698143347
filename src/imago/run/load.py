"""From a run folder or a checkpoint file to a network that can be used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imago.checkpoint import read_checkpoint
from imago.errors import DataError
from imago.images import Preprocess
from imago.model.classifier import Classifier
from imago.targets import build

_PREFIX = "net."  # of the network's keys in a checkpoint of the task


def checkpoint_path(path: Path, name: str = "best") -> Path:
    """Give the checkpoint file that `path` means: the file itself, or `name` (best or last) of a run folder.

    Raises:
        DataError: if there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path} does not exist; give a run folder such as logs/latest, or a checkpoint file.")
    file = path / "checkpoints" / f"{name}.ckpt"
    if not file.is_file():
        raise DataError(f"{path} has no checkpoints/{name}.ckpt; it is no run folder, or the run has not saved yet.")
    return file


def load_classifier(path: Path, extra_targets: Sequence[str] = ()) -> Classifier:
    """Rebuild the network that a checkpoint describes and fill in its weights; see `imago.run.load_model`."""
    checkpoint = read_checkpoint(checkpoint_path(path))
    settings: dict[str, Any] = checkpoint["hyper_parameters"]
    preprocess = Preprocess.from_dict(settings["preprocess"])
    facts = {"num_classes": len(settings["class_names"]), "image_size": preprocess.size}
    net = build(settings["net"], extra_targets=extra_targets, **facts)
    state = checkpoint["state_dict"]
    net.load_state_dict({key.removeprefix(_PREFIX): value for key, value in state.items() if key.startswith(_PREFIX)})
    return Classifier(net, settings["class_names"], preprocess).eval()
