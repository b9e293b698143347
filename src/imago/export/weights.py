"""Write the weights of a network as a state_dict or as safetensors, and read them into a new network.

The tensors have the names of the library's own network, so that torchvision and timm load them too.
"""

import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imago import onnx_classifier
from imago.export.formats import Options, Predict
from imago.export.metadata import NETWORK_KEY, read_metadata
from imago.export.parity import predict_with
from imago.files import write_json
from imago.images import MAX_SMALL_PX, Preprocess
from imago.model.adapt import build_network
from imago.model.classifier import Classifier

_STATE_DICT, _SAFETENSORS, _TIMM_CONFIG = "model.pth", "model.safetensors", "config.json"
_OWN_SETTINGS = ("_target_", "name", "weights", "freeze", "in_channels")  # the others are arguments of timm's network


def write(classifier: Classifier, path: Path, metadata: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Write PATH/model.pth or PATH/model.safetensors, see `imago.export.onnx.write`.

    A directory with the safetensors of a timm network for images above 64 px also gets config.json, which timm reads.
    """
    path.mkdir()
    state = {name: tensor.contiguous() for name, tensor in _body(classifier.net).state_dict().items()}
    if options.format != "safetensors":
        buffer = BytesIO()  # to a file, torch would report a full disk without its reason
        torch.save(state, buffer)
        (path / _STATE_DICT).write_bytes(buffer.getbuffer())
        return {}
    from safetensors.torch import save

    # Tensors that a network has under two names must not share memory.
    (path / _SAFETENSORS).write_bytes(save({name: tensor.clone() for name, tensor in state.items()}))
    if config := _timm_config(classifier):
        write_json(path / _TIMM_CONFIG, config)
    return {}


def load(path: Path, num_threads: int) -> Predict:
    """Build the network anew and load the weights into it: by timm if it can read the directory, else as metadata say.

    It runs on the threads of torch.
    """
    return predict_with(load_classifier(path))


def load_classifier(path: Path) -> Classifier:
    """Load the network of a directory with metadata.json; the class that it names is not checked, so write it first."""
    metadata = read_metadata(path)
    preprocess = Preprocess.from_dict(metadata[onnx_classifier.PREPROCESS_KEY])
    names, settings = metadata[onnx_classifier.CLASS_NAMES_KEY], dict(metadata[NETWORK_KEY])
    if (path / _TIMM_CONFIG).is_file():
        import timm

        net = timm.create_model(f"local-dir:{path}", pretrained=True)
    else:
        net = build_network(settings, len(names), preprocess.size, preprocess.to_dict())
        _body(net).load_state_dict(_read(path))
    classifier = Classifier(net, names, preprocess, metadata[onnx_classifier.TEMPERATURE_KEY])
    return classifier.eval()


def _timm_config(classifier: Classifier) -> dict[str, Any]:
    """Return the configuration by which timm builds the network; an empty one if it would build another.

    For small images the stride of the first convolution is changed, for gray ones the input, by pruning the widths.
    """
    settings, preprocess = classifier.network_settings, classifier.preprocess
    is_changed = preprocess.size <= MAX_SMALL_PX or settings.get("in_channels", 3) != 3 or "pruned_shapes" in settings
    if is_changed or not str(settings.get("_target_")).endswith(".TimmNet"):
        return {}
    name, num_classes = settings["name"].partition(".")[0], len(classifier.class_names)
    return {
        "architecture": name,
        "num_classes": num_classes,
        "model_args": {key: value for key, value in settings.items() if key not in _OWN_SETTINGS},
        "label_names": list(classifier.class_names),
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [3, preprocess.size, preprocess.size],
            # timm resizes to floor(size / crop_pct); the quotient itself may round to a pixel less.
            "crop_pct": 1.0 if preprocess.crop == "squash" else math.nextafter(preprocess.size / preprocess.resize, 0),
            "crop_mode": "center" if preprocess.crop == "center" else "squash",
            "interpolation": preprocess.interpolation,
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
        },
    }


def _read(path: Path) -> dict[str, Tensor]:
    if (path / _STATE_DICT).is_file():
        return torch.load(path / _STATE_DICT, weights_only=True)
    from safetensors.torch import load_file

    return load_file(path / _SAFETENSORS)


def _body(net: nn.Module) -> nn.Module:
    """Return the network as its library builds it."""
    return getattr(net, "body", net)
