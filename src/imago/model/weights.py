"""Pretrained weights of torchvision's networks: find the file, read it safely, and tell what its makers evaluated with.

Never a quiet fall back to random weights: what cannot be found, read or fitted is an error.
"""

import hashlib
import re
import socket
import zipfile
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn
from torchvision import models

from imago.download import is_reachable
from imago.errors import ConfigError, DataError

REACH_TIMEOUT_S = 3.0  # with some 5 s for the imports before it, the answer "no network" comes within 10 s
STALL_TIMEOUT_S = 30.0  # without one, torch.hub waits for ever on a server that has stopped sending

# They train with extra heads, for which neither the loss nor the weights here have a place.
_LEFT_OUT = {"googlenet", "inception_v3"}
# What is put around a state_dict, and before its keys: DDP's `module.`, our own checkpoints' `net.network.`.
_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "net.network.")
# Before 2018 the layers of a DenseNet block had dots in their names, and its published files still do.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_COUNTER = ".num_batches_tracked"  # of BatchNorm: older files lack it, and nothing here reads it


def check_name(name: str) -> None:
    """Refuse a network that torchvision does not have.

    Raises:
        ConfigError: with the nearest names.
    """
    names = [known for known in models.list_models(module=models) if known not in _LEFT_OUT]
    if name not in names:
        close = ", ".join(get_close_matches(name, names, n=3, cutoff=0.5))
        hint = f"did you mean {close}?" if close else "names are such as resnet18, vgg16 or efficientnet_b0."
        raise ConfigError(f"model.name={name}: there is no such network of torchvision here; {hint}")


def find_weights(name: str, weights: str | None) -> Path | None:
    """Give the file that `model.weights` means, downloaded if need be; None for None.

    Args:
        name: of the network, as torchvision spells it.
        weights: "default", a name such as IMAGENET1K_V1, the path of a file, or None.

    Raises:
        ConfigError: unknown network or unknown weights.
        DataError: in one line, if the file is not there and cannot be downloaded, or is damaged.
    """
    check_name(name)
    if weights is None:
        return None
    if (entry := _published(name, weights)) is not None:
        return _cached(entry.url)
    file = Path(weights).expanduser()
    if not file.is_file():
        fault = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"model.weights={weights} {fault}; give a .pth file, default, or null to train from scratch.")
    return file


def weights_preprocess(name: str, weights: str | None) -> dict[str, Any] | None:
    """Tell how pictures were prepared when these weights were evaluated: the record of `imago.images.Preprocess`.

    For a local file it is that of the network's default weights, which torchvision's own files share. The record knows
    no interpolation: ours is bilinear, where torchvision's EfficientNets were evaluated with bicubic.

    Args:
        name: of the network, as torchvision spells it.
        weights: as in `find_weights`; no file is looked for.

    Returns:
        size, resize (pixels), crop, mean and std (of pixels in [0, 1]); None for weights=None.
    """
    check_name(name)
    if weights is None:
        return None
    entry = _published(name, weights) or models.get_model_weights(name).DEFAULT
    asked = entry.transforms()
    sides = {"size": asked.crop_size[0], "resize": asked.resize_size[0], "crop": "center"}
    return sides | {"mean": list(asked.mean), "std": list(asked.std)}


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a state_dict, also one wrapped as {"state_dict": ...} or {"model": ...} or with `module.` before its keys.

    Raises:
        DataError: if the file is damaged, holds anything else than plain data and tensors, no state_dict, or numbers
            that are not finite (torchvision's features-only weights of vgg16 do).
    """
    _refuse_damaged_zip(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"model.weights: {file} is no file of weights ({reason}); give a state_dict in a .pth."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise DataError(f"model.weights: {file} holds no state_dict (names and their tensors).")
    for key, value in content.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"model.weights: {file} has numbers in {key} that are not finite; take other weights.")
    return {_our_key(key, content): value for key, value in content.items()}


def keep_weights(network: nn.Module, state: Mapping[str, Tensor], new_parts: Sequence[str], file: Path) -> list[str]:
    """Copy `state` into `network`; the parts in `new_parts` stay new unless all of their tensors fit.

    Args:
        network: of any torchvision architecture.
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


def _published(name: str, weights: str) -> Any | None:
    """The entry of torchvision's list; None if `weights` is the path of a file."""
    entries = models.get_model_weights(name).__members__
    key = "DEFAULT" if weights == "default" else weights
    if key in entries:
        return entries[key]
    if Path(weights).suffix or "/" in weights or Path(weights).exists():
        return None
    known = ", ".join(["default", *(entry for entry in entries if entry != "DEFAULT")])
    raise ConfigError(f"model.weights={weights}: for {name} it can be {known}, null or the path of a .pth file.")


def _cached(url: str) -> Path:
    """The file of `url` in torch's hub cache, downloaded if it is not there, and sound."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(urlsplit(url).path).name
    match = re.search(r"-([0-9a-f]{8,})\.", file.name)  # torch.hub's convention: how the sha256 begins
    prefix = match[1] if match else ""
    if not file.is_file():
        _download(url, file, prefix)
    try:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    if not found.startswith(prefix):
        raise DataError(
            f"{file} is damaged (its sha256 begins with {found[:8]}, not {prefix}); delete it, then run again."
        )
    return file


def _download(url: str, file: Path, prefix: str) -> None:
    ways_out = (
        "copy the file there, or type model.weights=FILE.pth for another place or model.weights=null for none at all."
    )
    if not is_reachable(url, REACH_TIMEOUT_S):
        host = urlsplit(url).netloc
        raise DataError(
            f"{file.name} is not in {file.parent} and cannot be downloaded (no answer from {host}); {ways_out}"
        )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_TIMEOUT_S)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), prefix, progress=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DataError(f"the download of {file.name} into {file.parent} failed ({error}); {ways_out}") from error
    finally:
        socket.setdefaulttimeout(before)


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
