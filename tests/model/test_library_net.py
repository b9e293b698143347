"""Networks of a library: sizes that they cannot take; published weights, downloaded and verified, or refused."""

import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

from imago.errors import ConfigError, DataError
from imago.model import library_net
from imago.model.library_net import check_image_size
from imago.model.torchvision_net import TorchvisionNet

find_weights = TorchvisionNet.find_weights


# Sizes


class MeanColorNet(nn.Module):
    """Logits of the mean color, with a buffer and a norm whose statistics must not change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] % 8 == 0, "sides are multiples of 8"
        return self.head(self.norm(images.mean(dim=(2, 3)) * self.scale))


def test_checking_a_fitting_size_changes_neither_tensors_nor_the_mode():
    net = MeanColorNet()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    check_image_size(net, "mean", 16, supported_size_px=8, num_classes=4)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.head.weight.device.type == "cpu"
    assert net.norm.training


def test_checking_leaves_a_module_that_a_network_has_twice_as_it_was():
    shared = nn.Conv2d(3, 3, 1)
    net = nn.Sequential(shared, nn.Sequential(shared), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    check_image_size(net, "twice", 8, 8, 3)
    assert all(parameter.is_leaf and parameter.device.type == "cpu" for parameter in net.parameters())
    assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


def test_a_size_that_does_not_fit_is_refused_with_the_reason_and_a_size_that_does():
    with pytest.raises(ConfigError, match=r"model\.name=mean cannot take images of 12 px \(sides are mul") as caught:
        check_image_size(MeanColorNet(), "mean", 12, supported_size_px=8, num_classes=4)
    assert str(caught.value).endswith("type e.g. preprocess.size=8.")


@pytest.mark.parametrize("net", [MeanColorNet(), nn.Flatten(), nn.Conv2d(3, 5, 3)])
def test_a_network_without_logits_for_the_classes_is_refused(net: nn.Module):
    with pytest.raises(ConfigError, match=r"model\.name=net is not a classifier: its output is not 5 logits"):
        check_image_size(net, "net", 8, supported_size_px=8, num_classes=5)


# Published weights


def test_a_damaged_file_in_the_cache_is_refused(cache, publish, saved):
    file = publish(saved(cache / "file", "squeezenet1_0"), "squeezenet1_0")
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(DataError, match=rf"{file} is damaged \(its sha256 begins with .* delete it"):
        find_weights("squeezenet1_0", "default")


def test_being_offline_without_a_cached_file_is_one_line_with_the_ways_out(cache, monkeypatch):
    monkeypatch.setattr(library_net, "is_reachable", lambda url, timeout_s: False)
    with pytest.raises(DataError) as caught:
        find_weights("resnet18", "default")
    for text in ("resnet18-f37072fd.pth", str(cache), "copy the file there", "model.weights=FILE.pth", "=null"):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_from_the_command_line_offline_is_exit_code_2_and_one_line(command, tmp_path):
    closed = "http://127.0.0.1:9"  # the discard port: nothing listens there
    offline = {"https_proxy": closed, "http_proxy": closed, "TORCH_HOME": str(tmp_path / "torch")}
    done = command("src/train.py", "model=resnet18", "data=shapes", f"paths.log_dir={tmp_path}", **offline)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: resnet18-f37072fd.pth is not in ")


# Downloads


class CutOff(BaseHTTPRequestHandler):
    """Announces a million bytes and sends ten."""

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
    """Start a server on this machine and return its address."""
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


def test_a_download_is_saved_in_the_cache(cache, publish, serve, tmp_path, saved):
    served = tmp_path / "served"
    served.mkdir()
    file = publish(
        saved(served / "file", "squeezenet1_0"), "squeezenet1_0", serve(partial(Quiet, directory=str(served)))
    )
    assert find_weights("squeezenet1_0", "default") == cache / file.name
    assert (cache / file.name).read_bytes() == file.read_bytes()


def test_an_interrupted_download_is_one_line_and_leaves_no_file(cache, publish, serve, tmp_path, saved):
    file = publish(saved(tmp_path / "file", "squeezenet1_0"), "squeezenet1_0", serve(CutOff))
    with pytest.raises(DataError, match=rf"the download of {file.name} into {cache} failed \(.*copy the file there"):
        find_weights("squeezenet1_0", "IMAGENET1K_V1")
    assert list(cache.iterdir()) == []
    assert socket.getdefaulttimeout() is None
