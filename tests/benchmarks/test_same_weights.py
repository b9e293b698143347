"""Checkpoints of two checkouts are compared bit for bit, in the order of their tensors."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

WEIGHT = torch.tensor([1.0, 0.0, float("nan")])


@pytest.fixture
def same_weights(script) -> ModuleType:
    return script("same_weights")


def save(path: Path, weight: torch.Tensor, key: str = "weight", **parts: dict) -> Path:
    torch.save({"global_step": 3, "state_dict": {key: weight}, "optimizer_states": [{"step": 3}], **parts}, path)
    return path


def test_renamed_keys_are_no_difference(same_weights: ModuleType, tmp_path: Path):
    ours, theirs = save(tmp_path / "a", WEIGHT), save(tmp_path / "b", WEIGHT.clone(), key="net.weight")
    assert same_weights.compare(ours, theirs) == {"global_step": 3, "num_tensors": 2, "num_different": 0}


@pytest.mark.parametrize(
    "weight", [torch.tensor([1.0, -0.0, float("nan")]), WEIGHT.nextafter(torch.tensor(2.0)), WEIGHT.double()]
)
def test_a_single_different_bit_or_another_type_is_a_difference(same_weights, tmp_path: Path, weight: torch.Tensor):
    ours, theirs = save(tmp_path / "a", WEIGHT), save(tmp_path / "b", weight)
    assert same_weights.compare(ours, theirs)["num_different"] == 1


def test_a_missing_part_is_a_difference(same_weights: ModuleType, tmp_path: Path):
    ours, theirs = save(tmp_path / "a", WEIGHT), save(tmp_path / "b", WEIGHT, averaging_state={"weight": WEIGHT})
    assert same_weights.compare(ours, theirs)["num_different"] == 1
