"""Files of weights: found, downloaded, read and fitted, or refused in one line; never a quiet random start."""

import logging
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import perf_counter

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from imago.errors import ConfigError, DataError
from imago.images import Preprocess
from imago.model import pretrained
from imago.model.small_resnet import SmallResNet
from imago.model.torchvision_net import TorchvisionNet
from imago.model.weights import read_weights

find_weights, weights_preprocess = TorchvisionNet.find_weights, TorchvisionNet.weights_preprocess
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


# What is read


def test_the_dotted_names_of_published_densenets_are_read(tmp_path):
    torch.save({"features.denseblock1.denselayer1.norm.1.weight": torch.ones(2)}, tmp_path / "old.pth")
    assert list(read_weights(tmp_path / "old.pth")) == ["features.denseblock1.denselayer1.norm1.weight"]


@pytest.mark.parametrize("wrap", ["state_dict", "model", None])
def test_wrapped_files_are_read(squeezenet, wrap: str | None):
    plain = read_weights(squeezenet)
    prefixed = {f"module.{key}": value for key, value in plain.items()}
    torch.save({wrap: prefixed, "epoch": 3} if wrap else prefixed, squeezenet)
    assert list(read_weights(squeezenet)) == list(plain)


def test_files_from_before_the_batch_counter_load(tmp_path, saved, changed):
    file = saved(tmp_path / "old.pth", "resnet18")
    counters = [key for key in torch.load(file, weights_only=True) if key.endswith("num_batches_tracked")]
    net = TorchvisionNet(10, 224, "resnet18", str(changed(file, **dict.fromkeys(counters))), None)
    torch.testing.assert_close(net.network.conv1.weight, read_weights(file)["conv1.weight"])


def test_safetensors_are_read_like_any_file(squeezenet, tmp_path):
    state = read_weights(squeezenet)
    save_file(state, tmp_path / "file.safetensors")
    again = read_weights(tmp_path / "file.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 40])
def test_damaged_safetensors_are_one_line(tmp_path, content: bytes):
    file = tmp_path / "file.safetensors"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"file\.safetensors is damaged or no safetensors file") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)


