"""LibraryNet: what the networks of torchvision and timm have in common."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imago.errors import ConfigError
from imago.model.stem import fit_stem
from imago.model.weights import find_file, recorded_preprocess


class LibraryNet(nn.Module):
    """A network of a library with a stem for the size of the images, and how to find its published weights.

    Args:
        network: as the library builds it, with K logits; files of weights have its names of tensors.
        name: name of the network in the library.
        num_classes: K.
        image_size: side of the input in pixels.
        fitting_size: a side that the network was made for, in pixels.

    Attributes:
        new_stem: names of modules of `network` that were replaced for small images.

    Raises:
        ConfigError: a size that the network cannot take.
    """

    find_entry: Callable[[str, str | None], Any]
    """Return the published weights in the library's list; None for null or a path. Raises a ConfigError for others."""
    download_entry: Callable[[Any], Path]
    entry_preprocess: Callable[[str, Any], dict[str, Any]]
    """Return the preprocess record of an entry; for None that of the network's default weights."""

    def __init__(self, network: nn.Module, name: str, num_classes: int, image_size: int, fitting_size: int) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.new_stem = fit_stem(network, image_size)
        check_image_size(network, name, image_size, fitting_size, num_classes)

    @property
    def body(self) -> nn.Module:
        """The network as the library builds it."""
        return self.network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, K)."""
        return self.network(images)

    @classmethod
    def find_weights(cls, name: str, weights: str | None) -> Path | None:
        """Return the file of `weights`, downloaded if needed; arguments and errors as in `adapt.find_weights`."""
        entry = cls.find_entry(name, weights)
        if weights is None:
            return None
        return find_file(weights) if entry is None else cls.download_entry(entry)

    @classmethod
    def weights_preprocess(cls, name: str, weights: str) -> dict[str, Any]:
        """Return the preprocess record that `weights` were evaluated with.

        A file that is not a checkpoint with a record of its own is evaluated as the network's default weights, as the
        library's own files are.
        """
        entry = cls.find_entry(name, weights)
        recorded = recorded_preprocess(weights) if entry is None else None
        return recorded or cls.entry_preprocess(name, entry)

    def convert_weights(self, state: dict[str, Tensor], weights: str) -> dict[str, Tensor]:
        """Return the tensors of the file of `weights` under the names and in the shapes of `network`."""
        return state


def check_name(name: str, names: Sequence[str], library: str, examples: str) -> None:
    """Raise a ConfigError with the nearest `names` if a library has no network `name`."""
    if name not in names:
        close = ", ".join(get_close_matches(name, names, n=3, cutoff=0.5))
        hint = f"did you mean {close}?" if close else f"names are such as {examples}."
        raise ConfigError(f"model.name={name}: there is no such network of {library} here; {hint}")


def check_image_size(network: nn.Module, name: str, image_size: int, fitting_size: int, num_classes: int) -> None:
    """Trace one image through a network on the meta device, which computes nothing; arguments as in `LibraryNet`.

    Raises:
        ConfigError: the network fails, or its output is not (N, K).
    """
    network.eval()  # one image may be too few for BatchNorm's statistics
    state = {key: value.to("meta") for key, value in chain(network.named_parameters(), network.named_buffers())}
    image = torch.zeros(1, 3, image_size, image_size, device="meta")
    try:
        with torch.no_grad():
            logits = torch.func.functional_call(network, state, (image,))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ConfigError(
            f"model.name={name} cannot take images of {image_size} px ({reason}); type e.g. "
            f"preprocess.size={fitting_size}."
        ) from error
    if getattr(logits, "shape", None) != (1, num_classes):
        raise ConfigError(f"model.name={name} is not a classifier: its output is not {num_classes} logits per image.")
    network.train()
