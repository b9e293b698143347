"""Files of weights: found, read and copied, or refused in one line; never silently replaced by random weights."""

import logging
import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from networks import network
from safetensors.torch import save_file

from imago.errors import ConfigError, DataError
from imago.model.adapt import build_network, weights_preprocess
from imago.model.small_resnet import SmallResNet
from imago.model.torchvision_net import TorchvisionNet
from imago.model.weights import find_file, read_weights


def squeezenet_net(num_classes: int, file: Path) -> TorchvisionNet:
    return network(TorchvisionNet, num_classes, 224, name="squeezenet1_0", weights=str(file))


# Reading


def test_the_dotted_names_of_published_densenets_are_renamed(tmp_path):
    torch.save({"features.denseblock1.denselayer1.norm.1.weight": torch.ones(2)}, tmp_path / "old.pth")
    assert list(read_weights(tmp_path / "old.pth")) == ["features.denseblock1.denselayer1.norm1.weight"]


@pytest.mark.parametrize("container", ["state_dict", "model", "model_state_dict", "ema", "my.own", None])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "net.backbone.", ""])
def test_weights_are_found_in_containers_and_behind_prefixes(tmp_path, container: str | None, prefix: str):
    net = SmallResNet(4, 32, width=4)
    state = {f"{prefix}{key}": value for key, value in net.state_dict().items()}
    content = {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "epoch": 3, "best": 0.5}
    for name in reversed((container or "").split(".")):
        state = {name: state} if name else state
    torch.save(state | (content if container else {}), tmp_path / "file.pth")
    read = read_weights(tmp_path / "file.pth", net.state_dict())
    assert list(read) == list(net.state_dict())
    assert torch.equal(read["head.weight"], net.head.weight)


def test_what_was_taken_from_a_file_is_logged_with_what_was_not(tmp_path, caplog):
    torch.manual_seed(1)
    plain, average = SmallResNet(4, 32, width=4).state_dict(), SmallResNet(4, 32, width=4).state_dict()
    averaged = {f"module.{key}": value for key, value in average.items()} | {"n_averaged": torch.tensor(3)}
    arguments = Namespace(lr=0.1, model="x", nested=Namespace(epochs=90))
    torch.save({"model_ema": averaged, "model": plain, "args": arguments}, tmp_path / "both.pth")
    torch.save({"model_ema": averaged, "args": arguments}, tmp_path / "ema.pth")
    with caplog.at_level(logging.INFO, "imago"):
        net = network(SmallResNet, 4, 32, width=4, weights=str(tmp_path / "both.pth"))
        averaged_net = network(SmallResNet, 4, 32, width=4, weights=str(tmp_path / "ema.pth"))
    assert torch.equal(net.head.weight, plain["head.weight"])
    assert torch.equal(averaged_net.head.weight, average["head.weight"])
    assert "from both.pth (those of 'model', not those of 'model_ema', which would fit too)" in caplog.text
    assert "from ema.pth (those of 'model_ema', without the prefix 'module.', left out: n_averaged)" in caplog.text


def test_files_from_before_the_batch_counter_load(tmp_path, saved, changed):
    file = saved(tmp_path / "old.pth", "mobilenet_v3_small")
    counters = [key for key in torch.load(file, weights_only=True) if key.endswith("num_batches_tracked")]
    changed(file, **dict.fromkeys(counters))
    net = network(TorchvisionNet, 10, 224, name="mobilenet_v3_small", weights=str(file))
    torch.testing.assert_close(net.network.features[0][0].weight, read_weights(file)["features.0.0.weight"])


