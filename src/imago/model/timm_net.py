"""TimmNet: any classifier of timm by its name (lcnet_100 is PP-LCNet), pretrained or not.

timm is an optional package and is imported only where it is used.
"""

from math import floor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imago.errors import ConfigError, DataError
from imago.model.adapt import AdaptableNet, adapt
from imago.model.layers import last_layer
from imago.model.pretrained import check_name, check_online, download
from imago.model.stem import check_image_size, fit_stem
from imago.model.weights import find_file, is_path, read_weights, recorded_preprocess

_WAYS_OUT = "download it elsewhere and type model.weights=FILE.safetensors, or model.weights=null for none at all."


class TimmNet(AdaptableNet):
    """A timm network with a head for the classes of the data and a stem for the size of its images.

    Args:
        num_classes: K, width of the head; comes from the data.
        image_size: side of the input in pixels; comes from the preprocess record.
        name: of the network in timm; `lcnet_100.ra2_in1k` names its weights too.
        weights: "default", a tag such as ra2_in1k, a file, or None for random weights.
        freeze, in_channels: as in `AdaptableNet`.

    Raises:
        ConfigError: timm is not installed, or a name or a size that cannot work.
        DataError: weights that are missing, damaged or of another network.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        name: str,
        weights: str | None,
        freeze: str | None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        file, entry = self.find_weights(name, weights), _find_entry(name, weights)
        self.network: nn.Module = _timm().create_model(name.partition(".")[0], num_classes=num_classes)
        heads = self.network.pretrained_cfg.get("classifier") or last_layer(self.network)
        head_names = (heads,) if isinstance(heads, str) else tuple(heads)
        new_stem = fit_stem(self.network, image_size)
        check_image_size(self.network, name, image_size, self.network.pretrained_cfg["input_size"][-1], num_classes)
        state = None if file is None or entry is None else _read_published(file, entry)
        adapt(self, file, freeze, in_channels, name, head_names, new_stem, state)

    @property
    def body(self) -> nn.Module:
        """The network as timm builds it."""
        return self.network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, K)."""
        return self.network(images)

    @staticmethod
    def find_weights(name: str | None, weights: str | None) -> Path | None:
        entry = _find_entry(str(name), weights)
        if entry is None:
            return None if weights is None else find_file(weights)
        return _download_from_hub(entry) if entry.hf_hub_id else download(entry.url)

    @staticmethod
    def weights_preprocess(name: str | None, weights: str | None) -> dict[str, Any] | None:
        entry = _find_entry(str(name), weights)
        if weights is None:
            return None
        if entry is None and (record := recorded_preprocess(Path(weights).expanduser())) is not None:
            return record
        settings = entry or _timm().get_pretrained_cfg(name)
        size = settings.input_size[-1]
        crop = "squash" if settings.crop_mode == "squash" else "center"
        sides = {"size": size, "resize": floor(size / settings.crop_pct), "crop": crop}  # floor: timm's own rounding
        sides["interpolation"] = settings.interpolation
        return sides | {"mean": list(settings.mean), "std": list(settings.std)}


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "model=timm needs the package timm, which make setup installs (or pip install timm); model=torchvision "
            "needs none."
        ) from error
    return timm


def _find_entry(name: str, weights: str | None) -> Any | None:
    """Return the published weights in timm's list; None for None or the path of a file.

    Raises:
        ConfigError: timm is not installed, or has no such network or weights.
    """
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
    wrong = f"model.name={name}" if tag and weights == "default" else f"model.weights={weights}"
    raise ConfigError(f"{wrong}: for {architecture} the weights in timm are {known}; use one of them, null or a file.")


def _download_from_hub(entry: Any) -> Path:
    """Return the file in the Hugging Face cache, downloaded if it is not there."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repository, _, revision = entry.hf_hub_id.partition("@")
    file: dict[str, Any] = {"filename": entry.hf_hub_filename or "model.safetensors", "revision": revision or None}
    cached = try_to_load_from_cache(repository, **file)
    if isinstance(cached, str):
        return Path(cached)
    directory = Path(constants.HF_HUB_CACHE)
    check_online(hf_hub_url(repository, **file), f"{repository}/{file['filename']}", directory, _WAYS_OUT)
    try:
        return Path(hf_hub_download(repository, **file))
    except OSError as error:  # the base class of the hub's connection and HTTP errors
        reason = str(error).partition("\n")[0]
        raise DataError(f"the download of {repository} into {directory} failed ({reason}); {_WAYS_OUT}") from error


def _read_published(file: Path, entry: Any) -> dict[str, Tensor]:
    """Read a published file, which may have another layout of tensors than timm's network has now.

    timm converts it when it loads it into a network with the file's own head and stem.
    """
    overlay = {"state_dict": read_weights(file)}
    with torch.random.fork_rng(devices=[]):  # the first values of our own new parts must not depend on it
        whole = _timm().create_model(
            f"{entry.architecture}.{entry.tag}", pretrained=True, pretrained_cfg_overlay=overlay
        )
    return whole.state_dict()
