"""TimmNet: any classifier of timm by its name (lcnet_100 is PP-LCNet)."""

import logging
import re
from functools import partial
from math import floor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imago.errors import ConfigError, DataError
from imago.model.library_net import (
    LibraryNet,
    PublishedWeights,
    check_arguments,
    check_digest,
    check_name,
    check_reachable,
    download,
)
from imago.model.weights import is_path
from imago.text import first_line

log = logging.getLogger(__name__)

_REMEDY = "download it elsewhere and type model.weights=FILE.safetensors, or model.weights=null to train from scratch."


class TimmNet(LibraryNet):
    """A timm network with a head for the classes of the data and a stem for the size of its images.

    Args:
        num_classes, image_size: as in `LibraryNet`.
        name: of the network in timm; `lcnet_100.ra2_in1k` names its weights too.
        **arguments: further ones of that network, e.g. `drop_path_rate`.

    Attributes:
        head_names: names of the modules of `network` that compute the logits; a distilled network has two.
    """

    def __init__(self, num_classes: int, image_size: int, name: str, **arguments: Any) -> None:
        check_arguments(arguments)
        network: Any = _timm().create_model(name.partition(".")[0], num_classes=num_classes, **arguments)
        super().__init__(network, name, num_classes, image_size, network.pretrained_cfg["input_size"][-1])
        if heads := network.pretrained_cfg.get("classifier"):
            self.head_names = [heads] if isinstance(heads, str) else list(heads)

    def convert_weights(self, state: dict[str, Tensor], weights: str) -> dict[str, Tensor]:
        """Convert a published file, which may have another layout of tensors than timm's network has now.

        timm converts it when it loads it into a network with the file's own head and stem.
        """
        entry = _find_entry(self.name, weights)
        if entry is None:
            return state
        name, overlay = f"{entry.architecture}.{entry.tag}", {"state_dict": state}
        with torch.random.fork_rng(devices=[]):  # the initial values of a new head or stem must not depend on it
            return _timm().create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()

    @staticmethod
    def published(name: str, weights: str | None) -> PublishedWeights:
        """Look up published weights; for None or a path only the preprocess record.

        Raises:
            ConfigError: timm is not installed, or has no such network or weights.
        """
        entry = _find_entry(str(name), weights)
        settings = entry or _timm().get_pretrained_cfg(name)
        size = settings.input_size[-1]
        resize = floor(size / settings.crop_pct)  # floor: timm's own rounding
        if entry and (settings.crop_mode == "border" or settings.input_size[-2] != size or resize < size):
            log.warning(
                "model.name=%s: its weights were evaluated on padded or non-square images; here on center squares", name
            )
        resize = max(size, resize)
        squash = "squash" if resize == size else "squash_center"
        record = {
            "size": size,
            "resize": resize,
            "crop": squash if settings.crop_mode == "squash" else "center",
            "interpolation": settings.interpolation,
            "mean": list(settings.mean),
            "std": list(settings.std),
        }
        return PublishedWeights(partial(_download, entry) if entry else None, record)


def _timm() -> Any:
    """Import timm, which is an optional package."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "model=timm needs the package timm, which make setup installs (or pip install timm); model=torchvision "
            "needs none."
        ) from error
    return timm


def _find_entry(name: str, weights: str | None) -> Any | None:
    """Return timm's config of the weights that are named; None for no weights or a path. Raise if timm has neither."""
    timm = _timm()
    if not timm.is_model(name):
        check_name(name, timm.list_models(), "timm", "lcnet_100, resnet18d or vit_tiny_patch16_224")
    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if weights is None or (weights != "default" and weights not in tags and is_path(weights)):
        return None
    if weights == "default" and tags and tag in ("", *tags):
        return timm.get_pretrained_cfg(name)
    if weights in tags:
        return timm.get_pretrained_cfg(f"{architecture}.{weights}")
    known = ", ".join(["default", *tags]) if tags else "none"
    setting = f"model.name={name}" if tag and weights == "default" else f"model.weights={weights}"
    raise ConfigError(
        f"{setting}: for {architecture} the weights in timm are {known}; use one of them, null or a file."
    )


def _download(entry: Any) -> Path:
    """Return the file in the Hugging Face cache, downloaded if it is not there, verified by the name of its blob."""
    if not entry.hf_hub_id:
        return download(entry.url)
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repository, _, revision = entry.hf_hub_id.partition("@")
    file: dict[str, Any] = {"filename": entry.hf_hub_filename or "model.safetensors", "revision": revision or None}
    cached = try_to_load_from_cache(repository, **file)
    if isinstance(cached, str):
        digest = re.fullmatch("[0-9a-f]{64}", Path(cached).resolve().name)  # not where there are no symbolic links
        check_digest(Path(cached).resolve(), digest[0] if digest else "")  # deleting only the link would keep the blob
        return Path(cached)
    directory = Path(constants.HF_HUB_CACHE)
    check_reachable(hf_hub_url(repository, **file), f"{repository}/{file['filename']}", directory, _REMEDY)
    try:
        return Path(hf_hub_download(repository, **file))
    except OSError as error:  # the base class of the hub's connection and HTTP errors
        fault = f"the download of {repository} into {directory} failed ({first_line(error)})"
        raise DataError(f"{fault}; {_REMEDY}") from error
