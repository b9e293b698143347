"""Loading: the network that a checkpoint describes, and what a run can resume from."""

import copy
import operator
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from imago import trust
from imago.errors import DataError, UserError
from imago.images import Preprocess
from imago.inference.load import check_compatible, load_classifier, load_predictor
from imago.runs.checkpoint import read_checkpoint, write_checkpoint

SAVED: dict[str, Any] = {
    "imago": {"schema": 2},
    **{"epoch": 1, "global_step": 3, "pytorch-lightning_version": "2.6.6"},
    "loops": {
        "fit_loop": {
            "epoch_progress": {"current": {"processed": 3}},
            "epoch_loop.batch_progress": {"total": {"processed": 6}},
        }
    },
    "callbacks": {},
    "lr_schedulers": [],
    "optimizer_states": [],
    "hyper_parameters": {"class_names": ["ant", "bee"]},
    "state_dict": {"weight": torch.ones(2, 3)},
}


@pytest.fixture
def task() -> Any:
    task = nn.Linear(3, 2, bias=False)
    task.automatic_optimization = True
    task.hparams = {"class_names": ["ant", "bee"], "net": {"_target_": "mynet.Tiny"}}
    return task


def test_the_state_of_the_same_network_passes(tmp_path: Path, task: Any):
    write_checkpoint(SAVED, tmp_path / "last.ckpt")
    assert check_compatible(tmp_path / "last.ckpt", task) == (3, 3)
    task.automatic_optimization = False  # as `trainer.max_steps`, it counts batches
    assert check_compatible(tmp_path / "last.ckpt", task) == (3, 6)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"state_dict": {"weight": torch.zeros(5, 3)}},
            "do not fit mynet.Tiny as its code is now; restore .* weight: .*5, 3",
        ),
        ({"state_dict": {}}, "do not fit mynet.Tiny as its code is now; restore .*Missing key.*weight"),
        ({"hyper_parameters": {"class_names": ["bee", "ant"]}}, "has the classes .'bee', 'ant'., and the data has"),
        ({"loops": None}, "last.ckpt: its field loops is missing; it was changed after saving"),
        ({"optimizer_states": {}}, "last.ckpt: its field optimizer_states is dict, not list"),
        ({"hyper_parameters": {"class_names": 2}}, "its field hyper_parameters.class_names is int, not list"),
    ],
)
def test_the_state_of_another_network_or_other_classes_is_refused_in_one_line(
    tmp_path: Path, task: Any, changed: dict[str, Any], text: str
):
    saved = {key: value for key, value in (SAVED | changed).items() if value is not None}
    write_checkpoint(saved, tmp_path / "last.ckpt")
    with pytest.raises(DataError, match=text) as caught:
        check_compatible(tmp_path / "last.ckpt", task)
    assert str(caught.value).isprintable()


def test_a_damaged_state_names_the_other_checkpoint(tmp_path: Path, task: Any):
    (tmp_path / "last.ckpt").write_bytes(b"half")
    with pytest.raises(DataError, match="is truncated .* Copy best.ckpt over it to resume from the best epoch"):
        check_compatible(tmp_path / "last.ckpt", task)


NET = """
from torch import nn

class Tiny(nn.Module):
    '''Maps the means of the channels to logits; refuses to read pretrained weights.'''

    def __init__(self, num_classes, image_size, weights):
        super().__init__()
        assert weights is None, weights
        self.layer = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.layer(images.mean(dim=(2, 3)))
"""


PREPROCESS = {"size": 8, "resize": 10, "crop": "center", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a network from a package in src/, whose settings name pretrained weights."""
    (tmp_path / "tinynet").mkdir()
    (tmp_path / "tinynet" / "__init__.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tinynet", raising=False)
    monkeypatch.setattr(trust, "_SOURCE_DIR", tmp_path)  # as if it were src/
    settings = {"_target_": "tinynet.Tiny", "weights": "/no/such/file.pth"}
    state = {"net.layer.weight": torch.eye(3)[[2, 0]], "net.layer.bias": torch.zeros(2), "loss.weight": torch.ones(1)}
    hparams = {"net": settings, "class_names": ["blue", "red"], "preprocess": PREPROCESS}
    file = tmp_path / "some.ckpt"
    write_checkpoint({"imago": {"schema": 2}, "hyper_parameters": hparams, "state_dict": state}, file)
    return file


def test_rebuilding_a_network_never_reads_pretrained_weights(tiny: Path):
    assert load_classifier(tiny).class_names == ("blue", "red")


def test_a_task_without_metrics_loads(tiny: Path):
    saved = read_checkpoint(tiny)
    saved["hyper_parameters"]["metrics"] = None
    write_checkpoint(saved, tiny)
    assert load_classifier(tiny).metrics == {}


def test_weights_that_do_not_fit_the_code_of_their_network_are_one_line(tiny: Path):
    module = tiny.parent / "tinynet" / "__init__.py"
    module.write_text(NET.replace("self.layer", "self.renamed_layer"))
    with pytest.raises(DataError, match="the weights do not fit tinynet.Tiny as its code .*renamed_layer") as caught:
        load_classifier(tiny)
    assert "\n" not in str(caught.value)


def test_predictor_returns_fp32_logits_with_the_checkpoints_own_preprocess(tiny: Path):
    predictor = load_predictor(tiny, accelerator="cpu")
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    means = (images.mean(axis=(2, 3)) / 255 - PREPROCESS["mean"]) / PREPROCESS["std"]
    logits, probabilities = predictor.predict(images)
    assert logits.dtype == np.float32
    assert logits == pytest.approx(means[:, [2, 0]], abs=1e-5)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert predictor.preprocess == Preprocess.from_dict(PREPROCESS)


@pytest.mark.parametrize(("typed", "threads"), [(None, 2), (1, 1), ("auto", 3)])
def test_the_number_of_threads_is_set_only_where_it_is_typed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, typed: int | str | None, threads: int
):
    monkeypatch.setattr("imago.resources.idle_cores", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        load_predictor(tiny, accelerator="cpu", threads=typed)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_list_in_the_place_of_a_tensor_is_named(tiny: Path):
    saved = read_checkpoint(tiny)
    name = next(iter(saved["state_dict"]))
    saved["state_dict"][name] = [1.0]
    write_checkpoint(saved, tiny)
    with pytest.raises(UserError, match=rf"its field state_dict\.{name} is list, not Tensor"):
        load_classifier(tiny)


def fields(node: Any, above: tuple = ()) -> Iterator[tuple]:
    """Yield the keys of every field of nested dicts and of the first entries of lists."""
    entries = node.items() if isinstance(node, dict) else enumerate(node[:1]) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*above, key)
        yield from fields(value, (*above, key))


@pytest.mark.parametrize("value", [None, 7, -1.5, "x", [], ["a", 3], {}, {"a": 1}, torch.ones(2), "deleted"], ids=repr)
def test_a_checkpoint_with_any_changed_field_loads_or_is_refused_in_one_line(tiny: Path, value: Any):
    saved = read_checkpoint(tiny)
    num_refused = 0
    for *above, key in list(fields(saved)):
        changed = copy.deepcopy(saved)
        node = reduce(operator.getitem, above, changed)
        node[key] = value
        if value == "deleted":
            del node[key]
        write_checkpoint(changed, tiny)
        try:
            load_classifier(tiny)
        except UserError as error:
            num_refused += 1
            message = str(error)
            assert message.startswith(str(tiny))
            assert "\n" not in message
    assert num_refused > 10
