"""The files of weights are read by torchvision and by timm with their own classes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from imago.images import Preprocess, resize_and_crop
from imago.model.adapt import build_network
from imago.model.classifier import Classifier

NAMES = ["ant", "bee", "cat"]
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
pytestmark = pytest.mark.slow


def classifier(size: int, target: str, **settings) -> Classifier:
    """Build a network with random weights and statistics."""
    torch.manual_seed(0)
    settings = {"_target_": target, **settings}
    net = build_network(settings, len(NAMES), size)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 1.5)
    built = Classifier(net, NAMES, Preprocess(size, size + 32, "center", MEAN, STD), 1.5).eval().requires_grad_(False)
    built.network_settings = settings
    return built


def images(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 3, size, size), dtype=np.uint8)


def normalized(images: np.ndarray, mean=MEAN, std=STD) -> torch.Tensor:
    """Normalize as torchvision does."""
    return torchvision.transforms.v2.functional.normalize(torch.from_numpy(images) / 255, mean, std)


def no_comparison(predict: Callable, report: dict) -> dict:
    return {}


@pytest.mark.parametrize("format", ["state_dict", "safetensors"])
def test_torchvision_loads_the_weights_into_its_own_class(format: str, export: Callable):
    model = classifier(224, "imago.model.torchvision_net.TorchvisionNet", name="resnet18")
    path, _ = export(format, classifier=model, verify=no_comparison)
    network = torchvision.models.resnet18(num_classes=3).eval()
    if format == "state_dict":
        network.load_state_dict(torch.load(path / "model.pth", weights_only=True))
    else:
        from safetensors.torch import load_file

        network.load_state_dict(load_file(path / "model.safetensors"))
    with torch.no_grad():
        np.testing.assert_allclose(network(normalized(images(224))), model(images(224)), atol=1e-4)


def test_timm_reads_the_directory_with_classes_and_preprocess(export: Callable):
    timm = pytest.importorskip("timm")
    model = classifier(224, "imago.model.timm_net.TimmNet", name="lcnet_050", drop_path_rate=0.1)
    found = {}
    path, _ = export(
        "safetensors", classifier=model, verify=lambda predict, _: found.update(out=predict(images(224))) or {}
    )
    network = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    settings = timm.data.resolve_data_config(model=network)
    sizes, mean, std = (tuple(settings[key]) for key in ("input_size", "mean", "std"))
    assert (sizes, mean, std) == ((3, 224, 224), MEAN, STD)
    assert (settings["crop_pct"], settings["crop_mode"]) == (pytest.approx(224 / 256), "center")
    with torch.no_grad():
        probabilities = (network(normalized(images(224), mean, std)) / 1.5).softmax(1)
    np.testing.assert_allclose(probabilities, model.probabilities(images(224)), atol=1e-5)
    np.testing.assert_allclose(found["out"][1], probabilities, atol=1e-5)  # what `load` returned
    assert json.loads((path / "config.json").read_text())["label_names"] == NAMES


@pytest.mark.parametrize(
    ("size", "resize", "crop"),
    [
        (224, 256, "center"),
        (236, 253, "center"),
        (448, 495, "squash_center"),
        (224, 224, "center"),
        (224, 256, "squash"),
    ],
)
def test_timm_resizes_and_crops_to_the_same_sizes(export: Callable, size: int, resize: int, crop: str):
    timm = pytest.importorskip("timm")
    model = classifier(size, "imago.model.timm_net.TimmNet", name="lcnet_050")
    model.preprocess = Preprocess(size, resize, crop, MEAN, STD)
    path, _ = export("safetensors", classifier=model, verify=no_comparison)
    network = timm.create_model(f"local-dir:{path}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 640, 3), dtype=np.uint8))
    expected = normalized(resize_and_crop(np.asarray(image), model.preprocess).transpose(2, 0, 1))
    torch.testing.assert_close(transform(image), expected, atol=0.1, rtol=0)


@pytest.mark.parametrize(("size", "settings"), [(32, {}), (224, {"in_channels": 1})])
def test_a_network_that_timm_would_build_otherwise_is_for_this_project_only(
    size: int, settings: dict, export: Callable, tmp_path: Path
):
    pytest.importorskip("timm")
    model = classifier(size, "imago.model.timm_net.TimmNet", name="lcnet_050", **settings)
    found = {}
    path, _ = export(
        "safetensors", classifier=model, verify=lambda predict, _: found.update(out=predict(images(size))) or {}
    )
    assert {file.name for file in path.iterdir()} == {"model.safetensors", "metadata.json"}
    np.testing.assert_allclose(found["out"][0], model(images(size)), atol=1e-5)