def test_safetensors_without_the_package_name_the_way_out(squeezenet, tmp_path, monkeypatch):
    save_file(read_weights(squeezenet), tmp_path / "file.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ConfigError, match="needs the package safetensors, which make setup installs; or give a .pth"):
        read_weights(tmp_path / "file.safetensors")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """What a run of ours leaves: the network beside a tensor of the loss, and the record of the preprocess."""
    torch.manual_seed(1)
    net = SmallResNet(4, 32, width=4)
    state = {f"net.{key}": value for key, value in net.state_dict().items()} | {"loss.weight": torch.ones(4)}
    record = {"size": 32, "resize": 40, "crop": "center", "mean": [0.1] * 3, "std": [0.2] * 3}
    content = {"imago": {"schema": 1}, "state_dict": state, "hyper_parameters": {"preprocess": record}}
    torch.save(content, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def test_of_a_checkpoint_the_network_is_taken(checkpoint, caplog):
    state = read_weights(checkpoint)
    with caplog.at_level(logging.INFO, "imago"):
        net = SmallResNet(9, 32, width=4, weights=str(checkpoint))
    assert "kept from best.ckpt (new: head.weight, head.bias); dropped from the file: head.weight 4x16" in caplog.text
    assert torch.equal(net.stem.weight, state["stem.weight"])
    assert net.replaced == ["head.weight", "head.bias"]


def test_a_checkpoint_tells_its_preprocess_and_other_files_have_none(checkpoint, squeezenet):
    assert SmallResNet.weights_preprocess(None, str(checkpoint))["resize"] == 40
    assert weights_preprocess("resnet18", str(checkpoint))["mean"] == [0.1] * 3
    assert SmallResNet.weights_preprocess(None, str(squeezenet)) is None
    assert SmallResNet.weights_preprocess(None, None) is None


def test_nobody_has_published_weights_of_our_own_networks():
    with pytest.raises(ConfigError, match=r"model\.weights=default: of this network it can be null, a file or a run"):
        SmallResNet(9, 32, weights="default")


def test_half_a_head_is_not_kept(squeezenet, changed):
    net = TorchvisionNet(1000, 224, "squeezenet1_0", str(changed(squeezenet, classifier__1__bias=None)), None)
    file_head = read_weights(squeezenet)["classifier.1.weight"]
    assert not torch.equal(net.network.classifier[1].weight, file_head)


# Weights that do not fit, are damaged or are not there


def test_a_mismatch_names_the_first_tensors(tmp_path, saved):
    file = saved(tmp_path / "r34.pth", "resnet34")
    with pytest.raises(DataError, match=r"96 unknown \(layer1\.2\.conv1\.weight, .* \.\.\.\)") as caught:
        TorchvisionNet(1000, 224, "resnet18", str(file), None)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_and_one_of_another_shape_are_told_together(squeezenet, changed):
    changed(squeezenet, features__3__squeeze__bias=None, features__0__bias=torch.zeros(4))
    with pytest.raises(DataError) as caught:
        TorchvisionNet(5, 224, "squeezenet1_0", str(squeezenet), None)
    assert "1 missing (features.3.squeeze.bias), 1 of another shape (features.0.bias 4 instead of 96)" in str(
        caught.value
    )


def test_numbers_that_are_not_finite_are_refused(squeezenet, changed):
    changed(squeezenet, features__0__bias=torch.full((96,), float("nan")))
    with pytest.raises(DataError, match=r"squeezenet\.pth has numbers in features\.0\.bias that are not finite"):
        read_weights(squeezenet)


def test_a_flipped_bit_is_found(squeezenet):
    data = bytearray(squeezenet.read_bytes())
    data[len(data) // 2] ^= 1
    squeezenet.write_bytes(data)
    with pytest.raises(DataError, match=r"squeezenet\.pth is damaged \(the checksum of "):
        read_weights(squeezenet)


@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"PK\x03\x04 no zip", b"\x80\x02}q\x00."])
def test_other_kinds_of_file_are_refused(tmp_path, content: bytes):
    file = tmp_path / "file.pth"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"file\.pth (is no file of weights|holds no state_dict)") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(squeezenet):
    squeezenet.write_bytes(squeezenet.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"squeezenet\.pth is no file of weights") as caught:
        read_weights(squeezenet)
    assert "miniz" not in str(caught.value)  # torch's first sentence is enough


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1), "hook": print}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match=r"evil\.pth is no file of weights"):
        read_weights(tmp_path / "evil.pth")


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"a": 1}, torch.zeros(1)])
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(DataError, match="holds no state_dict"):
        read_weights(tmp_path / "file.pth")


def test_a_zip_of_another_kind_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "file.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"file\.pth is no file of weights"):
        read_weights(tmp_path / "file.pth")


def test_a_damaged_file_in_the_cache_is_named(cache, publish, saved):
    file = publish(saved(cache / "file", "squeezenet1_0"), "squeezenet1_0")
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(DataError, match=rf"{file} is damaged \(its sha256 begins with .* delete it"):
        TorchvisionNet(5, 32, "squeezenet1_0", "default", None)


