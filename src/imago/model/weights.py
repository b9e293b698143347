"""Find, read and copy files of weights.

A file that cannot be found, read or copied is an error, never a silent fall back to random weights.
"""

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imago.errors import ConfigError, DataError

_WRAPPERS = ("state_dict", "model")  # keys under which files keep the state_dict
_PREFIXES = ("module.", "net.network.", "net.")  # of names of tensors: DDP's, and of our own checkpoints
# Before 2018 the layers of a DenseNet block had dots in their names, and its published files still have.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_COUNTER = ".num_batches_tracked"  # of BatchNorm: older files lack it, and nothing here reads it


def find_file(weights: str) -> Path:
    """Return the file that `model.weights` names.

    Raises:
        DataError: it does not exist.
    """
    file = Path(weights).expanduser()
    if not file.is_file():
        fault = "is empty" if not weights else "is a directory" if file.is_dir() else "does not exist"
        raise DataError(
            f"model.weights={weights} {fault}; give a .pth or .safetensors file, a run directory, or null "
            "to train from scratch."
        )
    return file


def is_path(weights: str) -> bool:
    """Return whether it is a path and not the name of published weights."""
    return bool(Path(weights).suffix) or "/" in weights or Path(weights).exists()


def recorded_preprocess(file: Path) -> dict[str, Any] | None:
    """Return the record of `imago.images.Preprocess` in a checkpoint of this project; None for other files."""
    content = _load(file) if file.suffix == ".ckpt" else None
    settings = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    record = settings.get("preprocess") if isinstance(settings, Mapping) else None
    return dict(record) if isinstance(record, Mapping) else None


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a state_dict from a .pth, a .safetensors or a checkpoint of this project.

    It may be wrapped as {"state_dict": ...} or {"model": ...}, and its keys may start with `module.` or our own
    prefixes; of a checkpoint only the network is returned.

    Raises:
        DataError: the file is damaged, contains other than plain data and tensors, no state_dict, or values that are
            not finite (as torchvision's features-only weights of vgg16).
    """
    content: Any = _load(file)
    is_own = isinstance(content, Mapping) and "imago" in content
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise DataError(f"model.weights: {file} contains no state_dict (names and their tensors).")
    if is_own:  # a loss may have tensors too
        content = {key: value for key, value in content.items() if key.startswith("net.")}
    for key, value in content.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"model.weights: {file} has values in {key} that are not finite; use other weights.")
    prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in content)), "")
    return {_OLD_DENSENET.sub(r"\1\2.", key.removeprefix(prefix)): value for key, value in content.items()}


def copy_weights(network: nn.Module, state: Mapping[str, Tensor], new_parts: Sequence[str], file: Path) -> list[str]:
    """Copy `state` into `network`; a part in `new_parts` keeps its values unless all of its tensors fit.

    Args:
        network: changed in place.
        state: tensors of `file` by name.
        new_parts: names of modules that may differ from the file: the head, a new stem.
        file: for the error message.

    Returns:
        Names of the tensors that were not copied.

    Raises:
        DataError: any other mismatch, with the first names and shapes.
    """
    own = network.state_dict()  # shares memory with the network
    fits = {key for key, value in state.items() if key in own and own[key].shape == value.shape}
    tensors = [[key for key in own if key.startswith(f"{part}.")] for part in new_parts]
    new = [key for keys in tensors if not fits.issuperset(keys) for key in keys]
    problems = {
        "missing": [key for key in own if not (key in state or key in new or key.endswith(_COUNTER))],
        "unknown": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {_shape(state[key])} instead of {_shape(own[key])}"
            for key in state
            if key in own and key not in fits and key not in new
        ],
    }
    found = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''})"
        for kind, keys in problems.items()
        if keys
    ]
    if found:
        raise DataError(
            f"model.weights: {file} does not fit this network: tensors {', '.join(found)}; choose the model= it "
            "was made from, or other weights."
        )
    for key in fits.difference(new):
        own[key].copy_(state[key])
    return new


def _load(file: Path) -> Any:
    """Load plain data and tensors."""
    if file.suffix == ".safetensors":
        return _load_safetensors(file)
    _check_zip(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        first_sentence = re.split(r"\n|\. ", str(error))[0]
        reason = f"{type(error).__name__}: {first_sentence}"  # the text alone may be a number
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


def _check_zip(file: Path) -> None:
    """Raise a DataError if a checksum does not match: `torch.load` does not check, and would load wrong weights."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        return  # the older format of torch.save; torch.load refuses anything else
    except OSError as error:
        raise DataError(f"model.weights: {file} cannot be read: {error.strerror}.") from error
    except Exception:  # zlib.error, EOFError, struct.error, NotImplementedError ...: the structure is damaged
        damaged = "the archive"
    if damaged:
        raise DataError(f"model.weights: {file} is damaged (the checksum of {damaged} does not match); copy it again.")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
