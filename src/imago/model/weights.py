"""Files of weights: read safely, and fitted into a network.

Never a quiet fall back to random weights: what cannot be found, read or fitted is an error.
"""

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imago.errors import ConfigError, DataError

# What is put around a state_dict, and before its keys: DDP's `module.`, our own checkpoints' `net.network.`.
_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "net.network.", "net.")
# Before 2018 the layers of a DenseNet block had dots in their names, and its published files still do.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_COUNTER = ".num_batches_tracked"  # of BatchNorm: older files lack it, and nothing here reads it


def local_file(weights: str) -> Path:
    """Give the file that `model.weights` names.

    Raises:
        DataError: if it is not there.
    """
    file = Path(weights).expanduser()
    if not file.is_file():
        fault = "names nothing" if not weights else "is a folder" if file.is_dir() else "does not exist"
        raise DataError(
            f"model.weights={weights} {fault}; give a .pth or .safetensors file, a run directory, or null "
            "to train from scratch."
        )
    return file


def looks_like_path(weights: str) -> bool:
    """Tell a path from the name of published weights."""
    return bool(Path(weights).suffix) or "/" in weights or Path(weights).exists()


def recorded_preprocess(file: Path) -> dict[str, Any] | None:
    """Give the record of `imago.images.Preprocess` that a checkpoint of this project holds; other files have none."""
    if file.suffix != ".ckpt":
        return None
    content = _load(file)
    settings = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    record = settings.get("preprocess") if isinstance(settings, Mapping) else None
    return dict(record) if isinstance(record, Mapping) else None


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a state_dict from a .pth, a .safetensors or a checkpoint of this project.

    It may be wrapped as {"state_dict": ...} or {"model": ...}, with `module.` or our own prefixes before its keys; of a
    checkpoint only the network is taken.

    Raises:
        DataError: if the file is damaged, holds anything else than plain data and tensors, no state_dict, or numbers
            that are not finite (torchvision's features-only weights of vgg16 do).
    """
    content: Any = _load(file)
    is_own = isinstance(content, Mapping) and "imago" in content
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise DataError(f"model.weights: {file} holds no state_dict (names and their tensors).")
    if is_own:  # a loss may have tensors too
        content = {key: value for key, value in content.items() if key.startswith("net.")}
    for key, value in content.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"model.weights: {file} has numbers in {key} that are not finite; take other weights.")
    return {_our_key(key, content): value for key, value in content.items()}


def keep_weights(network: nn.Module, state: Mapping[str, Tensor], new_parts: Sequence[str], file: Path) -> list[str]:
    """Copy `state` into `network`; the parts in `new_parts` stay new unless all of their tensors fit.

    Args:
        network: changed in place.
        state: its tensors by name, as in `file`.
        new_parts: names of modules that may differ from the file: the head, a new stem.
        file: named in the error.

    Returns:
        Names of the tensors that stay new.

    Raises:
        DataError: any other mismatch, with the first names and shapes.
    """
    own = network.state_dict()  # shares memory with the network
    fits = {key for key, value in state.items() if key in own and own[key].shape == value.shape}
    new = [key for part in new_parts for key in _keys_below(own, part) if not fits.issuperset(_keys_below(own, part))]
    problems = {
        "missing": [key for key in own if not (key in state or key in new or key.endswith(_COUNTER))],
        "unknown": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {_shape(state[key])} instead of {_shape(own[key])}"
            for key in state
            if key in own and key not in fits and key not in new
        ],
    }
    found = [f"{len(keys)} {kind} ({_first(keys)})" for kind, keys in problems.items() if keys]
    if found:
        raise DataError(
            f"model.weights: {file} does not fit this network: tensors {', '.join(found)}; choose the model= it "
            "was made from, or other weights."
        )
    for key in fits.difference(new):
        own[key].copy_(state[key])
    return new


def _load(file: Path) -> Any:
    """Read plain data and tensors."""
    if file.suffix == ".safetensors":
        return _load_safetensors(file)
    _refuse_damaged_zip(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        told = re.split(r"\n|\. ", str(error))[0]  # torch's first sentence; it goes on about itself
        reason = f"{type(error).__name__}: {told}"  # "101" alone would tell nobody anything
        raise DataError(
            f"model.weights: {file} is no file of weights ({reason}); give a state_dict in a .pth."
        ) from error


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ConfigError(
            f"model.weights={file} needs the package safetensors, which make setup installs; or give a .pth file."
        ) from error
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise DataError(f"model.weights: {file} is damaged or no safetensors file ({error}); copy it again.") from error


def _refuse_damaged_zip(file: Path) -> None:
    """`torch.load` does not look at the checksums: one flipped bit would be one wrong weight."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        return  # the older format of torch.save; anything else is refused by torch.load
    except OSError as error:
        raise DataError(f"model.weights: {file} cannot be read: {error.strerror}.") from error
    except Exception:  # zlib.error, EOFError, struct.error, NotImplementedError ...: damaged in its structure
        damaged = "the archive"
    if damaged:
        raise DataError(f"model.weights: {file} is damaged (the checksum of {damaged} does not match); copy it again.")


def _our_key(key: str, keys: Mapping[str, Any]) -> str:
    for prefix in _PREFIXES:
        if all(other.startswith(prefix) for other in keys):
            key = key.removeprefix(prefix)
    return _OLD_DENSENET.sub(r"\1\2.", key)


def _keys_below(state: Mapping[str, Tensor], part: str) -> list[str]:
    return [key for key in state if key.startswith(f"{part}.")]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _first(texts: Sequence[str], most: int = 3) -> str:
    return ", ".join(texts[:most]) + (" ..." if len(texts) > most else "")
