"""LibraryNet: the base class of the networks of torchvision and timm, and the download of their weights."""

import copy
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from imago.download import is_reachable
from imago.errors import ConfigError, DataError
from imago.files import sha256_of
from imago.model.stem import fit_stem
from imago.model.weights import find_file, recorded_preprocess
from imago.text import first_line

_REACH_TIMEOUT_S = 3.0  # with some 5 s for the imports before it, being offline is reported within 10 s
_STALL_TIMEOUT_S = 30.0  # our own choice: torch.hub itself has no timeout for a server that has stopped sending
_REFUSED_ARGUMENTS = ("pretrained", "weights", "checkpoint_path", "cache_dir", "in_chans", "aux_logits")
_REMEDY = "copy the file there, or type model.weights=FILE.pth, or model.weights=null to train from scratch."


class PublishedWeights(NamedTuple):
    """Download function and preprocess record of published weights.

    Args:
        download: returns the file, downloaded if needed; None for a path or no weights.
        preprocess: `imago.images.Preprocess` as a dict; for a path or no weights, that of the default weights.
    """

    download: Callable[[], Path] | None
    preprocess: dict[str, Any]


class LibraryNet(nn.Module):
    """A network of a library with a stem for the size of the images.

    A subclass defines `published`.

    Args:
        network: as the library builds it, with K logits; files of weights have its names of tensors.
        name: of the network in the library, e.g. "resnet18".
        num_classes: K, width of the head; comes from the data.
        image_size: side of the input in pixels; comes from the preprocess record.
        supported_size_px: an input side that the network supports, for the error message.

    Attributes:
        new_stem_module_names: names of modules of `network` that were replaced for small images.

    Raises:
        ConfigError: a size that the network cannot take.
    """

    published: Callable[[str, str | None], PublishedWeights]

    def __init__(
        self, network: nn.Module, name: str, num_classes: int, image_size: int, supported_size_px: int
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.new_stem_module_names = fit_stem(network, image_size)
        check_image_size(network, name, image_size, supported_size_px, num_classes)

    @property
    def body(self) -> nn.Module:
        """The network as the library builds it."""
        return self.network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, K)."""
        return self.network(images)

    @classmethod
    def find_weights(cls, name: str, weights: str | None) -> Path | None:
        """Return the file of `weights`, downloaded if needed; arguments and errors as in `adapt.find_weights`."""
        download_file = cls.published(name, weights).download
        if weights is None:
            return None
        return download_file() if download_file else find_file(weights)

    @classmethod
    def weights_preprocess(cls, name: str, weights: str) -> dict[str, Any]:
        """Return the preprocess record that `weights` were evaluated with.

        A file that is not a checkpoint with a record of its own is evaluated as the network's default weights, as the
        library's own files are.
        """
        published = cls.published(name, weights)
        return (not published.download and recorded_preprocess(weights)) or published.preprocess


def check_arguments(arguments: Iterable[str]) -> None:
    """Raise a ConfigError for an argument of a library that a setting of ours replaces."""
    for name in arguments:
        if name.startswith(_REFUSED_ARGUMENTS):
            raise ConfigError(f"model.{name} is not a setting here; model.weights and model.in_channels are.")


def check_name(name: str, names: Sequence[str], library: str, examples: str) -> None:
    """Raise a ConfigError with the nearest `names` if a library has no network `name`."""
    if name not in names:
        # 0.5, our own choice, is below difflib's 0.6, so that a hint is more likely.
        close = ", ".join(get_close_matches(name, names, n=3, cutoff=0.5))
        hint = f"did you mean {close}?" if close else f"valid names are e.g. {examples}."
        raise ConfigError(f"model.name={name}: {library} has no such network; {hint}")


def check_image_size(network: nn.Module, name: str, image_size: int, supported_size_px: int, num_classes: int) -> None:
    """Trace one image through a network on the meta device, which computes nothing; arguments as in `LibraryNet`.

    Raises:
        ConfigError: the network fails, or its output is not (N, K).
    """
    # Not functional_call, which leaves tensors on the meta device in modules that a network has twice.
    tensors = {id(value): value.detach().to("meta") for value in chain(network.parameters(), network.buffers())}
    traced = copy.deepcopy(network, tensors).eval()  # one image may be too few for BatchNorm's statistics
    image = torch.zeros(1, 3, image_size, image_size, device="meta")
    try:
        with torch.no_grad():
            logits = traced(image)
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = first_line(error).rstrip(".")
        raise ConfigError(
            f"model.name={name} cannot take images of {image_size} px ({reason}); type e.g. "
            f"preprocess.size={supported_size_px}."
        ) from error
    if getattr(logits, "shape", None) != (1, num_classes):
        raise ConfigError(
            f"model.name={name} is not a classifier: its output is not {num_classes} logits per image; use another."
        )


def download(url: str) -> Path:
    """Return the file of `url` in torch's hub cache, downloaded if it is not there.

    Raises:
        DataError: it cannot be downloaded or is damaged.
    """
    directory = Path(torch.hub.get_dir()) / "checkpoints"
    file = directory / Path(urlsplit(url).path).name
    match = re.search(r"-([0-9a-f]{8,})\.", file.name)  # torch.hub's convention: the first digits of the sha256
    prefix = match[1] if match else ""
    if not file.is_file():
        check_reachable(url, file.name, directory)
        timeout_s = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_STALL_TIMEOUT_S)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), prefix, progress=True)
        except (OSError, RuntimeError, HTTPException) as error:
            raise DataError(f"the download of {file.name} into {directory} failed ({error}); {_REMEDY}") from error
        finally:
            socket.setdefaulttimeout(timeout_s)
    return check_digest(file, prefix)


def check_digest(file: Path, prefix: str) -> Path:
    """Return `file`; raise a DataError if it cannot be read or its SHA-256 does not begin with `prefix`."""
    try:
        digest = sha256_of(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; delete it, then run again.") from error
    if not digest.startswith(prefix):
        raise DataError(
            f"{file} is damaged (its sha256 begins with {digest[:8]}, not {prefix}); delete it, then run again."
        )
    return file


def check_reachable(url: str, name: str, directory: Path, remedy: str = _REMEDY) -> None:
    """Request the headers of `url` before a download, which has no time limit of its own.

    Raises:
        DataError: no answer within seconds; says that `directory` lacks the file `name`, and ends with `remedy`.
    """
    if not is_reachable(url, _REACH_TIMEOUT_S):
        host = urlsplit(url).netloc
        raise DataError(f"{name} is not in {directory} and cannot be downloaded (no answer from {host}); {remedy}")
