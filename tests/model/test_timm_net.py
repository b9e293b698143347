"""timm's networks: heads, weights and their preprocess, and errors for what is missing."""

import hashlib
import logging
import sys
from pathlib import Path

import pytest
import torch
from networks import network
from torch import nn

from imago.errors import ConfigError, DataError
from imago.images import Preprocess
from imago.model import library_net
from imago.model.layers import head_names, new_module_names
from imago.model.timm_net import TimmNet

timm = pytest.importorskip("timm")


@pytest.fixture
def lcnet(tmp_path) -> Path:
    """A file of weights as timm publishes them, with random numbers even where a new network has zeros and ones."""
    torch.manual_seed(1)
    state = timm.create_model("lcnet_050").state_dict()
    file = tmp_path / "lcnet.pth"
    torch.save({key: value + torch.rand(value.shape).to(value.dtype) for key, value in state.items()}, file)
    return file


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("lcnet_050", ["classifier"]),
        ("convnext_atto", ["head.fc"]),
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
    ],
)
def test_heads_are_found_and_replaced(name: str, heads: list[str]):
    with torch.device("meta"):
        net = network(TimmNet, 7, 224, name=name, freeze="backbone")
        assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 7)
    assert head_names(net) == heads
    trained = {key for key, value in net.network.named_parameters() if value.requires_grad}
    assert trained == {f"{head}.{tensor}" for head in heads for tensor in ("weight", "bias")}


def test_small_images_pass_the_stem_at_full_resolution():
    net = TimmNet(7, 32, "resnet18")
    assert net.network.conv1.stride == (1, 1)
    assert isinstance(net.network.maxpool, nn.Identity)
    assert new_module_names(net) == ["fc", "conv1"]


def test_weights_of_a_file_are_copied_except_the_head(lcnet, caplog):
    with caplog.at_level(logging.INFO, "imago"):
        net = network(TimmNet, 7, 224, name="lcnet_050", weights=str(lcnet))
    state = torch.load(lcnet, weights_only=True)
    assert "loaded from lcnet.pth (new: classifier.weight, classifier.bias); dropped from the file" in caplog.text
    own = net.network.state_dict()
    assert {key for key in state if not torch.equal(state[key], own[key])} == {"classifier.weight", "classifier.bias"}


def test_weights_of_another_network_are_refused(lcnet):
    with pytest.raises(DataError, match=r"lcnet\.pth does not fit this network \(size mismatch for "):
        network(TimmNet, 7, 224, name="lcnet_100", weights=str(lcnet))


@pytest.mark.slow
def test_published_weights_come_from_the_cache_and_do_not_change_the_random_draws(lcnet, monkeypatch):
    entry = timm.get_pretrained_cfg("lcnet_050.ra2_in1k")
    requested = []

    def cache(repository: str, filename: str, revision: str | None) -> str:
        requested.append((repository, filename))
        return str(lcnet)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cache)
    nets = []
    for weights in ("default", str(lcnet), None):
        torch.manual_seed(0)
        nets.append((network(TimmNet, 7, 224, name="lcnet_050", weights=weights), torch.rand(1)))
    assert set(requested) == {(entry.hf_hub_id, "model.safetensors")}
    stems = [net.network.conv_stem.weight for net, _ in nets]
    assert torch.equal(stems[0], stems[1])
    assert not torch.equal(stems[0], stems[2])
    for net, draw in nets:
        assert torch.equal(net.network.classifier.weight, nets[2][0].network.classifier.weight)
        assert torch.equal(draw, nets[2][1])


def test_a_damaged_file_in_the_hub_cache_is_named(tmp_path, monkeypatch):
    blob, link = tmp_path / hashlib.sha256(b"weights").hexdigest(), tmp_path / "model.safetensors"
    blob.write_bytes(b"weights")  # as the hub names the file of a repository: by its SHA-256
    link.symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: str(link))
    assert TimmNet.find_weights("lcnet_100", "default") == link
    blob.write_bytes(b"Weights")
    with pytest.raises(DataError, match=rf"^{blob} is damaged \(its sha256 begins with .*; delete it, then run again"):
        TimmNet.find_weights("lcnet_100", "default")


def test_being_offline_without_a_cached_file_is_one_line_with_the_ways_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(library_net, "is_reachable", lambda url, timeout_s: False)
    with pytest.raises(DataError) as caught:
        TimmNet.find_weights("lcnet_100", "default")
    for text in ("timm/lcnet_100.ra2_in1k/model.safetensors is not in", "no answer from", "=FILE.safetensors", "=null"):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["volo_d4_448.sail_in1k", "volo_d5_512.sail_in1k", "lcnet_050"])
def test_every_record_is_valid_also_where_the_crop_is_larger_than_the_image(name: str, caplog):
    record = TimmNet.published(name, "default").preprocess
    evaluated = timm.get_pretrained_cfg(name)
    assert Preprocess.from_dict(record).size == evaluated.input_size[-1]
    assert record["resize"] == max(evaluated.input_size[-1], int(evaluated.input_size[-1] / evaluated.crop_pct))
    assert ("padded or non-square" in caplog.text) == (evaluated.crop_pct > 1)


def test_preprocess_is_what_the_weights_were_evaluated_with(lcnet):
    expected = {"size": 224, "resize": 256, "crop": "center", "interpolation": "bicubic"}
    expected |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    for weights in ("default", "ra2_in1k", str(lcnet)):
        assert TimmNet.weights_preprocess("lcnet_100", weights) == expected
    half = TimmNet.weights_preprocess("vit_tiny_patch16_384", "default")
    assert half == expected | {"size": 384, "resize": 384, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("lcnet_10", None, r"model\.name=lcnet_10: timm has no such network; did you mean .*lcnet_100"),
        ("lcnet_100", "imagenet", r"model\.weights=imagenet: for lcnet_100 the weights in timm are default, ra2_in1k"),
        (
            "lcnet_100.nothing",
            "default",
            r"model\.name=lcnet_100\.nothing: for lcnet_100 the weights in timm are default",
        ),
        ("lcnet_035", "default", r"model\.weights=default: for lcnet_035 the weights in timm are none"),
        ("vit_tiny_patch16_384", None, r"cannot take images of 224 px \(.*type e\.g\. preprocess\.size=384\."),
    ],
)
def test_a_wrong_name_or_size_is_refused_in_one_line(name: str, weights: str | None, message: str):
    with torch.device("meta"), pytest.raises(ConfigError, match=message) as caught:
        network(TimmNet, 7, 224, name=name, weights=weights)
    assert "\n" not in str(caught.value)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"model=timm needs the package timm, which make setup installs"):
        TimmNet.find_weights("lcnet_100", "default")
