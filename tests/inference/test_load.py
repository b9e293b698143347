"""What a run can go on from: a whole state of training, of the same network and the same classes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imago.errors import DataError
from imago.inference.load import check_continues
from imago.runs.checkpoint import write_checkpoint

SAVED: dict[str, Any] = {
    "imago": {"schema": 1},
    "loops": {},
    "optimizer_states": [],
    "hyper_parameters": {"class_names": ["ant", "bee"]},
    "state_dict": {"weight": torch.zeros(2, 3)},
}
TASK: Any = SimpleNamespace(
    hparams={"class_names": ["ant", "bee"]}, state_dict=lambda: {"weight": torch.zeros(2, 3, device="meta")}
)


def test_a_state_of_the_same_network_is_gone_on_with(tmp_path: Path):
    write_checkpoint(SAVED, tmp_path / "last.ckpt")
    check_continues(tmp_path / "last.ckpt", TASK)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"state_dict": {"weight": torch.zeros(5, 3)}},
            "another network .* weight has the shape .5, 3. there and .2, 3.",
        ),
        ({"state_dict": {}}, "weight has the shape None there"),
        ({"state_dict": SAVED["state_dict"] | {"more": torch.zeros(1)}}, "more has the shape .1,. there and None here"),
        ({"hyper_parameters": {"class_names": ["bee", "ant"]}}, "is of the classes .'bee', 'ant'., and the data has"),
        ({"loops": None}, "no state of a training that could go on"),
    ],
)
def test_another_state_is_refused_in_one_line(tmp_path: Path, changed: dict[str, Any], text: str):
    saved = {key: value for key, value in (SAVED | changed).items() if value is not None}
    write_checkpoint(saved, tmp_path / "last.ckpt")
    with pytest.raises(DataError, match=text) as caught:
        check_continues(tmp_path / "last.ckpt", TASK)
    assert str(caught.value).isprintable()


def test_a_damaged_state_names_the_other_one(tmp_path: Path):
    (tmp_path / "last.ckpt").write_bytes(b"half")
    with pytest.raises(DataError, match="is truncated .* best.ckpt, copied over it, goes on from the best epoch"):
        check_continues(tmp_path / "last.ckpt", TASK)