def test_offline_and_not_cached_is_one_line_with_both_ways_out(cache, monkeypatch):
    monkeypatch.setattr(pretrained, "is_reachable", lambda url, timeout_s: False)
    with pytest.raises(DataError) as caught:
        TorchvisionNet(5, 32, "resnet18", "default", None)
    for text in ("resnet18-f37072fd.pth", str(cache), "copy the file there", "model.weights=FILE.pth", "=null"):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up_within_seconds(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/resnet18-f37072fd.pth"
        monkeypatch.setattr(models.ResNet18_Weights.DEFAULT.value, "url", url)
        start = perf_counter()
        with pytest.raises(DataError, match="no answer from"):
            find_weights("resnet18", "default")
        assert perf_counter() - start < 5


@pytest.mark.slow
def test_from_the_command_line_offline_is_exit_code_2_and_one_line(command, tmp_path):
    closed = "http://127.0.0.1:9"  # the discard port: nobody listens
    offline = {"https_proxy": closed, "http_proxy": closed, "TORCH_HOME": str(tmp_path / "torch")}
    done = command("src/train.py", "model=resnet18", "data=shapes", f"paths.log_dir={tmp_path}", **offline)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: resnet18-f37072fd.pth is not in ")


# Downloads


class CutOff(BaseHTTPRequestHandler):
    """Promises a million bytes and sends ten."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"0123456789")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Start a server on this machine; gives its address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def run(handler) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_download_lands_in_the_cache(cache, publish, serve, tmp_path, saved):
    shop = tmp_path / "shop"
    shop.mkdir()
    file = publish(saved(shop / "file", "squeezenet1_0"), "squeezenet1_0", serve(partial(Quiet, directory=str(shop))))
    assert find_weights("squeezenet1_0", "default") == cache / file.name
    assert (cache / file.name).read_bytes() == file.read_bytes()


def test_a_download_that_breaks_off_is_one_line_and_leaves_nothing(cache, publish, serve, tmp_path, saved):
    file = publish(saved(tmp_path / "file", "squeezenet1_0"), "squeezenet1_0", serve(CutOff))
    with pytest.raises(DataError, match=rf"the download of {file.name} into {cache} failed \(.*copy the file there"):
        find_weights("squeezenet1_0", "IMAGENET1K_V1")
    assert list(cache.iterdir()) == []
    assert socket.getdefaulttimeout() is None


# Names


def test_an_unknown_network_gets_the_nearest_names():
    with pytest.raises(ConfigError, match=r"model\.name=resnet81: .* did you mean resnet18"):
        TorchvisionNet(5, 32, "resnet81", None, None)


@pytest.mark.slow
def test_further_heads_of_a_file_are_left_out(tmp_path, monkeypatch, caplog):
    torch.manual_seed(1)
    with_heads = models.get_model("googlenet", weights=None, num_classes=20, init_weights=False)
    torch.save(with_heads.state_dict(), tmp_path / "googlenet.pth")
    with caplog.at_level(logging.INFO, "imago"):
        net = TorchvisionNet(5, 224, "googlenet", str(tmp_path / "googlenet.pth"), None)
    assert "(new: fc.weight, fc.bias)" in caplog.text
    torch.testing.assert_close(net.network.conv1.conv.weight, with_heads.conv1.conv.weight)
    assert net.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 5)


def test_unknown_weights_get_a_list():
    with pytest.raises(ConfigError, match="for resnet50 it can be default, IMAGENET1K_V1, IMAGENET1K_V2, null or"):
        find_weights("resnet50", "IMAGENET1K_V3")


@pytest.mark.parametrize(("place", "fault"), [("nowhere.pth", "does not exist"), (".", "is a folder")])
def test_a_file_that_is_not_there_names_the_setting(tmp_path, place: str, fault: str):
    with pytest.raises(DataError, match=rf"model\.weights={tmp_path / place} {fault}"):
        find_weights("resnet18", str(tmp_path / place))


# The weights' own preprocess


@pytest.mark.parametrize(
    ("name", "weights", "resize", "interpolation"),
    [
        ("resnet18", "default", 256, "bilinear"),
        ("resnet50", "default", 232, "bilinear"),
        ("resnet50", "IMAGENET1K_V1", 256, "bilinear"),
        ("efficientnet_b0", "default", 256, "bicubic"),
    ],
)
def test_preprocess_is_what_the_weights_were_evaluated_with(name: str, weights: str, resize: int, interpolation: str):
    expected = {"size": 224, "resize": resize, "crop": "center", "interpolation": interpolation} | IMAGENET
    assert weights_preprocess(name, weights) == expected
    assert Preprocess.from_dict(expected).to_dict() == expected


def test_a_local_file_is_prepared_for_like_the_default_weights():
    assert weights_preprocess("resnet18", "some/file.pth") == weights_preprocess("resnet18", "default")
    assert weights_preprocess("resnet18", None) is None