def test_safetensors_are_read_like_a_pth(squeezenet, tmp_path):
    state = read_weights(squeezenet)
    save_file(state, tmp_path / "file.safetensors")
    again = read_weights(tmp_path / "file.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())


def test_safetensors_without_the_package_name_the_way_out(squeezenet, tmp_path, monkeypatch):
    save_file(read_weights(squeezenet), tmp_path / "file.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ConfigError, match="needs the package safetensors, which make setup installs; or use a .pth"):
        read_weights(tmp_path / "file.safetensors")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A checkpoint as a run saves it: the network, a tensor of the loss, and the preprocess record."""
    torch.manual_seed(1)
    net = SmallResNet(4, 32, width=4)
    state = {f"net.{key}": value for key, value in net.state_dict().items()} | {"loss.weight": torch.ones(4)}
    record = {"size": 32, "resize": 40, "crop": "center", "mean": [0.1] * 3, "std": [0.2] * 3}
    content = {"imago": {"schema": 2}, "state_dict": state, "hyper_parameters": {"preprocess": record}}
    torch.save(content, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def test_only_the_network_of_a_checkpoint_is_read(checkpoint, caplog):
    state = read_weights(checkpoint, SmallResNet(4, 32, width=4).state_dict())
    assert "loss.weight" not in state
    with caplog.at_level(logging.INFO, "imago"):
        net = network(SmallResNet, 9, 32, width=4, weights=str(checkpoint))
    assert (
        "loaded from best.ckpt (new: head.weight, head.bias); dropped from the file: head.weight, head.bias"
        in caplog.text
    )
    assert torch.equal(net.stem.weight, state["stem.weight"])
    assert net.new_tensor_names == ["head.weight", "head.bias"]


def test_a_checkpoint_has_a_preprocess_record_and_other_files_have_none(checkpoint, squeezenet):
    small_resnet = {"_target_": "imago.model.small_resnet.SmallResNet"}
    assert weights_preprocess(small_resnet | {"weights": str(checkpoint)})["resize"] == 40
    assert TorchvisionNet.weights_preprocess("resnet18", str(checkpoint))["mean"] == [0.1] * 3
    assert weights_preprocess(small_resnet | {"weights": str(squeezenet)}) is None
    assert weights_preprocess(small_resnet | {"weights": None}) is None


def test_our_own_networks_have_no_published_weights():
    with pytest.raises(ConfigError, match=r"model\.weights=default: of this network it can be null, a file or a run"):
        network(SmallResNet, 9, 32, weights="default")


def test_a_head_with_a_missing_tensor_is_not_copied(squeezenet, changed):
    net = squeezenet_net(1000, changed(squeezenet, classifier__1__bias=None))
    file_head = read_weights(squeezenet)["classifier.1.weight"]
    assert not torch.equal(net.network.classifier[1].weight, file_head)


# Classes of the head


@pytest.mark.parametrize(
    ("class_names", "rows", "text"),
    [
        (["ant", "bee", "cat", "dog"], [0, 1, 2, 3], "46 of 46 pretrained tensors loaded from best.ckpt"),
        (["dog", "ant", "cat", "bee"], [3, 0, 2, 1], "46 of 46 .* from best.ckpt; rows of the head matched by class"),
        (["ant", "bee", "cat", "do\u0308g"], [0, 1, 2, 3], "46 of 46 pretrained tensors"),  # in another Unicode form
        (["dog", "bee"], [3, 1], "46 of 46 .* from best.ckpt; rows of the head matched by class"),
        (
            ["ant", "bee", "cat", "fox"],
            None,
            r"44 of 46 .*\(new: head.weight, head.bias\); head not used: the file has no fox, only .* ant, bee",
        ),
    ],
)
def test_the_rows_of_a_checkpoints_head_are_those_of_the_classes_of_the_data(
    checkpoint, caplog, class_names: list[str], rows: list[int] | None, text: str
):
    content = torch.load(checkpoint)
    last = "d\u00f6g" if "\u0308" in class_names[-1] else "dog"
    content["hyper_parameters"]["class_names"] = ["ant", "bee", "cat", last]
    torch.save(content, checkpoint)
    settings = {"_target_": "imago.model.small_resnet.SmallResNet", "width": 4, "weights": str(checkpoint)}
    with caplog.at_level(logging.INFO, "imago"):
        net = build_network(settings, len(class_names), 32, class_names=class_names).eval()
    assert re.search(text, caplog.text)
    file_head, images = content["state_dict"]["net.head.weight"], torch.rand(2, 3, 32, 32)
    if rows is None:
        assert not torch.equal(net.head.weight, file_head)
        return
    logits = build_network(settings, 4, 32).eval()(images)  # of the classes of the file
    torch.testing.assert_close(net(images), logits[:, rows])


@pytest.mark.parametrize(
    ("class_names", "is_warning"),
    [
        ([f"n{index:08d}" for index in range(1000)], False),
        ([f"{index:03d}" for index in range(1000)], False),
        ([f"word {index}" for index in range(1000)], True),
    ],
)
def test_what_the_classes_of_a_published_head_are_taken_to_be_is_logged(
    squeezenet, monkeypatch, caplog, class_names: list[str], is_warning: bool
):
    monkeypatch.setattr(TorchvisionNet, "find_weights", lambda name, weights: squeezenet)
    settings = {"_target_": "imago.model.torchvision_net.TorchvisionNet", "name": "squeezenet1_0", "weights": "default"}
    with caplog.at_level(logging.INFO, "imago"):
        build_network(settings, 1000, 224, class_names=class_names)
    (record,) = (record for record in caplog.records if "the head is kept" in record.message)
    assert f"by index: 0 is {class_names[0]}, 1 is {class_names[1]}" in record.message
    assert (record.levelno == logging.WARNING) == is_warning
    with caplog.at_level(logging.INFO, "imago"):
        caplog.clear()
        build_network(settings, 2, 224, class_names=class_names[:2])
    assert "the head is kept" not in caplog.text


# Weights that do not fit, are damaged or do not exist


def test_a_mismatch_names_the_first_tensors(tmp_path, saved):
    file = saved(tmp_path / "mobilenet.pth", "mobilenet_v3_small")
    with pytest.raises(
        DataError, match=r"does not fit this network \(Missing key.*features\.0\.weight.*; choose the model="
    ) as caught:
        squeezenet_net(1000, file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_and_one_of_another_shape_are_reported_together(squeezenet, changed):
    changed(squeezenet, features__3__squeeze__bias=None, features__0__bias=torch.zeros(4))
    with pytest.raises(DataError) as caught:
        squeezenet_net(5, squeezenet)
    for text in ('Missing key(s) in state_dict: "features.3.squeeze.bias"', "size mismatch for features.0.bias"):
        assert text in str(caught.value)


def test_values_that_are_not_finite_are_refused(squeezenet, changed):
    changed(squeezenet, features__0__bias=torch.full((96,), float("nan")))
    with pytest.raises(DataError, match=r"squeezenet\.pth has values in features\.0\.bias that are not finite"):
        read_weights(squeezenet)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1).expand(10**14),
        torch.ones(3).to_sparse(),
        torch.empty(10**12, device="meta"),
        torch.ones(96, dtype=torch.complex64),
    ],
)
def test_a_tensor_that_is_larger_than_its_file_is_refused(squeezenet, changed, tensor: torch.Tensor):
    changed(squeezenet, features__0__bias=tensor)
    with pytest.raises(
        DataError, match=r"squeezenet\.pth: features\.0\.bias is not a dense tensor with its numbers; save it as one"
    ):
        read_weights(squeezenet)


def test_a_flipped_bit_is_found(squeezenet):
    data = bytearray(squeezenet.read_bytes())
    data[len(data) // 2] ^= 1
    squeezenet.write_bytes(data)
    with pytest.raises(DataError, match=r"squeezenet\.pth is damaged .* the checksum of .* does not match"):
        read_weights(squeezenet)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"not a file of weights", b"PK\x03\x04 no zip", b"\x80\x02}q\x00.", b"\xff" * 40]
)
def test_files_of_other_kinds_are_refused_in_one_line(tmp_path, content: bytes, suffix: str):
    file = tmp_path / f"file.{suffix}"
    file.write_bytes(content)
    with pytest.raises(
        DataError, match=r"file\.\w+ (is damaged or not a file of weights|contains no state_dict)"
    ) as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(squeezenet):
    squeezenet.write_bytes(squeezenet.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"squeezenet\.pth is damaged or not a file of weights") as caught:
        read_weights(squeezenet)
    assert "miniz" not in str(caught.value)  # of torch's message only the first sentence is shown


class Stranger:
    """An object of a training script."""

    def __setstate__(self, state: dict) -> None:
        raise AssertionError("a stranger's code was executed")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"hook": print}, r"\S*print"),
        ({"args": Namespace(config=Stranger())}, r"\S*test_weights.Stranger"),
        ({"args": Namespace(nested=Namespace(items=[Stranger()]))}, r"\S*test_weights.Stranger"),
        (Stranger(), r"\S*test_weights.Stranger"),
    ],
)
def test_an_object_that_could_run_code_is_refused_by_its_name(tmp_path, content, name: str):
    if isinstance(content, dict):
        content["model"] = {"weight": torch.zeros(1)}
    else:
        content.text = "not empty"
    torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(DataError, match=rf"evil\.pth holds the object {name} beside plain data .*; save the weights"):
        read_weights(tmp_path / "evil.pth")


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"a": 1}, torch.zeros(1)])
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(DataError, match="contains no state_dict"):
        read_weights(tmp_path / "file.pth")


@pytest.mark.parametrize(("file", "fault"), [("missing.pth", "does not exist"), (".", "is a directory")])
def test_a_file_that_does_not_exist_is_refused_with_the_setting(tmp_path, file: str, fault: str):
    with pytest.raises(DataError, match=rf"model\.weights={tmp_path / file} {fault}"):
        find_file(str(tmp_path / file))
