"""Any of timm's classifiers by its name (lcnet_100 is PP-LCNet), pretrained or not; else as `TorchvisionNet`.

timm is an optional package, so it is imported where it is used.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from math import floor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imago.errors import ConfigError, DataError
from imago.model import pretrained
from imago.model.adaptable_net import AdaptableNet
from imago.model.input_size import refuse_size
from imago.model.layers import last_layer
from imago.model.stem import fit_stem
from imago.model.weights import local_file, looks_like_path, read_weights, recorded_preprocess

_WAYS_OUT = "download it elsewhere and type model.weights=FILE.safetensors, or model.weights=null for none at all."


class TimmNet(AdaptableNet):
    """A timm network whose head has the data's class count, and which takes small images too (`fit_stem`).

    Args:
        num_classes: K, width of the head; comes from the data.
        image_size: side of the input in pixels; comes from the preprocess record.
        name: of the network, as timm spells it; `lcnet_100.ra2_in1k` names its weights too.
        weights: "default", a tag such as ra2_in1k, the path of a .pth, .safetensors or .ckpt file, or None for random
            weights.
        freeze: as in `TorchvisionNet`.
        in_channels: 3, or 1 for the luminance of the images.

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
        file = self.find_weights(name, weights)
        timm = _timm()
        architecture = name.partition(".")[0]
        self.network: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=num_classes)
        heads = self.network.pretrained_cfg.get("classifier") or last_layer(self.network)
        new_stem = fit_stem(self.network, image_size)
        refuse_size(self.network, name, image_size, self.network.pretrained_cfg["input_size"][-1], num_classes)
        state = None if file is None else read_weights(file)
        if state is not None and _published(name, weights) is not None:
            state = _in_own_layout(name, str(weights), state)
        head_names = (heads,) if isinstance(heads, str) else tuple(heads)
        self.adapt(name, file, freeze, in_channels, head_names, new_stem, state)

    @property
    def body(self) -> nn.Module:
        """The network as timm builds it."""
        return self.network

    @staticmethod
    def find_weights(name: str | None, weights: str | None) -> Path | None:
        """Give the file that `model.weights` means, downloaded if need be; None for None.

        Raises:
            ConfigError: timm is not installed, unknown network or unknown weights.
            DataError: in one line, if the file is not there and cannot be downloaded, or is damaged.
        """
        check_name(str(name))
        if weights is None:
            return None
        entry = _published(str(name), weights)
        if entry is None:
            return local_file(weights)
        return _from_hub(entry) if entry.hf_hub_id else pretrained.cached(entry.url)

    @staticmethod
    def weights_preprocess(name: str | None, weights: str | None) -> dict[str, Any] | None:
        """Give the record of `imago.images.Preprocess` that the weights were evaluated with, as in `TorchvisionNet`."""
        check_name(str(name))
        if weights is None:
            return None
        entry = _published(str(name), weights)
        if entry is None and (record := recorded_preprocess(Path(weights).expanduser())) is not None:
            return record
        asked = entry or _timm().get_pretrained_cfg(name)
        size = asked.input_size[-1]
        crop = "squash" if asked.crop_mode == "squash" else "center"
        sides = {"size": size, "resize": floor(size / asked.crop_pct), "crop": crop}  # floor: timm's own rounding
        sides["interpolation"] = asked.interpolation
        return sides | {"mean": list(asked.mean), "std": list(asked.std)}

    def logits(self, images: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, K)."""
        return self.network(images)


def check_name(name: str) -> None:
    """Refuse a network that timm does not have.

    Raises:
        ConfigError: with the nearest names, or because timm is not installed.
    """
    timm = _timm()
    if not timm.is_model(name):
        close = ", ".join(get_close_matches(name, timm.list_models(), n=3, cutoff=0.5))
        hint = f"did you mean {close}?" if close else "names are such as lcnet_100, resnet18d or vit_tiny_patch16_224."
        raise ConfigError(f"model.name={name}: there is no such network of timm here; {hint}")


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "model=timm needs the package timm, which make setup installs (or pip install timm); model=torchvision "
            "needs none."
        ) from error
    return timm


def _published(name: str, weights: str | None) -> Any | None:
    """The entry of timm's list; None if `weights` is the path of a file."""
    timm = _timm()
    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if weights != "default" and weights not in tags and looks_like_path(str(weights)):
        return None
    if weights == "default" and tags and tag in ("", *tags):
        return timm.get_pretrained_cfg(name)
    if weights in tags:
        return timm.get_pretrained_cfg(f"{architecture}.{weights}")
    known = ", ".join(["default", *tags] if tags else [])
    wrong = f"model.name={name}" if tag and weights == "default" else f"model.weights={weights}"
    raise ConfigError(f"{wrong}: for {architecture} timm has weights {known or 'of no kind'}; null or a file will do.")


def _from_hub(entry: Any) -> Path:
    """The file in the Hugging Face cache, downloaded if it is not there."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repository, _, revision = entry.hf_hub_id.partition("@")
    place: dict[str, Any] = {"filename": entry.hf_hub_filename or "model.safetensors", "revision": revision or None}
    kept = try_to_load_from_cache(repository, **place)
    if isinstance(kept, str):
        return Path(kept)
    folder = Path(constants.HF_HUB_CACHE)
    pretrained.refuse_offline(hf_hub_url(repository, **place), f"{repository}/{place['filename']}", folder, _WAYS_OUT)
    try:
        return Path(hf_hub_download(repository, **place))
    except OSError as error:  # all of the hub's errors of connections and answers
        reason = str(error).partition("\n")[0]
        raise DataError(f"the download of {repository} into {folder} failed ({reason}); {_WAYS_OUT}") from error


def _in_own_layout(name: str, weights: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let timm itself read a published file, which may have the layout of the code that it was trained with.

    It does so into a network of its own with the file's head and stem; what of it fits ours is decided as for any file.
    """
    entry = _published(name, weights)
    assert entry is not None
    with torch.random.fork_rng(devices=[]):  # the first values of our own new parts must not depend on it
        whole = _timm().create_model(
            f"{entry.architecture}.{entry.tag}", pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)}
        )
    return whole.state_dict()
